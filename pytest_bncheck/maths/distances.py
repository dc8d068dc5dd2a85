r"""How far running statistics are from others: what that does to a layer, and what chance does.

Notation as in `running`: r running statistics, b batch statistics, variances biased.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pytest_bncheck.maths.running import parts
from pytest_bncheck.types import Statistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_bncheck.types import Array

RARELY_MORE = 2.5
"""Times the squared distortion that chance makes on average, which it seldom exceeds."""

OF_A_SAMPLE = 4
"""The most values that one sample counts for: those of neighbouring positions are alike."""


def shift_and_scale(
    running: Statistics, batch: Statistics, eps: Sequence[float]
) -> list[tuple[Array, Array]]:
    r"""How eval mode distorts each layer's normalised output: ``x̂_eval = s·x̂_train + d``.

    :math:`s = \sqrt{(b_v+ε)/(r_v+ε)}`, :math:`d = (b_m-r_m)/\sqrt{r_v+ε}`: the r and d of Batch
    Renormalization (Ioffe 2017, equation 1). An impossible running variance (below -ε) gives NaN.

    Returns
    -------
    list of (d, s)
        One pair per layer, each of shape (channels,).
    """
    sizes = _channels(batch)
    d, s, _ = _flat_shift_and_scale(running, batch, eps, sizes)
    return list(zip(parts(d, sizes), parts(s, sizes), strict=True))


def distortion(
    running: Statistics,
    batch: Statistics,
    eps: Sequence[float],
    counts: Sequence[NDArray[np.bool_]] | None = None,
) -> Array:
    r"""Distortion D of each layer: root mean square of x̂_eval - x̂_train, in standard deviations.

    .. math:: D^2 = \frac1C \sum_c (s-1)^2 \frac{b_v}{b_v+ε} + d^2

    with s and d of `shift_and_scale`; exact, since :math:`E[\hat x]=0` and
    :math:`E[\hat x^2]=b_v/(b_v+ε)` in training. 0 for converged statistics, unbounded above, NaN
    where a running statistic is not a number or its variance is impossible.

    Parameters
    ----------
    counts
        Per layer, booleans of shape (channels,): the channels that count. A layer of which none
        counts has distortion 0.

    Returns
    -------
    array of shape (layers,)
    """
    # The channels of all layers at once: searches ask after many numbers of updates.
    sizes = _channels(batch)
    d, s, varying = _flat_shift_and_scale(running, batch, eps, sizes)
    with np.errstate(invalid="ignore", over="ignore"):
        squares = (s - 1.0) ** 2 * varying + d**2
    each = parts(squares, sizes)
    if counts is not None:
        each = [v[c] if v.size else v for v, c in zip(each, counts, strict=True)]
    return np.array([math.sqrt(v.mean()) if v.size else 0.0 for v in each])


def share_of_way(now: Array, start: Array, target: Array) -> float:
    """How far values still are from a target, as a share of the way there from their start.

    What never had a way to go is measured against the size of the target.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        left = float(np.linalg.norm(now - target))
        way = max(float(np.linalg.norm(start - target)), 1e-3 * float(np.linalg.norm(target)))
    return left / way if way > 0 else left


def noise(
    batches: Sequence[Statistics],
    batch: Statistics,
    eps: Sequence[float],
    rates: Sequence[float | None],
) -> Array:
    r"""Distortion of each layer that the scatter of the mini-batches alone leaves in its mean.

    .. math:: \frac1C \sum_c \frac{σ_b^2}{b_v + ε} \frac{α}{2-α} (1 - (1-α)^{2t})

    under the root, the variance of an exponential average of t independent values. Their own
    variance comes from second differences, :math:`σ_b^2 = \overline{(b_{i+2} - 2b_{i+1} +
    b_i)^2}/6`, in which the drift of moving weights cancels.

    Returns
    -------
    array of shape (layers,)
        0 for fewer than three batches.
    """
    found, t = np.zeros(len(batch)), len(batches)
    for k, rate in enumerate(rates if t >= 3 else ()):
        if batch.var[k].shape != batch.mean[k].shape:  # no standard deviation to measure it in
            continue
        means = np.stack([each.mean[k] for each in batches])
        scatter = (np.diff(means, n=2, axis=0) ** 2).mean(axis=0) / 6.0
        kept = 1.0 / t if rate is None else rate / (2.0 - rate) * (1.0 - (1.0 - rate) ** (2 * t))
        found[k] = math.sqrt(kept * float(np.mean(_ratio(scatter, batch.var[k] + eps[k]))))
    return found


