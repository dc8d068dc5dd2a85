r"""Running statistics: what is left of their start, and what they converge to.

Notation: α update rate, t updates so far, :math:`r_0` initial and :math:`r_t` current running
statistic, b batch statistic, :math:`w_0` remaining weight of the initial value. Variances are
biased (divided by n).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pytest_bncheck.types import Statistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_bncheck.types import Array

SETTLED = 0.01
"""Weight of the initial value below which it is called forgotten."""

FORGETFUL = 0.5
"""Update rate from which on only the last batches are remembered."""


READABLE = 0.05
"""Largest rounding error of a batch variance read from a change of the running one, relative."""


def remaining_weight(rate: float | None, updates: int) -> float:
    """Weight of the initial value in a running statistic, in [0, 1].

    ``(1 - α)^t``, from unrolling r ← (1-α)·r + α·b (Ioffe & Szegedy 2015, section 3.1); a
    cumulative average (rate None) forgets it with the first update.

    Raises
    ------
    ValueError
        If `updates` is negative.
    """
    if updates < 0:
        raise ValueError(f"updates must be >= 0, got {updates}")
    if updates == 0:
        return 1.0
    return 0.0 if rate is None else float((1.0 - rate) ** updates)


def from_zero(left: Array, rate: float | None, updates: int) -> Array:
    """Batch statistic b, from what `updates` >= 1 updates towards it leave of a start at 0.

    ``r / (1 - (1-α)^t)``: the start keeps the `remaining_weight`, b has the rest.
    """
    return left / (1.0 - remaining_weight(rate, updates))


def updates_until(rate: float | None, weight: float) -> int | None:
    """Updates until the initial value's weight is at most `weight` (in (0, 1)), or None for never.

    ``⌈ln weight / ln(1-α)⌉``, the inverse of `remaining_weight`.

    Raises
    ------
    ValueError
        If `weight` is not in (0, 1).
    """
    if not 0.0 < weight < 1.0:
        raise ValueError(f"weight must be in (0, 1), got {weight}")
    if rate is None or rate >= 1.0:
        return 1
    if rate <= 0.0:
        return None
    return math.ceil(math.log(weight) / math.log1p(-rate))


def is_possible(statistics: Statistics) -> bool:
    """Whether every number is finite and no variance is negative."""
    numbers = all(bool(np.isfinite(each).all()) for each in (*statistics.mean, *statistics.var))
    return numbers and all(bool((each >= 0).all()) for each in statistics.var)


def bessel(n: int | None) -> float:
    """n/(n-1), from a biased variance to an unbiased one; 1 where n is unknown or < 2."""
    return n / (n - 1) if n is not None and n > 1 else 1.0


def debias(current: Statistics, start: Statistics, weights: Sequence[float]) -> Statistics:
    r"""Statistics with the initial value taken out: ``(r_t - w_0·r_0) / (1 - w_0)``.

    The zero-debiasing of Adam's moments (Kingma & Ba 2015, section 3) for a start other than 0. A
    layer that has forgotten nothing (w0 = 1) keeps its statistics; variances are clipped at 0.
    """

    def take_out(now: Array, first: Array, w: float) -> Array:
        return now if w >= 1.0 else (now - w * first) / (1.0 - w)

    return _per_layer(take_out, current, start, weights)


def project(current: Statistics, batch: Statistics, weights: Sequence[float]) -> Statistics:
    r"""Statistics after more updates towards the same batch statistics: ``b + w·(r - b)``.

    With frozen weights batch statistics do not depend on running ones, so every layer contracts
    at once, by ``w = (1-α)^j`` for j updates, or t/P for a cumulative average that goes from t to
    P updates.
    """
    return _per_layer(lambda now, b, w: b + w * (now - b), current, batch, weights)


def remaining_share(rate: float | None, done: float, further: float) -> float:
    """Weight in [0, 1] that the statistics after `done` updates keep after `further` more.

    Both are numbers >= 0; a mean number of updates per step need not be whole.
    """
    if further == 0:
        return 1.0
    if rate is None:
        return done / (done + further)
    return float((1.0 - rate) ** further)


def recover_batch(before: Statistics, after: Statistics, weights: Sequence[float]) -> Statistics:
    r"""Batch statistics read from a change of running ones: ``(r_1 - w·r_0) / (1-w)``.

    w is the share that `before` keeps. Rounding limits it: see `readable`. A layer that did not
    update (w = 1) gives `after`.
    """
    return debias(after, before, weights)


def replay(
    start: Statistics, batches: Sequence[Statistics], weights: Sequence[float]
) -> Statistics:
    """Where the recursion r ← w·r + (1-w)·b leads from `start` over all batches.

    w is the share that a layer keeps at each step.
    """

    def lead(first: Sequence[Array], rest: Iterable[Sequence[Array]]) -> tuple[Array, ...]:
        """All layers at once: a training has many steps, a model many layers."""
        sizes = [len(values) for values in first]
        kept = np.repeat(np.asarray(weights, float), sizes)
        current = np.concatenate(first)
        for each in rest:
            current = kept * current + (1.0 - kept) * np.concatenate(each)
        return tuple(parts(current, sizes))

    if not len(start):
        return start
    with np.errstate(invalid="ignore", over="ignore"):  # statistics may be poisoned already
        mean = lead(start.mean, (batch.mean for batch in batches))
        var = lead(start.var, (batch.var for batch in batches))
    return Statistics(mean, tuple(np.maximum(v, 0.0) for v in var))


def joined(known: Statistics, rows: Sequence[Array]) -> Statistics:
    """Statistics with further rows of values that have no variance; see `Statistics`."""
    return Statistics((*known.mean, *rows), (*known.var, *(np.empty(0) for _ in rows)))


def parts(row: Array, sizes: Sequence[int]) -> list[Array]:
    """The values of each state in a row of them."""
    return np.split(row, np.cumsum(sizes))[:-1]


def mean(some: Sequence[Statistics]) -> Statistics:
    """The mean of several batches' statistics: what a running average of them settles around."""
    layers = by_layer(some)
    return Statistics(
        tuple(np.mean(layer.mean, axis=0) for layer in layers),
        tuple(np.mean(layer.var, axis=0) for layer in layers),
    )


