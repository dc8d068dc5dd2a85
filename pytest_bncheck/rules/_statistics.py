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
    allowed = evidence.distortion_limit if evidence.stochastic else DEGRADED_DISTORTION
    bent = not scores.distortion <= allowed
    far = excess is not None and not excess <= DEGRADED_GAP and not evidence.stochastic
    return "warning" if far or bent or (loses and better) else None


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


def recalibration(evidence: Evidence) -> str | None:
    """The advice to re-estimate the statistics, where that cures the prediction."""
    if evidence.recalibrated is None or evidence.fails(evidence.recalibrated):
        return None
    result = words.how_good(evidence.recalibrated)
    tried = f" (tried here: {result})" if result else ""
    return (
        f"Or re-estimate the statistics before predicting{tried}:\n{evidence.dialect.recalibrate}"
    )


def shorter_memory(evidence: Evidence, layer: Layer) -> str | None:
    """The advice of a larger update rate, where the layer's is below the common one."""
    rate = layer.update_rate
    if rate is None or not 0.0 < rate < COMMON_RATE:
        return None
    momentum = evidence.dialect.momentum_of(COMMON_RATE)
    until = updates_until(COMMON_RATE, SETTLED)
    return (
        f"Or shorten the memory: momentum {momentum:g} forgets the initial value in {until} "
        f"updates:\n{evidence.dialect.set_momentum(layer.type, COMMON_RATE)}"
    )
