"""Remedies in numbers, from the one training that was made: how much longer, which momentum.

Momentum does not change what a network computes in training mode. So its weights would have been
the same with any other, and the statistics that another would have left follow from those that
were logged. Each candidate costs one pass in eval mode, of several mini-batches on a typical one;
their number depends neither on the layers nor on the mini-batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.maths import running
from pytest_bncheck.maths.verdict import Scores
from pytest_bncheck.types import Prediction, Statistics

Predict = Callable[[Statistics], Prediction]
"""Eval mode with the given running statistics."""

RATES = (
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.3,
    0.4,
    0.5,
    0.6,
    0.7,
    0.8,
    0.9,
    0.95,
    0.99,
)
"""Update rates to propose from, longest memory first."""

TARGET = 0.8
"""Share of the allowed gap that the prediction has to reach: a margin, since weights will move."""

ABOVE_FLOOR = 1.2
"""Times the gap of converged statistics that is good enough where that is larger."""

PROBES = 6
"""Passes that the search for the number of updates may take."""

CLOSE = 0.1
"""Width of the interval that the number of updates is looked for in, as a share of it."""

STRAIGHT = 2.5
"""Times the wanted gap, and its inverse, beyond which the search does not trust a gap's size."""

CURVE = 3
"""Points of the gap after further updates that a report shows at least."""

MOST = 1_000_000
"""Updates beyond which nobody trains."""

LATER = 4
"""Times the steps of the check that a second momentum is proposed for."""


