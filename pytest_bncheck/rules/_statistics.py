"""What BN101 and BN102 share: when statistics are at fault, and what cures them."""

from __future__ import annotations

from collections.abc import Sequence, Set

import numpy as np

from pytest_bncheck.evidence import MOST, Evidence
from pytest_bncheck.maths import predictions
from pytest_bncheck.maths.running import FORGETFUL, SETTLED, bessel, updates_until
from pytest_bncheck.maths.verdict import (
    DEGRADED_DISTORTION,
    DEGRADED_GAP,
    DEGRADED_RETAINED,
    Scores,
    decisions_suffer,
)
from pytest_bncheck.rules import _words as words
from pytest_bncheck.types import Layer, Prediction, Severity

COMMON_RATE = 0.1
"""PyTorch's default; in Keras, momentum 0.9."""

TELLING = 0.9
"""Share of the whole gap above which a counterfactual gap says nothing."""


def severity(evidence: Evidence, taken: Set[str]) -> Severity | None:
    """How grave a fault of the running statistics is, or None if they are not at fault.

    A degraded verdict is theirs only where converged statistics would do better. Layers in `taken`
    have their finding; where they make most of the gap, the others are not what broke it.
    """
    verdict = evidence.bn_verdict
    if verdict == "broken":
        shares = zip(evidence.layers, evidence.attribution, strict=False)
        explained = sum(share or 0.0 for layer, share in shares if layer.name in taken)
        return "warning" if explained >= MOST else "error"
    if verdict != "degraded" or evidence.judged is None:
        return None
    scores = evidence.scores(evidence.judged, evidence.judged_statistics)
    excess = scores.gap if scores.excess is None else scores.excess
    kept = evidence.retained(evidence.recalibrated or evidence.settled or evidence.train)
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
    return None if evidence.takes_another_path and not evidence.distorted() else "warning"


def cost_of_other_path(evidence: Evidence) -> Prediction | None:
    """The prediction on the eval path that decides worse than the training path, or None.

    With the statistics that training converges to: they are made on the training path, and with
    those of the eval path itself the same code can do worse or better. The batch's own stand for
    them where eval mode is near enough to these, so that the others were not looked for.
    """
    path = evidence.path
    if path is None or not evidence.takes_another_path:
        return None
    converged = None if evidence.stream else evidence.recalibrated
    other = evidence.first if converged is None else converged
    gap = evidence.gap(other, path)
    far = gap is not None and not gap <= evidence.gap_limit
    return other if other is not None and far and _suffers(evidence, path, other) else None


def _suffers(evidence: Evidence, path: Prediction, other: Prediction) -> bool:
    retained = predictions.retained(evidence.first_loss, path.constant_loss, path.loss, other.loss)
    scores = Scores(
        gap=None,
        distortion=0.0,
        retained=retained,
        accuracy=other.accuracy,
        finite=predictions.finite(other.outputs),
    )
    return decisions_suffer(scores, path.accuracy) is not False


def are_batches_known(evidence: Evidence) -> bool:
    """Whether every layer's batch statistics are; one that loses its updates does not tell them."""
    pairs = zip(evidence.batch.mean, evidence.batch.var, strict=True)
    return all(mean.any() or var.any() for mean, var in pairs)


def is_untouched(evidence: Evidence, k: int) -> bool:
    """Whether a layer's statistics are at exactly 0 and 1."""
    mean, var = evidence.stop.mean[k], evidence.stop.var[k]
    if mean.any() or np.ptp(var) != 0:
        return False
    # The border converts a stored variance of 1 to (n-1)/n where n is known.
    n, value = evidence.calls_in_pass.values[k], float(var[0])
    return value == 1.0 or abs(value * bessel(n) - 1.0) < 1e-9


def is_stale_copy(evidence: Evidence) -> bool:
    """Whether a model that was handed over trained has statistics that do not belong to it."""
    fresh = all(
        is_untouched(evidence, k) and not layer.trained for k, layer in enumerate(evidence.layers)
    )
    cured = evidence.recalibrated is not None and not evidence.fails(evidence.recalibrated)
    return not evidence.steps and not fresh and evidence.bn_verdict == "broken" and cured


def layers_at_fault(evidence: Evidence, taken: Set[str]) -> list[str] | None:
    """The distorted layers, worst first, that nothing else explains; None if all are explained."""
    layers = evidence.distorted(sorted(taken))
    return None if taken and not layers else layers


