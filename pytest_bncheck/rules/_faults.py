"""Which faults of the running statistics there are, for the rules that tell them apart."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Literal, TypeAlias

import numpy as np

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.evidence.diagnosis import MOST_OF_GAP
from pytest_bncheck.evidence.passes import suffers_beside
from pytest_bncheck.evidence.past import CORROBORATED
from pytest_bncheck.maths import predictions
from pytest_bncheck.maths.running import SETTLED, bessel
from pytest_bncheck.maths.verdict import USUAL_DISTORTION, USUAL_GAP
from pytest_bncheck.rules import _words as words
from pytest_bncheck.types import Layer, Prediction, Severity

Inherited: TypeAlias = Literal["lost", "initial value", "lag", "stale"]

LONG_MEMORY = 0.05
"""Update rate below which statistics can trail weights that move."""

MUCH = 0.25
"""Weight of the initial value from which on it is the cause, whatever else adds to it."""

TELLING = 0.9
"""Share of the whole gap above which a counterfactual gap says nothing."""


def severity(evidence: Evidence, explained: Set[str]) -> Severity | None:
    """How grave a fault of the running statistics is, or None if they are not at fault.

    A lag that no decision feels is a note. Layers in `explained` have their finding; where they
    make most of the gap, the others did not break it.
    """
    verdict = evidence.bn_verdict
    if verdict == "broken":
        shares = zip(evidence.layers, evidence.diagnosis.attribution.shares, strict=False)
        theirs = sum(share or 0.0 for layer, share in shares if layer.name in explained)
        return "warning" if theirs >= MOST_OF_GAP else "error"
    if verdict is None or evidence.judged is None:
        return None
    # Another path in eval mode explains a gap that no layer's statistics do.
    if evidence.takes_another_path and not evidence.distorted():
        return None
    if not evidence.steps and all(part <= 0.0 for part in evidence.judged_misplacements):
        return None  # chance explains all of it
    if verdict == "degraded" or _predicts_worse_without(evidence):
        return "warning"
    return "note" if _is_noticed(evidence) else None


def _predicts_worse_without(evidence: Evidence) -> bool:
    """Whether layers lost their statistics, and the prediction is far off at a higher loss."""
    judged, train, gap = evidence.judged, evidence.train, evidence.judged_gap
    if evidence.steps or judged is None or train is None or gap is None:
        return False
    costs = judged.loss is not None and train.loss is not None and judged.loss > train.loss
    return costs and not gap <= evidence.gap_limit and bool(untouched(evidence))


def _is_noticed(evidence: Evidence) -> bool:
    """Whether the statistics are further off than usual, and converging would help."""
    gap = evidence.judged_gap
    if gap is None or not evidence.steps or not closes_the_gap(evidence):
        return False
    # With dropout the converged statistics are one random draw, no yardstick for small gaps.
    slack = evidence.slack
    bent = float(evidence.judged_distortions.max(initial=0.0)) > slack * USUAL_DISTORTION
    return bent or (gap > slack * USUAL_GAP and not evidence.training.stochastic)


def closes_the_gap(evidence: Evidence) -> bool:
    """Whether re-estimated statistics bring the prediction back: tried, not inferred.

    They leave at most half of the gap, or decide right where no gap can be had.
    """
    gap, floor = evidence.judged_gap, evidence.floor
    if evidence.recalibrated is None:
        return False
    if gap is None or floor is None:
        return not evidence.fails(evidence.recalibrated)
    return floor <= 0.5 * gap or (gap != gap and floor == floor)


def predicts_untrained(evidence: Evidence) -> bool:
    """Whether layers predict that the step did not train, and training mode itself does worse.

    By more than half of what the loss fell.
    """
    rehearsal = evidence.training.rehearsal
    loss = evidence.train.loss if evidence.train else None
    if rehearsal is None or not rehearsal.is_of_others or loss is None:
        return False
    return _loses_half(evidence, loss, evidence.training.losses[-1])


def trains_on_others(evidence: Evidence) -> tuple[float, float] | None:
    """The losses of a pass and of the step after it, where the pass does much worse; else None.

    By more than half of what the loss fell: what was learned is not what predicts.
    """
    rehearsal = evidence.training.rehearsal
    if rehearsal is None or rehearsal.losses is None or rehearsal.is_of_others:
        return None
    return rehearsal.losses if _loses_half(evidence, *rehearsal.losses) else None


def _loses_half(evidence: Evidence, loss: float, of_step: float) -> bool:
    first, last = evidence.training.losses[0], evidence.training.losses[-1]
    return predictions.achieved(first, last) and loss - of_step > 0.5 * (first - last)


def cost_of_other_path(evidence: Evidence) -> Prediction | None:
    """The prediction on the eval path that decides worse than the training path, or None.

    With the statistics that training converges to: they are made on the training path, and with
    those of the eval path itself the same code can do worse or better. Where eval mode is near
    enough to training mode for converged statistics not to be tried, those of the batch stand in.
    """
    path = evidence.passes.path
    if path is None or not evidence.takes_another_path or evidence.states_explain:
        return None
    converged = None if evidence.stream else evidence.recalibrated
    other = evidence.passes.first if converged is None else converged
    gap = evidence.compared.gap(other, path)
    far = gap is not None and not gap <= evidence.gap_limit
    if other is None or not far:
        return None
    samples = evidence.training.batch_size
    worse = suffers_beside(path, other, evidence.first_loss, samples) is not False
    return other if worse else None


def has_worse_weights(evidence: Evidence) -> bool:
    """Whether the end of the training replaced the weights by worse ones, which is why eval fails.

    Statistics that converge for the new weights do not bring the prediction back.
    """
    gap, recalibrated = evidence.judged_gap, evidence.recalibrated
    if evidence.training.ended is None or evidence.inconclusive or gap is None:
        return False
    far = not gap <= evidence.gap_limit and evidence.fails(evidence.judged)
    return far and (recalibrated is None or evidence.fails(recalibrated))


def are_batches_known(evidence: Evidence) -> bool:
    """Whether every layer's batch statistics could be read; lost updates leave them at 0."""
    pairs = zip(evidence.passes.batch.mean, evidence.passes.batch.var, strict=True)
    return all(mean.any() or var.any() for mean, var in pairs)


