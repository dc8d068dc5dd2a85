"""Where two passes part: the first module, or layer, that computes something else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, TypeAlias

import numpy as np

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


def first_difference(one: Recorded, other: Recorded) -> Event | None:
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


def with_sizes(events: Sequence[Event], counts: Sequence[int], sizes: Iterable[Any]) -> Recorded:
    """Each event with as many of the sizes, in turn, as it has tensors."""
    left = iter(sizes)
    return [
        (event, [next(left) for _ in range(count)])
        for event, count in zip(events, counts, strict=True)
    ]
