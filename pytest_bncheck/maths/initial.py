r"""How much of its initial value a running statistic still holds, read from the statistic itself.

For a model that was trained elsewhere nobody knows how many updates were made, and a counter can
be wrong: copied, reset, counted under another momentum. But the initial value leaves a trace that
no training leaves: every channel of every layer is moved towards the same 0 and 1 by the same
share w. With :math:`r = w\,r_0 + (1-w)\,b`, the w that brings the running statistics nearest to
the batch statistics is that share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pytest_bncheck.types import Statistics

if TYPE_CHECKING:
    from pytest_bncheck.types import Array

GRID = 200
"""Weights that are tried before the best of them is refined."""

ROUNDS = 60
"""Steps of the refinement; each shortens the interval by the golden ratio."""


@dataclass(frozen=True)
class InitialFit:
    """The initial value's weight that explains running statistics best.

    Attributes
    ----------
    weight
        w, in [0, 1].
    share
        Share of the distance between running and batch statistics that goes with it, in [0, 1].
    """

    weight: float
    share: float


def fit(
    running: Statistics, batch: Statistics, eps: Sequence[float], start_var: Sequence[float]
) -> InitialFit:
    r"""Fit the weight w that the initial mean 0 and variance :math:`v_0` still have.

    .. math::

        E(w) = \operatorname{mean}_{layers} \operatorname{mean}_c \Big[
            \frac{(m - b_m)^2}{b_v + ε} + \frac14 \ln^2 \frac{v + ε}{b_v + ε} \Big],
        \qquad m = \frac{r_m}{1-w}, \quad v = \frac{r_v - w\,v_0}{1-w}

    is the distance that is left if the initial value is taken out: squared standard deviations
    of the normalised output for the mean, the same to first order for the variance. A variance
    cannot be less than what is left of its initial value, so w is at most
    :math:`\min_c r_v / v_0`. The weight is the argmin of E, the share
    :math:`1 - E(w)/E(0)`. All layers must have the same update rate and the same history.

    Parameters
    ----------
    running, batch
        Running and batch statistics of the layers, at least one.
    eps
        The constant that each layer adds to its variance.
    start_var
        :math:`v_0` of each layer: 1, or (n-1)/n where an unbiased 1 was converted.

    Returns
    -------
    InitialFit
        Weight and share 0 where the statistics are not finite or agree already.
    """
    rows = list(zip(running.mean, running.var, batch.mean, batch.var, eps, start_var, strict=True))
    bound = min((float(np.min(rv)) / v0 for _, rv, _, _, _, v0 in rows), default=0.0)
    nothing = InitialFit(0.0, 0.0)
    whole = _distance(rows, 0.0)
    if not np.isfinite(whole) or whole <= 0.0 or not bound > 0.0:
        return nothing
    highest = min(bound, 1.0 - 1e-6)
    # Dense where a small step of w changes 1-w most.
    grid = 1.0 - np.geomspace(1.0, 1.0 - highest, GRID)
    distances = [_distance(rows, w) for w in grid]
    k = int(np.nanargmin(distances))
    low, high = grid[max(k - 1, 0)], grid[min(k + 1, GRID - 1)]
    weight = _golden(rows, float(low), float(high))
    left = _distance(rows, weight)
    if not left < whole:
        return nothing
    return InitialFit(weight, 1.0 - left / whole)


def fit_values(states: Sequence[tuple[Array, Array]]) -> tuple[InitialFit, list[Array]]:
    r"""The same for states that have no variance: :math:`r - r_0 = (1-w)(b - r_0)`.

    Each state began as 0 or as 1, whichever leaves less, and all have one weight. Each counts by
    the root mean square of its :math:`b - r_0`, so that none drowns the others.

    Parameters
    ----------
    states
        The values of each state and those towards which training moves them, shape (values,).

    Returns
    -------
    InitialFit
        Weight and share 0 where the values are settled already.
    list of arrays of shape (values,)
        What each state began as.
    """
    starts, gone, ways, left = [], [], [], []
    for now, settled in states:
        zero, one = np.zeros_like(now), np.ones_like(now)
        start = min((zero, one), key=partial(_unexplained, now, settled))
        scale = max(float(np.sqrt(np.mean(np.square(settled - start)))), 1e-12)
        scale *= now.size**0.5
        starts.append(start)
        gone.append((now - start) / scale)
        ways.append((settled - start) / scale)
        left.append((settled - now) / scale)
    part, unexplained = _left(np.concatenate(gone), np.concatenate(ways))
    weight, whole = 1.0 - part, float(np.square(np.concatenate(left)).sum())
    if not 0.0 < weight <= 1.0 or not unexplained < whole:
        return InitialFit(0.0, 0.0), starts
    return InitialFit(weight, 1.0 - unexplained / whole), starts


def _unexplained(now: Array, settled: Array, start: Array) -> float:
    """The squared distance that no weight of this start explains."""
    return _left(now - start, settled - start)[1]


def _left(way: Array, whole: Array) -> tuple[float, float]:
    """How much of a way was gone, and the squared distance that it does not explain."""
    size = float(np.square(whole).sum())
    gone = float((way * whole).sum()) / size if size > 0 else 0.0
    return gone, float(np.square(way - gone * whole).sum())


def _distance(rows: Sequence[tuple[Array, Array, Array, Array, float, float]], w: float) -> float:
    parts = []
    with np.errstate(all="ignore"):
        for rm, rv, bm, bv, e, v0 in rows:
            mean, var = rm / (1.0 - w), np.maximum(rv - w * v0, 0.0) / (1.0 - w)
            logs = np.log((var + e) / (bv + e))
            parts.append(float(np.mean((mean - bm) ** 2 / (bv + e) + 0.25 * logs**2)))
    return float(np.mean(parts)) if parts else 0.0


def _golden(
    rows: Sequence[tuple[Array, Array, Array, Array, float, float]], low: float, high: float
) -> float:
    """The minimum between two weights (golden-section search; Kiefer 1953)."""
    ratio = (5.0**0.5 - 1.0) / 2.0
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = _distance(rows, left), _distance(rows, right)
    for _ in range(ROUNDS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = _distance(rows, left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = _distance(rows, right)
    return (low + high) / 2.0