def initial_value_explains(evidence: Evidence, taken: Set[str]) -> bool:
    """Whether the initial value is the cause: without it the prediction passes, or it dominates."""
    share = evidence.initial_share(taken)
    if not evidence.steps or share == 0.0:
        return False
    if share >= 0.5:
        return True
    if evidence.debiased is None or evidence.largest_initial_weight(taken) <= SETTLED:
        return False
    tried = evidence.tried
    return tried.judge(tried.scores(evidence.debiased, evidence.start)) != "broken" and (
        not tried.fails(evidence.debiased)
    )


def worst_layer(evidence: Evidence, layers: Sequence[str]) -> Layer:
    """The layer that a message quotes: the worst, or the first where none is over the limit."""
    named = {layer.name: layer for layer in evidence.layers}
    if layers:
        return named[layers[0]]
    return evidence.layers[int(evidence.judged_distortions.argmax())]


def split_of_gap(evidence: Evidence) -> str | None:
    """What is left of the gap without the initial value, and with converged statistics."""
    whole = evidence.gap(evidence.judged, evidence.train)
    gaps = (
        (evidence.gap_without_initial_value, "without the initial value"),
        (evidence.floor, "with converged statistics"),
    )
    told = [
        f"{gap:.2f} {what}"
        for gap, what in gaps
        if whole and gap is not None and gap < TELLING * whole
    ]
    return f"The difference of {whole:.2f} would be {', '.join(told)}." if told else None


def whose_gap(evidence: Evidence) -> str | None:
    """Whether a few layers make the gap, or all of them together; None for three or fewer."""
    explained, culprits = evidence.culprits_explain, evidence.culprits
    if explained is None or len(evidence.layers) <= len(culprits):
        return None
    where = f"With only {words.listing(culprits)} put right"
    if explained >= 0.5:
        return f"{where}, {words.percent(explained)} of the difference would be gone."
    return f"{where}, most of the difference would be left: the cause is common to all layers."


def mixed_causes(evidence: Evidence) -> str | None:
    """The layers by cause, where it is not the same for all."""
    causes = evidence.causes
    if len(causes) < 2:
        return None
    return f"By layer: {', '.join(f'{cause} in {count}' for cause, count in causes.items())}."


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
    rate = layer.update_rate
    enough = {steps: r for steps, r in evidence.sufficient_rates.items() if r is not None}
    if enough:
        one_for_all = len(set(enough.values())) == 1
        told = dict([next(iter(enough.items()))]) if one_for_all else enough
        said = [_enough(evidence, *pair) for pair in told.items()]
        if evidence.steps not in enough:
            made = words.plural(evidence.steps, "step")
            said.insert(0, f"no momentum would have sufficed for the {made} of this check")
        code = evidence.dialect.set_momentum(layer.type, next(iter(enough.values())))
        return f"Or shorten the memory: {', '.join(said)}.\n{code}"
    if rate is None or not 0.0 < rate < COMMON_RATE:
        return None
    momentum = evidence.dialect.momentum_of(COMMON_RATE)
    until = updates_until(COMMON_RATE, SETTLED)
    return (
        f"Or shorten the memory: momentum {momentum:g} forgets the initial value in {until} "
        f"updates:\n{evidence.dialect.set_momentum(layer.type, COMMON_RATE)}"
    )


def _enough(evidence: Evidence, steps: int, rate: float) -> str:
    """``momentum 0.8 should suffice for 20 steps``."""
    only = " (which remembers the last batches only)" if rate >= FORGETFUL else ""
    momentum = f"momentum {evidence.dialect.momentum_of(rate):g}{only}"
    if steps > evidence.steps:
        return f"{momentum} should suffice for {words.plural(steps, 'step')}"
    return f"{momentum} would have sufficed for the {words.plural(steps, 'step')} of this check"


def recalibration(evidence: Evidence) -> str | None:
    """The advice to re-estimate the statistics, where that cures the prediction."""
    if evidence.recalibrated is None or evidence.fails(evidence.recalibrated):
        return None
    result = words.how_good(evidence.recalibrated)
    tried = f" (tried here: {result})" if result else ""
    return (
        f"Or re-estimate the statistics before predicting{tried}:\n{evidence.dialect.recalibrate}"
    )
