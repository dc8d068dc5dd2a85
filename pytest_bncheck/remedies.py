"""Remedies in numbers, from the one training that was made: how much longer, which momentum.

Momentum does not change what a network computes in training mode. So its weights would have been
the same with any other, and the statistics that another would have left follow from those that
were logged. Each candidate costs one pass in eval mode; their number does not depend on the
number of layers.
"""

from __future__ import annotations

from collections.abc import Callable

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.maths import running
from pytest_bncheck.types import Prediction, Statistics

Predict = Callable[[Statistics], Prediction]
"""Eval mode with the given running statistics."""

RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Update rates to propose from, longest memory first."""

TARGET = 0.8
"""Share of the allowed gap that the prediction has to reach: a margin, since weights will move."""

ABOVE_FLOOR = 1.2
"""Times the gap of converged statistics that is good enough where that is larger."""

PROBES = 6
"""Passes that the search for the number of updates may take."""

MOST = 1_000_000
"""Updates beyond which nobody trains."""


def further_updates(evidence: Evidence, predict: Predict) -> int | None:
    """Training steps until the prediction passes, with the weights as they are.

    With frozen weights every layer contracts towards its batch statistics at once (see
    `maths.running.project`), so the number of updates can be bisected: first on the distortion,
    which is arithmetic, then on the gap of the prediction, one pass each. Further training moves
    the weights too, so it is a lower bound.

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
    statistics = _Projection(evidence)

    def passes(steps: int) -> bool:
        gap = evidence.gap(predict(statistics.after(steps)), evidence.train)
        return gap is not None and gap <= target

    low = max(statistics.until(evidence.distortion_limit) - 1, 0)
    high = max(statistics.until(0.3 * evidence.distortion_limit), low + 1)
    left = PROBES
    while not passes(high):
        low, high, left = high, 2 * high, left - 1
        if left == 0 or high > MOST:
            return None
    while left > 1 and high - low > max(1, high // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
        left -= 1
    return high


def sufficient_rate(evidence: Evidence, predict: Predict) -> float | None:
    """The smallest update rate of `RATES` with which these steps would have sufficed, or None.

    What each step added to the logged statistics gives its batch statistics, and those give the
    running statistics under any other rate.
    """
    if not evidence.steps or len(evidence.history) != evidence.steps + 1:
        return None
    if not _all_update(evidence):
        return None
    batches, calls = _logged_batches(evidence), _calls_per_step(evidence)

    def passes(rate: float) -> bool:
        shares = [(1.0 - rate) ** count if count else 0.0 for count in calls]
        statistics = running.replay(evidence.start, batches, shares)
        prediction = predict(statistics)
        return evidence.judge(evidence.scores(prediction, statistics)) in ("healthy", "degraded")

    own = max((layer.update_rate or 0.0 for layer in evidence.layers), default=0.0)
    candidates = [rate for rate in RATES if rate > own]
    low, high = 0, len(candidates)  # the first that passes is in [low, high]
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(candidates[middle]) else (middle + 1, high)
    return candidates[low] if low < len(candidates) else None


class _Projection:
    """The running statistics after more training steps with the weights as they are."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._calls = _calls_per_step(evidence)

    def after(self, steps: int) -> Statistics:
        evidence = self._evidence
        shares = [
            running.remaining_share(layer.update_rate, done, round(calls * steps))
            for layer, done, calls in zip(
                evidence.layers, evidence.calls.training, self._calls, strict=True
            )
        ]
        return running.project(evidence.stop, evidence.noisy_batch, shares)

    def until(self, distortion: float) -> int:
        """The first number of steps after which no layer is distorted by more."""

        def settled(steps: int) -> bool:
            values = self._evidence.distortions(self.after(steps))
            return bool((values <= distortion).all())

        high = 1
        while not settled(high) and high < MOST:
            high *= 2
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if settled(middle) else (middle, high)
        return high


def _calls_per_step(evidence: Evidence) -> list[float]:
    return [count / max(evidence.steps, 1) for count in evidence.calls.training]


def _all_update(evidence: Evidence) -> bool:
    """Whether every layer that took part in training takes something in."""
    return all(
        layer.update_rate != 0.0
        for layer, active in zip(evidence.layers, evidence.active, strict=True)
        if active
    )


def _logged_batches(evidence: Evidence) -> list[Statistics]:
    """The batch statistics of every training step."""
    found = []
    calls = _calls_per_step(evidence)
    for step in range(evidence.steps):
        shares = []
        for layer, count in zip(evidence.layers, calls, strict=True):
            if count == 0:
                shares.append(0.0)  # keeps what it is
            elif layer.update_rate is None:
                shares.append(step / (step + 1))
            else:
                shares.append((1.0 - layer.update_rate) ** count)
        before, after = evidence.history[step], evidence.history[step + 1]
        found.append(running.recover_batch(before, after, shares))
    return found