def is_untouched(evidence: Evidence, k: int) -> bool:
    """Whether a layer's statistics are at exactly 0 and 1."""
    mean, var = evidence.training.stop.mean[k], evidence.training.stop.var[k]
    if mean.any() or np.ptp(var) != 0:
        return False
    # The border converts a stored variance of 1 to (n-1)/n where n is known.
    n, value = evidence.passes.calls.values[k], float(var[0])
    return value == 1.0 or abs(value * bessel(n) - 1.0) < 1e-9


def inherited(evidence: Evidence) -> Inherited | None:
    """Why a model that was handed over trained is broken; None if its statistics are not why.

    A lag and a stale copy look alike. Only the update rate tells which is likelier: what remembers
    long trails behind, and what forgets within a few updates does not.
    """
    past = evidence.training.past
    if past is None or evidence.bn_verdict is None:
        return None
    if evidence.bn_verdict == "healthy" and not _predicts_worse_without(evidence):
        return None
    if untouched(evidence):
        return "lost"
    if past.explaining is not None:
        return "initial value"
    if evidence.recalibrated is None or evidence.fails(evidence.recalibrated):
        return None
    if evidence.fails(evidence.diagnosis.remixed):
        return None  # training mode itself is right on its mini-batches only
    rate = worst_layer(evidence, evidence.distorted()).update_rate
    return "lag" if rate is None or rate < LONG_MEMORY else "stale"


def untouched(evidence: Evidence, explained: Set[str] = frozenset()) -> list[str]:
    """The layers that use batch statistics and have running ones at exactly 0 and 1.

    A momentum that takes nothing in leaves them there, and no copy lost anything.
    """
    rows = zip(evidence.layers, evidence.passes.active, strict=True)
    return [
        layer.name
        for k, (layer, active) in enumerate(rows)
        if active
        and layer.update_rate != 0.0
        and layer.name not in explained
        and is_untouched(evidence, k)
    ]


def layers_at_fault(evidence: Evidence, explained: Set[str]) -> list[str] | None:
    """The distorted layers, worst first, that nothing else explains; None if all are explained."""
    layers = evidence.distorted(sorted(explained))
    return None if explained and not layers else layers