def by_layer(some: Sequence[Statistics]) -> list[Statistics]:
    """For each layer its statistics in all batches."""
    means = zip(*(each.mean for each in some), strict=True)
    variances = zip(*(each.var for each in some), strict=True)
    return [Statistics(*pair) for pair in zip(means, variances, strict=True)]


def loses_updates(rate: float, resolution: float) -> bool:
    """Whether updates by a quarter of a statistic are less than half the spacing of numbers.

    Such statistics stop on the way, at a quarter of their value or more from where they belong.
    """
    return rate < 2.0 * resolution


def rounds_away(
    rate: float, resolution: float, statistic: Array, batch: Array
) -> NDArray[np.bool_]:
    r"""Which statistics an update leaves as they are.

    Where :math:`α|b - r| < u·2^{⌊\log_2 |r|⌋}`, u the spacing of floating-point numbers around 1.
    Half of it would do for a single rounding; frameworks round the two products of the average too.
    """
    with np.errstate(divide="ignore"):
        spacing = resolution * 2.0 ** np.floor(np.log2(np.abs(statistic)))
    kept: NDArray[np.bool_] = rate * np.abs(batch - statistic) < spacing
    return kept


def readable(
    running: Statistics,
    batch: Statistics,
    eps: Sequence[float],
    rates: Sequence[float],
    resolution: Sequence[float],
) -> list[NDArray[np.bool_]]:
    r"""Channels whose batch variance survives rounding in `recover_batch`.

    Where :math:`u·\max(|r_v|, |r_m|·\sqrt{b_v+ε})/α ≤ 0.05·(b_v+ε)`, u the spacing of
    floating-point numbers around 1: rounding errors of size u·r are divided by α.

    Returns
    -------
    list of boolean arrays of shape (channels,)
    """
    masks = []
    for k, (rm, rv) in enumerate(zip(running.mean, running.var, strict=True)):
        total = np.maximum(batch.var[k], 0.0) + eps[k]
        error = resolution[k] / max(rates[k], 1e-12)
        masks.append(
            (error * np.abs(rv) <= READABLE * total)
            & (error * np.abs(rm) <= READABLE * np.sqrt(total))
        )
    return masks


def recover_calls(
    points: Sequence[tuple[Array, Array]], rates: Sequence[float], eps: float, resolution: float
) -> Statistics:
    """Batch statistics of one layer's calls, read from its statistics between them.

    See `recover_batch`. Where rounding hides a channel (see `readable`), the last running
    statistics stand in for all calls.

    Parameters
    ----------
    points
        Running mean and variance before the first call, between the calls, after the last.
    rates
        Update rate of each call, > 0.
    eps, resolution
        The constant added to the variance; the spacing of numbers around 1.

    Returns
    -------
    Statistics
        One entry for each call, variances of the same kind as in `points`.
    """
    before, after = (
        Statistics(*map(tuple, zip(*part, strict=True))) for part in (points[:-1], points[1:])
    )
    found = recover_batch(before, after, [1.0 - rate for rate in rates])
    count, (mean, var) = len(rates), points[-1]
    masks = readable(after, found, [eps] * count, rates, [resolution] * count)
    clear = np.all(masks, axis=0)
    return Statistics(
        tuple(np.where(clear, each, mean) for each in found.mean),
        tuple(np.where(clear, each, var) for each in found.var),
    )


def _per_layer(
    formula: Callable[[Array, Array, float], Array],
    left: Statistics,
    right: Statistics,
    weights: Sequence[float],
) -> Statistics:
    """`formula(left, right, weight)` for every mean and variance; variances are clipped at 0."""
    with np.errstate(invalid="ignore", over="ignore"):  # statistics may be poisoned already
        mean = [formula(*each) for each in zip(left.mean, right.mean, weights, strict=True)]
        var = [formula(*each) for each in zip(left.var, right.var, weights, strict=True)]
    return Statistics(tuple(mean), tuple(np.maximum(v, 0.0) for v in var))
