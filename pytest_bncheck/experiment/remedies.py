"""Remedies in numbers, from the one training that was made: how much longer, which momentum.

Momentum does not change what a network computes in training mode. So the weights would have been
the same with any other momentum, and the statistics that it would have left follow from those that
were logged. Each candidate costs one pass in eval mode, on the typical mini-batch where there are
several. The number of passes depends neither on the layers nor on the mini-batches.

Every `judgement` here is `Judgement.typical`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from pytest_bncheck.evidence import Judgement, Remedies, Training
from pytest_bncheck.maths import running
from pytest_bncheck.types import Prediction, Statistics

Predict = Callable[[Statistics], Prediction]
"""Eval mode with the given running statistics."""

RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4)
"""Update rates to propose from, longest memory first; with larger ones BN104 finds fault."""

TARGET = 0.8
"""Share of the allowed gap that the prediction has to reach: a margin, since weights will move."""

LATER_TARGET = 0.2
"""The same for a momentum for more steps than were made: nobody knows how far weights move then.

With 0.8 of it, 82 of 88 small nets that were retrained so had nothing to be found, with 0.2, 85.
"""

ABOVE_FLOOR = 1.2
"""Times the gap of converged statistics that is good enough where that is larger."""

PROBES = 7
"""Passes that the search for the number of updates may take."""

NEARBY = 1.35
"""Factor to the second number of updates, where the gap after the first is still a large one."""

CLOSE = 0.1
"""Width of the interval that the number of updates is looked for in, as a share of it."""

SILENT_PROBES = 4
"""Passes, of twice as many updates each, in which the prediction has to become silent."""

SILENT_CLOSE = 0.2
"""`CLOSE` for the number of updates from which nothing is to be found."""

STRAIGHT = 2.5
"""Gaps outside [target/STRAIGHT, target*STRAIGHT] are clamped before interpolating."""

CURVE = 3
"""Fewest points of the gap after further updates that a report shows."""

MOST_UPDATES = 1_000_000
"""Updates beyond which nobody trains."""

GROWTH = 8
"""Factor between numbers of updates that are tried until no layer is distorted."""

LATER = 4
"""Times the steps of the check that a second momentum is proposed for."""


@dataclass(frozen=True)
class Updates:
    """What the search for further updates found: how many, and the gaps on the way.

    Attributes
    ----------
    enough, silent
        Until the prediction passes, and until nothing at all is to be found.
    """

    enough: int | None
    gaps: Mapping[int, float | None]
    silent: int | None = None


@dataclass(frozen=True)
class Rate:
    """What the search for an update rate found: the smallest, and the gaps on the way."""

    enough: float | None
    gaps: Mapping[float, float | None]


def work_out(judgement: Judgement, predict: Predict) -> Remedies:
    """What would have been enough.

    Parameters
    ----------
    predict
        Eval mode with the given running statistics, on the typical mini-batch.
    """
    updates = further_updates(judgement, predict)
    more, gaps_after = updates.enough, dict(updates.gaps)
    if more is not None and more > 1 and 0 < len(gaps_after) < CURVE and not judgement.stream:
        gaps_after[more // 2], _ = _look_after(judgement, predict, more // 2)
    if not (judgement.training.is_logged and _all_update(judgement)):
        return Remedies(more, updates.silent, gaps_after=gaps_after)
    made = judgement.training.made
    if not made:  # then nobody knows how long a training of the same length is
        return Remedies(more, updates.silent, gaps_after=gaps_after)
    later = LATER * made
    target = _target(judgement, TARGET)
    short = [steps for steps, gap in gaps_after.items() if gap is None or not gap <= target]
    too_far = _worst(judgement, _after(judgement, max(short))) if short else math.inf
    now = sufficient_rate(judgement, predict, made, too_far=too_far)
    # More steps need no shorter memory.
    then = sufficient_rate(judgement, predict, later, now.enough or 1.0, too_far=too_far)
    rates = {made: now.enough, later: then.enough}
    return Remedies(more, updates.silent, rates, gaps_after, now.gaps)


def further_updates(judgement: Judgement, predict: Predict) -> Updates:
    """Training steps until the prediction passes, with the weights as they are.

    With frozen weights every layer contracts towards its batch statistics at once (see
    `maths.running.project`), so the statistics after any number of updates are arithmetic. The
    search starts where no layer is distorted any more and closes in on the number from which the
    gap of the prediction passes, one pass each. Further training moves the weights too, so it is
    a lower bound.

    Returns
    -------
    Updates
        `enough` is None where converged statistics do not pass either, or a layer never updates.
    """
    target = _target(judgement, TARGET)
    if not target <= judgement.gap_limit or not _all_update(judgement):
        return Updates(None, {})

    worst = cache(lambda steps: _worst(judgement, _after(judgement, steps)))
    until = cache(lambda distortion: _until(worst, distortion))
    compared = judgement.compared
    if compared.judged_gap is None:
        enough = until(judgement.distortion_limit)
        return Updates(enough if enough <= MOST_UPDATES else None, {})
    now = compared.gap(compared.eval, compared.train)
    tried: dict[int, float | None] = {}
    silent: dict[int, bool] = {}
    low, high = 0, None  # the first that passes is in (low, high]
    ask, left = until(judgement.distortion_limit), PROBES
    while left > 0 and (high is None or high - low > max(1, CLOSE * high)):
        gap, silent[ask] = _look_after(judgement, predict, ask)
        tried[ask] = gap
        left -= 1
        if gap is not None and gap <= target:
            high = ask
        else:
            low = ask
        if high is None:
            farthest = max(2 * low, until(0.3 * judgement.distortion_limit))
            first_probe = len(tried) == 1
            ask = _further(worst, now, low, gap, target, farthest) if first_probe else farthest
            if ask > MOST_UPDATES:
                return Updates(None, tried)
        else:
            ask = _between(low, high, {0: now, **tried}, target, above=high != ask)
    return Updates(high, tried, high and _silent_updates(judgement, predict, high, silent))


def _silent_updates(
    judgement: Judgement, predict: Predict, enough: int, known: Mapping[int, bool]
) -> int | None:
    """Training steps until the verdict is healthy; at least those with which it passes.

    None where twice as many a few times over are not enough.

    Parameters
    ----------
    known
        After which numbers of steps it is, as far as they were looked at.
    """

    def is_silent(steps: int) -> bool:
        return known[steps] if steps in known else _look_after(judgement, predict, steps)[1]

    low, high = 0, enough
    for _ in range(SILENT_PROBES):
        if is_silent(high):
            break
        low = high
        high = min([2 * low, *(n for n, silent in known.items() if silent and n > low)])
    else:
        return None
    while low and high - low > max(1, SILENT_CLOSE * high):
        middle = (low + high) // 2
        low, high = (low, middle) if is_silent(middle) else (middle, high)
    return high


def _target(judgement: Judgement, share: float) -> float:
    """The gap that a prediction has to reach: a share of the one allowed."""
    target = share * judgement.gap_limit
    return target if judgement.floor is None else max(target, ABOVE_FLOOR * judgement.floor)


def _further(
    worst: Callable[[int], float],
    first: float | None,
    low: int,
    gap: float | None,
    target: float,
    farthest: int,
) -> int:
    """Where the gap should reach the target, after the first probe did not.

    The gap's logarithm falls faster than so far, and in the end as fast as that of the distortion.
    The mean of both slopes is a guess. A gap that is still large tells nothing of the kind: in a
    deep net it falls at once, and mostly soon.

    Parameters
    ----------
    worst
        The distortion of the most distorted layer after a number of further updates.
    first, low, gap
        The gap without further updates; the updates of the first probe, and the gap after them.
    """
    if not first or not gap or not target < gap or not math.isfinite(first):
        return farthest
    if gap > 0.5 * first:
        return min(math.ceil(NEARBY * low), farthest)
    so_far = low * math.log(gap / target) / math.log(first / gap)
    in_the_end = _until(worst, worst(low) * target / gap) - low
    more = 2.0 * so_far * in_the_end / (so_far + in_the_end)
    return min(math.ceil((low + more) * (1.0 + CLOSE / 3.0)), farthest)


def _between(
    low: int, high: int, gaps: Mapping[int, float | None], target: float, *, above: bool
) -> int:
    """Where to look next: just above or below where the gap should reach the target.

    It falls about exponentially, so its logarithm is taken to be straight between the two; but
    only near the target, since large gaps no longer grow, and small ones tell little.
    """
    worse = min(STRAIGHT * target, gaps[low] or math.inf)  # in this order, NaN is far off
    better = max(target / STRAIGHT, gaps[high] or 0.0)
    share = math.log(worse / target) / math.log(worse / better) if better > 0.0 else 0.5
    crossing = low + share * (high - low)
    margin = CLOSE / 3.0 * crossing
    ask = math.ceil(crossing + margin) if above else math.floor(crossing - margin)
    return min(max(ask, low + 1), high - 1)


def sufficient_rate(
    judgement: Judgement,
    predict: Predict,
    steps: int,
    largest: float = 1.0,
    *,
    too_far: float = math.inf,
) -> Rate:
    """The smallest update rate of `RATES` with which `steps` training steps suffice.

    What each step added to the logged statistics gives its batch statistics, and those give the
    running statistics under any other rate, which all layers with a smaller one get. Steps beyond
    those that were made add the last batch statistics, as if the weights stayed as they are; but
    weights move on for a while, so only the last third of them counts.

    Parameters
    ----------
    steps
        Training steps in all, at least those that were made.
    largest
        The largest rate to try.
    too_far
        A distortion with which the prediction did not pass. Where the largest rate leaves more, it
        is tried first: mostly none suffices then.

    Returns
    -------
    Rate
        `enough` is None where no rate suffices. The gaps hold that of `enough` in any case.
    """
    training, batch = judgement.training, judgement.passes.noisy_batch
    target = _target(judgement, LATER_TARGET)
    calls, more = training.calls_per_step, _counted(training, steps)
    gaps: dict[float, float | None] = {}

    def replayed(rate: float) -> Statistics:
        rates = [max(rate, layer.update_rate or 0.0) for layer in training.layers]
        shares = [running.remaining_share(r, 0, c) for r, c in zip(rates, calls, strict=True)]
        made = running.replay(training.start, training.logged_batches, shares)
        return running.project(made, batch, [share**more for share in shares])

    def is_healthy(statistics: Statistics, rate: float) -> bool:
        scores = judgement.scores(predict(statistics), statistics)
        gaps[rate] = scores.gap
        return judgement.judge(scores) == "healthy"

    def passes(rate: float) -> bool:
        healthy, gap = is_healthy(replayed(rate), rate), gaps[rate]
        return healthy and (steps == training.made or gap is None or gap <= target)

    if len({layer.update_rate is None for layer in training.layers}) > 1:
        return Rate(None, gaps)  # what replaces a cumulative average need not suit the others
    # Where no single layer is, depth amplifies what all of them do.
    at_fault = set(judgement.distorted_layers) or {layer.name for layer in training.layers}
    now = min(layer.update_rate or 0.0 for layer in training.layers if layer.name in at_fault)
    candidates = [rate for rate in RATES if now < rate <= largest]
    low, high = 0, len(candidates)  # the first that passes is in [low, high]
    known = bool(candidates) and math.isfinite(too_far)
    if known and _worst(judgement, replayed(candidates[-1])) > too_far:
        low, high = (0, high - 1) if passes(candidates[-1]) else (high, high)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(candidates[middle]) else (middle + 1, high)
    if low == len(candidates):
        return Rate(None, gaps)
    chosen = candidates[low]
    if steps == training.made and chosen not in gaps:  # the report shows it
        is_healthy(replayed(chosen), chosen)
    return Rate(chosen, gaps)


def _counted(training: Training, steps: int) -> int:
    """How many steps count whose batch statistics are not logged, of `steps` in all.

    They are taken for those of the weights as they are. Of a training before the check only the
    later half had weights that were nearly these.
    """
    if training.past is not None:
        return max(steps // 2, 1)
    return (steps - training.steps) // 3


def _look_after(judgement: Judgement, predict: Predict, steps: int) -> tuple[float | None, bool]:
    """After more training steps with the weights as they are: the gap, and whether all is well."""
    statistics = _after(judgement, steps)
    scores = judgement.scores(predict(statistics), statistics)
    return scores.gap, judgement.judge(scores) == "healthy"


def _after(judgement: Judgement, steps: int) -> Statistics:
    """The running statistics after more training steps with the weights as they are."""
    training = judgement.training
    return running.project(training.stop, judgement.passes.noisy_batch, training.kept(steps))


def _worst(judgement: Judgement, statistics: Statistics) -> float:
    """The distortion of the most distorted layer."""
    return float(np.max(judgement.misplacements(statistics)))


def _until(worst: Callable[[int], float], distortion: float) -> int:
    """The first number of steps after which no layer is distorted by more."""
    low, high = 0, 1
    while not worst(high) <= distortion and high < MOST_UPDATES:
        low, high = high, GROWTH * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if worst(middle) <= distortion else (middle, high)
    return high


def _all_update(judgement: Judgement) -> bool:
    """Whether every layer that took part in training takes something in."""
    return all(
        layer.update_rate != 0.0
        for layer, active in zip(judgement.layers, judgement.passes.active, strict=True)
        if active
    )
