"""What BN101 and BN102 share: when statistics are at fault, and what cures them."""

from __future__ import annotations

from collections.abc import Sequence, Set

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.maths.running import SETTLED, updates_until
from pytest_bncheck.maths.verdict import (
    DEGRADED_DISTORTION,
    DEGRADED_GAP,
    DEGRADED_RETAINED,
)
from pytest_bncheck.rules import _words as words
from pytest_bncheck.types import Layer, Severity

COMMON_RATE = 0.1
"""PyTorch's default; in Keras, momentum 0.9."""

PATH_GAP = 0.01
"""Difference of the training and the eval path from which on it is the model's own code's."""

FORGETFUL = 0.5
"""Update rate from which on only the last batches are remembered."""


def severity(evidence: Evidence) -> Severity | None:
    """How grave a fault of the running statistics is, or None if they are not at fault.

    A degraded verdict is theirs only where converged statistics would do better.
    """
    verdict = evidence.bn_verdict
    if verdict == "broken":
        return "error"
    if verdict != "degraded" or evidence.judged is None:
        return None
    scores = evidence.scores(evidence.judged, evidence.judged_statistics)
    excess = scores.gap if scores.excess is None else scores.excess
    kept = evidence.retained(evidence.recalibrated or evidence.train)
    loses = scores.retained is not None and not scores.retained >= DEGRADED_RETAINED
    better = kept is None or kept >= DEGRADED_RETAINED
    # With dropout the converged statistics are one random draw, no yardstick for small gaps.
    slack = evidence.slack
    allowed = evidence.distortion_limit if evidence.stochastic else slack * DEGRADED_DISTORTION
    bent = not scores.distortion <= allowed
    apart = excess is not None and not excess <= slack * DEGRADED_GAP
    far = apart and not evidence.stochastic
    if not (far or bent or (loses and better)):
        return None
    # Another path in eval mode explains a gap that no layer's statistics do.
    elsewhere = evidence.path_gap is not None and evidence.path_gap > PATH_GAP
    return None if elsewhere and not evidence.distorted() else "warning"


def layers_at_fault(evidence: Evidence, taken: Set[str]) -> list[str] | None:
    """The distorted layers, worst first, that nothing else explains; None if all are explained."""
    layers = evidence.distorted(sorted(taken))
    return None if taken and not layers else layers


def initial_value_explains(evidence: Evidence) -> bool:
    """Whether the initial value is the cause: without it the prediction passes, or it dominates."""
    if not evidence.steps or evidence.initial_share == 0.0:
        return False
    if evidence.initial_share >= 0.5:
        return True
    if evidence.debiased is None or max(evidence.initial_weights, default=0.0) <= SETTLED:
        return False
    return evidence.judge(evidence.scores(evidence.debiased, evidence.start)) != "broken" and (
        not evidence.fails(evidence.debiased)
    )


def worst_layer(evidence: Evidence, layers: Sequence[str]) -> Layer:
    """The layer that a message quotes: the worst, or the first where none is over the limit."""
    named = {layer.name: layer for layer in evidence.layers}
    if layers:
        return named[layers[0]]
    return evidence.layers[int(evidence.judged_distortions.argmax())]


def longer_training(evidence: Evidence, layer: Layer) -> str | None:
    """The advice to train for longer, with the number of updates where it is known."""
    more = evidence.further_updates
    if more is not None:
        return (
            f"Train for at least {more} more updates, {evidence.steps + more} in all: with the "
            "weights as they are now, eval mode passes then."
        )
    until = updates_until(layer.update_rate, SETTLED)
    if until is None or layer.momentum is None:
        return None
    return (
        f"Train for more updates: at momentum {layer.momentum:g} the initial value falls to 1 % "
        f"only after {until}."
    )


def declaration(evidence: Evidence) -> str | None:
    """The advice to declare the updates of the real training, if they are not declared yet."""
    if evidence.settings.planned_updates is not None:
        return None
    more = evidence.further_updates
    many = "many more updates" if more is None else f"at least {evidence.steps + more} updates"
    return (
        f"If the real training makes {many}, declare how many, and the check judges the "
        "statistics as they will be then:\n@pytest.mark.bn_consistency(planned_updates=...)"
    )


def shorter_memory(evidence: Evidence, layer: Layer) -> str | None:
    """The advice of a larger update rate: the one that sufficed here, or the common one."""
    sufficient, rate = evidence.sufficient_rate, layer.update_rate
    if sufficient is not None:
        momentum = evidence.dialect.momentum_of(sufficient)
        code = evidence.dialect.set_momentum(layer.type, sufficient)
        only = " (it remembers the last batches only)" if sufficient >= FORGETFUL else ""
        steps = words.plural(evidence.steps, "step")
        return (
            f"Or shorten the memory: with momentum {momentum:g}{only} the {steps} of this check "
            f"would have sufficed:\n{code}"
        )
    if rate is None or not 0.0 < rate < COMMON_RATE:
        return None
    momentum = evidence.dialect.momentum_of(COMMON_RATE)
    until = updates_until(COMMON_RATE, SETTLED)
    return (
        f"Or shorten the memory: momentum {momentum:g} forgets the initial value in {until} "
        f"updates:\n{evidence.dialect.set_momentum(layer.type, COMMON_RATE)}"
    )


def recalibration(evidence: Evidence) -> str | None:
    """The advice to re-estimate the statistics, where that cures the prediction."""
    if evidence.recalibrated is None or evidence.fails(evidence.recalibrated):
        return None
    result = words.how_good(evidence.recalibrated)
    tried = f" (tried here: {result})" if result else ""
    return (
        f"Or re-estimate the statistics before predicting{tried}:\n{evidence.dialect.recalibrate}"
    )