def initial_value_explains(evidence: Evidence, explained: Set[str]) -> bool:
    """Whether the initial value is the cause: without it the prediction passes, or it dominates."""
    if not evidence.steps:
        return inherited(evidence) == "initial value"
    if any(layer.states for layer in evidence.layers if layer.name not in explained):
        return _is_initial_in_states(evidence, explained)
    share = evidence.initial_share(explained)
    if share == 0.0:
        return False
    if share >= 0.5 or evidence.training.ended:  # what is left then is also of other weights
        return share >= 0.5
    training, debiased = evidence.training, evidence.diagnosis.debiased
    if debiased is None or training.largest_initial_weight(explained) <= SETTLED:
        return False
    typical = evidence.typical
    verdict = typical.judge(typical.scores(debiased, training.start))
    return verdict != "broken" and not typical.fails(debiased)


def _is_initial_in_states(evidence: Evidence, explained: Set[str]) -> bool:
    """The same of running state that is known by what it does, which has no distortion."""
    left = evidence.training.largest_initial_weight(explained)
    gap, debiased = evidence.judged_gap, evidence.gap_without_initial_value
    closes = gap is not None and debiased is not None and debiased <= 0.5 * gap
    return left >= MUCH or (left > SETTLED and closes)


def worst_layer(evidence: Evidence, layers: Sequence[str]) -> Layer:
    """The layer that a message quotes: the worst, or the first where none is over the limit."""
    named = {layer.name: layer for layer in evidence.layers}
    if layers:
        return named[layers[0]]
    return evidence.layers[int(evidence.judged_distortions.argmax())]


def with_initial_value(evidence: Evidence, layers: Sequence[str]) -> list[str]:
    """The layers whose initial value explains a model that was handed over; else all of them."""
    past = evidence.training.past
    group = None if past is None else past.explaining
    if group is None:
        return list(layers)
    names = {evidence.layers[k].name for k in group.members}
    return [name for name in layers if name in names] or sorted(names)


# in words ---------------------------------------------------------------------------------------


def unscored(evidence: Evidence) -> str | None:
    """That nothing tells what the statistics do to the decisions, where that is so."""
    if evidence.bn_verdict != "degraded" or evidence.suffers(evidence.judged) is not None:
        return None
    return (
        "Neither accuracy nor loss of eval mode is known, so nothing tells whether the decisions "
        "suffer, and this is a warning."
    )


def split_of_gap(evidence: Evidence) -> str | None:
    """What is left of the gap without the initial value, and with converged statistics."""
    whole = evidence.judged_gap
    gaps = (
        (evidence.gap_without_initial_value, "without the initial value"),
        (evidence.floor, "with converged statistics"),
    )
    parts = [
        f"{gap:.2f} {what}"
        for gap, what in gaps
        if whole and gap is not None and gap < TELLING * whole
    ]
    return f"The difference of {whole:.2f} would be {', '.join(parts)}." if parts else None


def whose_gap(evidence: Evidence) -> str | None:
    """Whether a few layers make the gap, or all of them together; None for three or fewer."""
    share, culprits = evidence.culprits_explain, evidence.diagnosis.attribution.culprits
    if share is None or len(evidence.layers) <= len(culprits):
        return None
    where = f"With only {words.listing(culprits)} put right"
    if share >= 0.5:
        return f"{where}, {words.percent(share)} of the difference would be gone."
    return f"{where}, most of the difference would be left: the cause is common to all layers."


def not_the_initial_value(evidence: Evidence) -> str:
    """Why the initial value is not named, of a model that was handed over trained."""
    past = evidence.training.past
    groups = past.groups if past else ()
    best = max(groups, key=lambda group: group.fit.share, default=None)
    if best is None or best.fit.share < CORROBORATED or best.fit.weight < SETTLED:
        return "It is not the initial value: taking it out brings them no nearer."
    weight, share = words.percent(best.fit.weight), words.percent(best.fit.share)
    return (
        f"Taking {weight} of an initial value out would bring them {share} nearer, which is too "
        "little to name it as the cause."
    )


def mixed_causes(evidence: Evidence) -> str | None:
    """The layers by cause, where it is not the same for all."""
    causes = evidence.causes
    if len(causes) < 2:
        return None
    return f"By layer: {', '.join(f'{cause} in {count}' for cause, count in causes.items())}."