def beyond_chance(distortions: Array, values: Sequence[int | None], samples: int | None) -> Array:
    r"""The part of each layer's distortion that the chance of a single batch does not explain.

    .. math:: \sqrt{\max(0, D^2 - \frac{3q}{2n})}

    The mean of n values misses that of all by 1/n of the variance, the standard deviation by half
    of that (see `chance_spread`); of 1700 draws that were tried, all but one in a hundred stay
    within q times that (`RARELY_MORE`). The values of one sample are alike, and count as four at
    most. NaN stays NaN.

    Parameters
    ----------
    distortions
        D of each layer, shape (layers,).
    values
        n, values per channel; None where a layer did not run.
    samples
        Samples that they come from; None if unknown.
    """
    counts = [min(n, OF_A_SAMPLE * samples) if n and samples else n for n in values]
    chance = np.array([RARELY_MORE * 1.5 / n if n else 0.0 for n in counts])
    with np.errstate(invalid="ignore"):
        beyond: Array = np.sqrt(np.maximum(distortions**2 - chance, 0.0))
    return beyond


def spread(batches: Statistics, eps: float) -> float:
    r"""How far the batches of one layer lie around their mean, in standard deviations, >= 0.

    Root mean square of the `distortion` that the mean of all batches' statistics, which is what
    running statistics converge to, leaves in each of them.

    Parameters
    ----------
    batches
        Statistics of one layer, one entry for each batch.
    eps
        The constant that the layer adds to its variance.
    """
    count = len(batches)
    mean, var = np.mean(batches.mean, axis=0), np.mean(batches.var, axis=0)
    middle = Statistics((mean,) * count, (var,) * count)
    return math.sqrt(float(np.mean(distortion(middle, batches, [eps] * count) ** 2)))


def chance_spread(samples: int, batches: int) -> float:
    r"""The `spread` that chance alone gives batches of one distribution.

    .. math:: \sqrt{\frac{3}{2n}\,\frac{k-1}{k}}

    for k batches of n independent normal values, to first order in 1/n: the mean of a batch
    varies by 1/n of its variance, its standard deviation by half of that. Values of one sample
    are not independent, so n is the number of samples.
    """
    return math.sqrt(1.5 / samples * (batches - 1) / batches)


def _flat_shift_and_scale(
    running: Statistics, batch: Statistics, eps: Sequence[float], sizes: Sequence[int]
) -> tuple[Array, Array, Array]:
    """Those of all channels, one layer after the other: d, s, and the share b_v/(b_v+ε)."""

    def flat(rows: Sequence[Array]) -> Array:
        # An empty one, since there may be no layers.
        return np.concatenate([np.empty(0), *(r for r, n in zip(rows, sizes, strict=True) if n)])

    rm, rv, bm, bv = map(flat, (running.mean, running.var, batch.mean, batch.var))
    e = np.repeat(eps, sizes)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        deviation = np.sqrt(rv + e)
        return (bm - rm) / deviation, np.sqrt(bv + e) / deviation, _ratio(bv, bv + e)


def _channels(batch: Statistics) -> list[int]:
    """Channels of each layer; 0 for values without a variance, which distort nothing."""
    rows = zip(batch.mean, batch.var, strict=True)
    return [mean.size if mean.shape == var.shape else 0 for mean, var in rows]


def _ratio(part: Array, whole: Array) -> Array:
    """part/whole with 0/0 = 0."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole != 0)
