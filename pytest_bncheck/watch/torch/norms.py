"""Normalisation layers that ran in training mode in a step, and what their statistics became."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from pytest_bncheck.adapters.torch.internals import version_of
from pytest_bncheck.watch.torch import words
from pytest_bncheck.watch.torch.layers import (
    ENOUGH,
    Fingerprint,
    fingerprint,
    has_finite_weights,
    updates_as_torch,
)
from pytest_bncheck.watch.torch.records import Model, Stepped, path_of


class Fault(NamedTuple):
    """What is wrong with a layer of a model."""

    code: str
    model: Model
    message: str


@dataclass
class Statistics:
    """The running statistics of a layer.

    Attributes
    ----------
    ref, model
        The layer, and the model that it is in.
    steps
        Steps in which it ran in training mode.
    seen
        Its statistics after the first of them.
    moved
        Whether they changed since, or are those of no new layer.
    versions
        How often each of its parameters was changed in place; None unless all are frozen.
    frozen
        That it is frozen and its statistics move, if so in its first steps.
    """

    ref: weakref.ref[Any]
    model: Model
    steps: int = 0
    seen: Fingerprint | None = None
    moved: bool = False
    versions: tuple[int | None, ...] | None = None
    frozen: Fault | None = None

    @property
    def is_gone(self) -> bool:
        """Whether the layer or its model is no more."""
        return self.ref() is None or self.model.ref() is None


class Norms:
    """The layers of a test."""

    def __init__(self) -> None:
        self._known: dict[int, Statistics] = {}

    def step(self, layer: Any, model: Model, stepped: Stepped) -> Iterator[Fault]:
        """Look at a layer after a step; at once, as nets die early."""
        norm = self._known.get(id(layer))
        if norm is None or norm.ref() is not layer:
            norm = self._known[id(layer)] = Statistics(weakref.ref(layer), model)
            own = list(layer.parameters())
            if own and not any(parameter.requires_grad for parameter in own):
                norm.versions = tuple(map(version_of, own))
        norm.steps += 1
        if id(layer) in stepped:
            norm.frozen = None  # gradual finetuning has come to it
        if norm.steps > ENOUGH:
            return
        if not norm.moved:
            seen = fingerprint(layer)
            norm.moved = seen is None or (norm.seen is not None and seen != norm.seen)
            norm.seen = seen
        for fault in _faults(norm, stepped, ended=False):
            if fault.code == "BN107":  # it may yet be trained
                norm.frozen = fault
            else:
                yield fault

    def end(self, stepped: Stepped) -> Iterator[Fault]:
        """Look at all of them once more when a test ends."""
        for norm in self._known.values():
            if norm.frozen is not None and norm.is_gone:
                yield norm.frozen
            yield from _faults(norm, stepped, ended=True)


def _faults(norm: Statistics, stepped: Stepped, *, ended: bool) -> Iterator[Fault]:
    layer, model = norm.ref(), norm.model
    module = model.ref()
    if layer is None or module is None:
        return
    momentum, stays = layer.momentum, norm.seen is not None and not norm.moved
    new = stays and norm.seen is not None and norm.seen.is_initial and updates_as_torch(layer)
    faults = {
        "BN103": momentum == 0 or new or (stays and norm.steps >= ENOUGH),
        "BN104": isinstance(momentum, float) and momentum >= 0.5,
        "BN105": _is_invalid(layer, norm, ended),
        "BN107": (ended or norm.steps > 1) and _is_frozen(layer, module, norm, stepped),
    }
    found = [code for code, is_there in faults.items() if is_there]
    path = path_of(layer, module) or type(layer).__name__ if found else ""
    for code in ["BN103"] if "BN103" in found else found:
        yield Fault(code, model, words.of_statistics(code, path, model.name, momentum, norm.steps))


def _is_invalid(layer: nn.Module, norm: Statistics, ended: bool) -> bool:
    """Whether statistics are no numbers though the weights are."""
    last = fingerprint(layer) if ended else norm.seen
    return last is not None and not last.is_valid and has_finite_weights(layer)


def _is_frozen(layer: nn.Module, module: nn.Module, norm: Statistics, stepped: Stepped) -> bool:
    """Whether the parameters of a layer, and all before it, are as they were."""
    if norm.versions is None or id(layer) in stepped:
        return False
    if tuple(map(version_of, layer.parameters())) != norm.versions:
        return False  # a teacher that follows the net
    for each in module.modules():
        if each is layer:
            return True
        if any(parameter.requires_grad for parameter in each.parameters(recurse=False)):
            return False
    return False
