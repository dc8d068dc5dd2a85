r"""What a training pass does to a state s: :math:`f(s) = s + α(b - s)`, or no average at all.

Measured, not read: the same pass from several starts gives the rate α and the value b towards which
the state moves, whatever the code calls them and however settled the state is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pytest_bncheck.types import Array

STRAIGHT, OF_RATE = 1e-3, 0.01
"""Largest difference of 1-α over the values of a state, without rounding, and as a share of α."""

ROUNDINGS = 8.0
"""Spacings of floating-point numbers that count as rounding."""

SELDOM = 0.75
"""Share of the steps below which a state moves every few steps only."""

OTHERWISE, MOVE_ROUNDINGS = 1e-3, 32.0
"""Share of a layer's move in a step by which two moves differ, and spacings that are rounding."""

ALMOST = 1.0 - 1e-12
"""Largest rate of which a logarithm is taken."""

CONFIRMED = 1e-3
"""Share of an update, from a settled state, that it may still move by."""


def away(state: Array) -> Array:
    """A start that is clearly apart from both `state` and 0, and positive."""
    displaced: Array = 1.0 + 2.0 * np.abs(state)
    return displaced


def rate(starts: Sequence[Array], ends: Sequence[Array], resolution: float) -> float | None:
    r"""The update rate α in (0, 1] with which all starts move; None where there is none.

    .. math:: 1 - α = \frac{f(s') - f(s)}{s' - s}

    between the starts that lie farthest apart, as one number for all values of the state and for
    every other start.

    Parameters
    ----------
    starts, ends
        The state before and after the same pass, two or more of each.
    resolution
        Spacing of the floating-point numbers around 1 that hold it.
    """
    if any(end.shape != start.shape for start, end in zip(starts, ends, strict=True)):
        return None  # it grows
    with np.errstate(invalid="ignore", over="ignore"):
        shifts = [start - starts[0] for start in starts[1:]]
        moves = [end - ends[0] for end in ends[1:]]
        far = max(range(len(shifts)), key=lambda k: float(np.square(shifts[k]).sum()))
        shift, move = shifts[far], moves[far]
        if not all(np.isfinite(end).all() for end in ends) or not shift.any():
            return None
        kept = float((move * shift).sum() / np.square(shift).sum())
        size = np.max(np.abs([*starts, *ends]), axis=0)
        straight = min(STRAIGHT, OF_RATE * abs(1.0 - kept))
        for each, moved in zip(shifts, moves, strict=True):
            allowed = straight * np.abs(shift) + ROUNDINGS * resolution * size
            if not (np.abs(moved - kept * each) <= allowed).all():
                return None
    found = 1.0 - kept
    smallest = ROUNDINGS * resolution
    return min(found, 1.0) if smallest < found <= 1.0 + STRAIGHT else None


def settled(start: Array, end: Array, rate: float) -> Array:
    """The value towards which a pass moves a state: ``s + (f(s) - s)/α``."""
    with np.errstate(invalid="ignore", over="ignore"):
        return start + (end - start) / rate


def is_settled(state: Array, end: Array, rate: float, way: float, resolution: float) -> bool:
    """Whether a pass from `state` moves it by next to nothing.

    Parameters
    ----------
    way
        How far it came, in the units of the state, as a norm.
    """
    allowed = CONFIRMED * rate * way + ROUNDINGS * resolution * float(np.linalg.norm(state))
    return bool(np.isfinite(end).all()) and float(np.linalg.norm(end - state)) <= allowed


def first_rate(way: Sequence[Array], second: float) -> float | None:
    """The rate of the first step, which no pass before it measures; None if nothing moved in it.

    With rates r and α of the first two steps and the same batch statistics in both, the second move
    is ``α (1/r - 1)`` of the first. What the statistics move meanwhile makes it larger, and r seem
    smaller: a state that starts near its batch's values forgets nothing at once.

    Parameters
    ----------
    way
        The state before the first step, after it, and after the second.
    second
        The rate α of the second step.
    """
    start, after_first, after_second = way
    first, again = (
        float(np.linalg.norm(move)) for move in (after_first - start, after_second - after_first)
    )
    return 1.0 / (1.0 + again / first / second) if 0.0 < first < math.inf else None


def per_update(rate: float, updates: float) -> float:
    """The rate of one of several equal updates that together have `rate`: ``1-(1-α)^(1/n)``."""
    return float(1.0 - (1.0 - rate) ** (1.0 / updates)) if updates > 0 else rate


def kept_in_steps(rates: Mapping[int, float], steps: int, passes: float) -> tuple[float, ...]:
    """The share in [0, 1] that a state keeps in each training step, from rates at some of them.

    Between two of them the rate changes by an equal factor in each step, before the first and after
    the last it stays.

    Parameters
    ----------
    rates
        Rates over a pass, in (0, 1], by the number of steps before it.
    steps
        Training steps that were made.
    passes
        How many such passes a step is worth.
    """
    done = sorted(rates)
    sizes = [math.log(-math.log1p(-min(rates[k], ALMOST))) for k in done]
    between = np.interp(np.arange(steps), done, sizes)
    return tuple(np.exp(-np.exp(between) * passes).tolist())
