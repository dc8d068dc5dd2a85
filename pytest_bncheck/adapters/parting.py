"""Where two passes part: the first module, or layer, that computes something else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, TypeAlias

import numpy as np

from pytest_bncheck.adapters.sources import frames_within, line_about_modes, line_of
from pytest_bncheck.types import Parting

ALIKE = 1e-3
"""Share of a tensor's norm by which rounding changes it at most."""

Sizes: TypeAlias = Sequence[Any]
"""For each floating tensor its norm, and its sum with weights that tell places apart."""


@dataclass(frozen=True)
class Event:
    """A module that is entered or left.

    Attributes
    ----------
    module, leaves
        Which, and whether it is left.
    around
        The module whose code runs: itself where it is left, else the one that calls it, or None.
    source
        Where it is entered: the line that calls it, or empty.
    """

    module: Any
    leaves: bool
    around: Any
    source: str = ""


Recorded: TypeAlias = Sequence[tuple[Event, Sizes]]


class Recorder:
    """The modules that a pass enters and leaves, with what goes in and comes out."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._sizes: list[Sizes] = []
        self._running: list[Any] = []

    def enter(self, module: Any, sizes: Sizes) -> None:
        """A module is called with inputs of these sizes."""
        around, source = None, ""
        if self._running:
            around = self._running[-1]
            frames = frames_within(Recorder.run.__code__)
            source = next((line_of(f) for f in frames if f.f_locals.get("self") is around), "")
        self._note(Event(module, False, around, source), sizes)
        self._running.append(module)

    def leave(self, module: Any, sizes: Sizes) -> None:
        """It returns outputs of these sizes."""
        while self._running.pop() is not module:  # left by an exception that the caller caught
            pass
        self._note(Event(module, True, module), sizes)

    def _note(self, event: Event, sizes: Sizes) -> None:
        self._events.append(event)
        self._sizes.append(sizes)

    def run(self, forward: Callable[[], object], to_host: Callable[[list[Any]], Any]) -> Recorded:
        """Make the pass; all sizes come to the host in one transfer."""
        forward()
        host = iter(to_host([size for sizes in self._sizes for size in sizes]))
        counted = zip(self._events, self._sizes, strict=True)
        return [(event, [next(host) for _ in sizes]) for event, sizes in counted]


def parting(
    one: Recorded,
    other: Recorded,
    path_of: Callable[[Any], str | None],
    *,
    call: str,
    is_library: Callable[[Any], bool],
) -> Parting | None:
    """The place at which the second pass begins to compute something else; None if nowhere.

    Parameters
    ----------
    path_of
        The path of a module in the model; None of what is no part of it.
    call
        The name of the method that holds a module's code.
    is_library
        Whether a module is the framework's.
    """
    event = _first_difference(one, other)
    path = None if event is None else path_of(event.around)
    if event is None or path is None:
        return None
    kind, library = type(event.around), is_library(event.around)
    source = "" if library else line_about_modes(getattr(kind, call)) or event.source
    return Parting(path, kind.__name__, source, library)


def _first_difference(one: Recorded, other: Recorded) -> Event | None:
    """The first event of the second pass that is another than in the first, or on other numbers."""
    for first, second in zip_longest(one, other):
        if first is None or second is None or not _are_alike(first, second):
            event, _ = second or first
            return event
    return None


def _are_alike(one: tuple[Event, Sizes], other: tuple[Event, Sizes]) -> bool:
    (event, mine), (second, others) = one, other
    if event.module is not second.module or event.leaves != second.leaves:
        return False
    return len(mine) == len(others) and all(map(_is_close, mine, others))


def _is_close(one: Any, other: Any) -> bool:
    allowed = ALIKE * (float(np.nan_to_num(one[0])) + 1e-12)
    return bool(np.allclose(one, other, rtol=0.0, atol=allowed, equal_nan=True))