def work_out(evidence: Evidence, predict: Predict) -> None:
    """Fill in what `evidence` knows of remedies.

    Parameters
    ----------
    predict
        Eval mode with the given running statistics, on what `Evidence.tried` is about.
    """
    tried = evidence.tried
    evidence.further_updates = more = further_updates(tried, predict)
    short = len(evidence.probed_updates) < CURVE and not evidence.stream
    if more is not None and more > 1 and short:
        _gap_after(tried, predict, more // 2)
    if _can_replay(evidence):
        for steps in (evidence.steps, LATER * evidence.steps):
            evidence.sufficient_rates[steps] = sufficient_rate(tried, predict, steps)


def further_updates(evidence: Evidence, predict: Predict) -> int | None:
    """Training steps until the prediction passes, with the weights as they are.

    With frozen weights every layer contracts towards its batch statistics at once (see
    `maths.running.project`), so the statistics after any number of updates are arithmetic. The
    search starts where no layer is distorted any more and closes in on the number from which the
    gap of the prediction passes, one pass each. Further training moves the weights too, so it is
    a lower bound.

    Returns
    -------
    int or None
        None where converged statistics do not pass either, or a layer never updates.
    """
    target = TARGET * evidence.gap_limit
    if evidence.floor is not None:
        target = max(target, ABOVE_FLOOR * evidence.floor)
    if not target <= evidence.gap_limit or not _all_update(evidence):
        return None

    until = cache(lambda distortion: _until(evidence, distortion))
    gaps = {0: evidence.gap(evidence.eval, evidence.train)}
    low, high = 0, None  # the first that passes is in (low, high]
    ask, left = until(evidence.distortion_limit), PROBES
    while left > 0 and (high is None or high - low > max(1, CLOSE * high)):
        gaps[ask] = gap = _gap_after(evidence, predict, ask)
        left -= 1
        if gap is not None and gap <= target:
            high = ask
        else:
            low = ask
        if high is None:
            farthest = max(2 * low, until(0.3 * evidence.distortion_limit))
            ask = _beyond(evidence, gaps, target, farthest) if len(gaps) == 2 else farthest
            if ask > MOST:
                return None
        else:
            ask = _between(low, high, gaps, target, above=high != ask)
    return high


def _beyond(
    evidence: Evidence, gaps: Mapping[int, float | None], target: float, farthest: int
) -> int:
    """Where the gap should reach the target, after the first probe did not.

    Its logarithm falls faster than so far, and comes to fall as that of the distortion does; the
    mean of both slopes is a guess.
    """
    (_, first), (low, gap) = gaps.items()
    if not first or not gap or not target < gap < first < math.inf:
        return farthest
    so_far = low * math.log(gap / target) / math.log(first / gap)
    distortion = float(evidence.distortions(_after(evidence, low)).max())
    in_the_end = _until(evidence, distortion * target / gap) - low
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


def sufficient_rate(evidence: Evidence, predict: Predict, steps: int) -> float | None:
    """The smallest update rate of `RATES` with which so many steps suffice, or None.

    What each step added to the logged statistics gives its batch statistics, and those give the
    running statistics under any other rate, which all layers with a smaller one get. Steps beyond
    those that were made add the last batch statistics, as if the weights stayed as they are; but
    weights move on for a while, so only the last third of them counts.

    Parameters
    ----------
    steps
        Training steps in all, at least those that were made.
    """
    batches, calls = evidence.logged_batches, evidence.calls_per_step
    more = (steps - evidence.steps) // 3

    def replayed(rate: float) -> Statistics:
        rates = [max(rate, layer.update_rate or 0.0) for layer in evidence.layers]
        shares = [(1.0 - r) ** c if c else 0.0 for r, c in zip(rates, calls, strict=True)]
        made = running.replay(evidence.start, batches, shares)
        then = [share**more for share in shares] if more else [1.0] * len(shares)
        return running.project(made, evidence.noisy_batch, then)

    def scores(statistics: Statistics, rate: float) -> Scores:
        found = evidence.scores(predict(statistics), statistics)
        if steps == evidence.steps:
            evidence.probed_rates[rate] = found.gap
        return found

    def passes(rate: float) -> bool:
        statistics = replayed(rate)
        if (evidence.distortions(statistics) <= evidence.distortion_limit).all():
            return True  # whatever the prediction, so that no pass is needed
        return evidence.judge(scores(statistics, rate)) in ("healthy", "degraded")

    at_fault = set(evidence.distorted())
    own = min(layer.update_rate or 0.0 for layer in evidence.layers if layer.name in at_fault)
    fewer = evidence.sufficient_rates.get(evidence.steps)  # more steps need no shorter memory
    candidates = [rate for rate in RATES if own < rate <= (fewer or 1.0)]
    low, high = 0, len(candidates)  # the first that passes is in [low, high]
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(candidates[middle]) else (middle + 1, high)
    if low == len(candidates):
        return None
    chosen = candidates[low]
    if steps == evidence.steps and chosen not in evidence.probed_rates:  # to be shown
        scores(replayed(chosen), chosen)
    return chosen


def _gap_after(evidence: Evidence, predict: Predict, steps: int) -> float | None:
    """The gap after more training steps with the weights as they are; the report shows it too."""
    gap = evidence.gap(predict(_after(evidence, steps)), evidence.train)
    evidence.probed_updates[steps] = gap
    return gap


def _after(evidence: Evidence, steps: int) -> Statistics:
    """The running statistics after more training steps with the weights as they are."""
    return running.project(evidence.stop, evidence.noisy_batch, evidence.kept(steps))


def _until(evidence: Evidence, distortion: float) -> int:
    """The first number of steps after which no layer is distorted by more."""

    def settled(steps: int) -> bool:
        return bool((evidence.distortions(_after(evidence, steps)) <= distortion).all())

    high = 1
    while not settled(high) and high < MOST:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if settled(middle) else (middle, high)
    return high


def _can_replay(evidence: Evidence) -> bool:
    return len(evidence.history) == evidence.steps + 1 and _all_update(evidence)


def _all_update(evidence: Evidence) -> bool:
    """Whether every layer that took part in training takes something in."""
    return all(
        layer.update_rate != 0.0
        for layer, active in zip(evidence.layers, evidence.active, strict=True)
        if active
    )
