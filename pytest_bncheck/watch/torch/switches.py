"""The calls of ``train()`` and ``eval()`` in a test."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

from torch import nn

from pytest_bncheck.watch.places import Place

MANY = 200
"""Switches of a test that are remembered."""


@dataclass(frozen=True)
class Switch:
    """A call of ``train()`` or ``eval()``.

    Attributes
    ----------
    ref
        The module that it was called on.
    training
        The mode that it entered.
    by_eval
        Whether it was ``eval()``.
    place
        The user's line; None where that is not the user's.
    number
        They are counted.
    steps
        Optimizer steps before it.
    """

    ref: weakref.ref[nn.Module]
    training: bool
    by_eval: bool
    place: Place | None
    number: int
    steps: int

    def covers(self, module: nn.Module) -> bool:
        """Whether it reached a module."""
        switched = self.ref()
        return switched is not None and any(each is module for each in switched.modules())

    def __str__(self) -> str:
        """``eval() in shop/trainer.py:20``."""
        call = f"train({'' if self.training else 'False'})"
        return f"{'eval()' if self.by_eval else call} in {self.place}"


class Switches:
    """Those of a test, the last one of each module.

    Attributes
    ----------
    last
        The number of the last one; -1 if there is none.
    """

    def __init__(self) -> None:
        self._made: list[Switch] = []
        self.last = -1

    def add(
        self, module: nn.Module, training: bool, by_eval: bool, place: Place | None, steps: int
    ) -> Switch:
        """Note one; see `Switch`."""
        before = next((each for each in self._made if each.ref() is module), None)
        if place is None and before is not None and before.training == bool(training):
            place = before.place  # a library says again what the user said
        self.last += 1
        ref = weakref.ref(module)
        switch = Switch(ref, bool(training), by_eval, place, self.last, steps)
        earlier = [each for each in self._made if each.ref() not in (module, None)]
        self._made = [*earlier[-MANY:], switch]
        return switch

    def reaching(self, module: nn.Module) -> list[Switch]:
        """Those that reached a module, the last one first."""
        return [each for each in reversed(self._made) if each.covers(module)]

    def of(self, module: nn.Module) -> Switch | None:
        """The last one that reached a module."""
        return next((each for each in reversed(self._made) if each.covers(module)), None)

    def owner(self, module: nn.Module) -> nn.Module:
        """The largest module around this one whose mode somebody switched."""
        found = [each.ref() for each in self.reaching(module)]
        around = [each for each in found if each is not None]
        return max(around, key=lambda each: sum(1 for _ in each.modules()), default=module)
