r"""Which layer makes how much of the difference between eval and training predictions.

Eval mode distorts layer k's normalised output to :math:`\hat x_{eval} = s\,\hat x + d` (see
`distances.shift_and_scale`). Going there along :math:`s_α = 1 + α(s-1)`, :math:`d_α = α d` in all
layers at once, from training (α = 0) to eval mode (α = 1), the prediction moves by
:math:`u = y_{eval} - y_{train}`, and the integral of each layer's part of the slope along the way
splits u among the layers without a remainder: integrated gradients (Sundararajan et al. 2017,
section 3), the Aumann-Shapley value of the layers. One point of a quadrature costs one forward and
one backward, whatever the number of layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from pytest_bncheck.maths.distances import shift_and_scale
from pytest_bncheck.types import Statistics

if TYPE_CHECKING:
    from pytest_bncheck.types import Array, Slope

    Shares: TypeAlias = list[float | None]

MIDPOINT = 0.5
"""Where the first slope is taken: one point that is exact for a quadratic."""

OUTER = (0.5 - 0.15**0.5, 0.5 + 0.15**0.5)
"""The other nodes of the Gauss-Legendre rule with three points on [0, 1]."""

WEIGHTS = (8 / 18, 5 / 18, 5 / 18)
"""Its weights, for the midpoint and the outer two."""

COMPLETE = 0.3
"""How far the sum of the shares may be from 1 with the midpoint alone."""

FLAT = 1e-3
"""Sum of all slopes' sizes at the midpoint below which a prediction reacts to no layer."""


def along(running: Statistics, batch: Statistics, eps: Sequence[float], alpha: float) -> Statistics:
    r"""Statistics under which every layer is distorted by a share α in [0, 1].

    The variance solves :math:`r_v + ε = (b_v + ε)/s_α^2`, the mean
    :math:`r_m = b_m - d_α\sqrt{r_v + ε}`; variances of at least -ε.
    """
    mean, var = [], []
    for (d, s), rm, bm, bv, e in zip(
        shift_and_scale(running, batch, eps), running.mean, batch.mean, batch.var, eps, strict=True
    ):
        if bm.shape != bv.shape:  # values without a variance: on the straight line
            mean.append(bm + alpha * (rm - bm))
            var.append(bv)
            continue
        deviation = np.sqrt(bv + e) / (1.0 + alpha * (s - 1.0))
        var.append(deviation**2 - e)
        mean.append(bm - alpha * d * deviation)
    return Statistics(tuple(mean), tuple(var))


def shares(slope_at: Callable[[float], Shares]) -> Shares:
    """Share of each layer in the difference: the integral of `slope_at` over [0, 1].

    By the midpoint rule; where the shares do not add up to about 1, the net bends too much for
    that, and two more points make it a Gauss-Legendre rule. Where the prediction reacts to no layer
    at the midpoint, it jumps somewhere on the way, as probabilities of 0 and 1 do, and no rule of
    three points integrates a jump.

    Parameters
    ----------
    slope_at
        Each layer's slope at α, as `slope` gives it.

    Returns
    -------
    list of float or None
        Negative where a layer makes up for others; None where unknown.
    """
    middle = slope_at(MIDPOINT)
    known = [share for share in middle if share is not None]
    is_flat = sum(map(abs, known)) < FLAT
    if len(known) < len(middle) or is_flat or abs(sum(known) - 1.0) <= COMPLETE:
        return middle
    points = [middle, *(slope_at(alpha) for alpha in OUTER)]
    return [
        None if None in values else sum(w * v for w, v in zip(WEIGHTS, values, strict=True))
        for values in zip(*points, strict=True)
    ]


def slope(
    running: Statistics,
    batch: Statistics,
    eps: Sequence[float],
    alpha: float,
    reactions: Sequence[Slope | None],
    total: float,
) -> Shares:
    r"""Each layer's part of the slope at α, in units of the whole difference.

    .. math:: \frac{1}{\|u\|^2} \sum_c \frac{s-1}{s_α} (g_γ - d_α\,g_β) + d\,g_β

    Parameters
    ----------
    reactions
        Per layer :math:`g_γ = γ·∂/∂γ` and :math:`g_β = γ·∂/∂β` of ⟨y, u⟩ under `along`, each of
        shape (channels,); None where they are unknown. Of another shape, as where a scale is
        shared by several statistics, they tell nothing.
    total
        :math:`\|u\|^2`, > 0.
    """
    found: Shares = []
    for (d, s), reaction in zip(shift_and_scale(running, batch, eps), reactions, strict=True):
        if reaction is None or reaction[0].shape != d.shape:
            found.append(None)
            continue
        by_scale, by_shift = reaction
        factor: Array = (s - 1.0) / (1.0 + alpha * (s - 1.0))
        change: Array = factor * (by_scale - alpha * d * by_shift) + d * by_shift
        found.append(float(change.sum()) / total)
    return found
