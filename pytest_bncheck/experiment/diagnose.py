"""What is tried out after the measurement, because something is off."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_bncheck.adapters.base import Adapter, Sampling, Watching
from pytest_bncheck.evidence import (
    Attribution,
    Comparison,
    Diagnosis,
    Judgement,
    Passes,
    Remedies,
)
from pytest_bncheck.experiment import culprits, remedies
from pytest_bncheck.experiment.measure import agree
from pytest_bncheck.experiment.panel import Panel, joined
from pytest_bncheck.maths import distances, running
from pytest_bncheck.types import Parting, Prediction, Statistics, Trace

FORGOTTEN = 1e-3
"""Skip the debiased pass if removing the initial value moves every layer by less than this."""


def diagnose(adapter: Adapter, panel: Panel, measured: Judgement) -> tuple[Comparison, Diagnosis]:
    """More passes, only if something is off: converged, replaced and debiased statistics.

    Parameters
    ----------
    measured
        The judgement without converged statistics.
    """
    passes = measured.passes
    if passes.is_random:
        return measured.compared, Diagnosis()
    if not measured.layers:
        return measured.compared, Diagnosis(parting=_part(adapter, measured, None))
    typical = panel.only(measured.compared.typical_index)
    remixed = _remixed(adapter, panel, measured)
    after_each = _after_each(typical, measured)
    replaced, debiased = None, None
    attribution, cure = Attribution(), Remedies()
    judgement = measured
    if measured.cured_by_planning:
        with typical.trying() as predict:
            updates = remedies.further_updates(measured.typical, predict)
        cure = Remedies(updates.enough, updates.silent, gaps_after=updates.gaps)
    if measured.looks_off or _may_explain_path(measured):
        recalibrated = panel.predict_with(passes.noisy_batch)
        judgement = dataclasses.replace(measured, compared=passes.compared(recalibrated))
        replaced = _replaced(panel, passes, recalibrated, adapter.dialect.unbiased)
        if judgement.cured_by_converging:
            attribution = _attribute(adapter, typical, judgement)
    if judgement.measured_verdict in ("broken", "degraded"):
        debiased = _without_initial_value(typical, judgement)
    if judgement.conclusive_verdict == "broken":
        with typical.trying() as predict:
            cure = remedies.work_out(judgement.typical, predict)
    draws = _draws(adapter, measured)
    parting = _part(adapter, judgement, replaced)
    return judgement.compared, Diagnosis(
        replaced, debiased, remixed, after_each, draws, parting, attribution, cure
    )


def _part(adapter: Adapter, judged: Judgement, replaced: Prediction | None) -> Parting | None:
    """Where the model's path in eval mode parts from that of training mode, if it does.

    Not in one of several processes, whose passes in training mode wait for the others, and not
    where random numbers are the first difference.
    """
    if judged.training.replicas or judged.passes.noisy_path:
        return None
    left = judged.compared.gap(replaced, judged.train)
    survives = left is not None and not left <= judged.passes.allowed_path_gap
    if not (isinstance(adapter, Watching) and (judged.takes_another_path or survives)):
        return None
    return adapter.part(0)


def _draws(adapter: Adapter, measured: Judgement) -> Sequence[Trace]:
    """What draws random numbers in training, where layers see another distribution without it.

    As `_part`, not in one of several processes.
    """
    seen = bool((measured.shifts > measured.distortion_limit).any())
    if measured.training.replicas or not (seen and measured.training.stochastic):
        return ()
    if not isinstance(adapter, Watching):
        return ()
    return adapter.draws(0)


def _may_explain_path(measured: Judgement) -> bool:
    """Whether state that settles may be all in which the training path differs."""
    return measured.takes_another_path and any(layer.states for layer in measured.layers)


def _remixed(adapter: Adapter, panel: Panel, measured: Judgement) -> Prediction | None:
    """Training mode on mixed mini-batches, if it alone is right on them as they are."""
    if panel.size == 1:
        return None
    right = agree(adapter, not measured.fails(measured.passes.with_mean))
    if right or not isinstance(adapter, Sampling):
        return None
    mixed = adapter.predict_remixed(panel.size)
    return joined(mixed) if mixed else None


def _after_each(typical: Panel, measured: Judgement) -> list[Prediction]:
    """Eval mode had each mini-batch been the last one, if some layer forgets all others."""
    training = measured.training
    kept = training.kept(1)
    return [
        typical.predict_with(running.project(training.stop, batch, kept))
        for batch in measured.passes.batches
        if training.forgetful
    ]


def _replaced(panel: Panel, passes: Passes, recalibrated: Prediction, unbiased: bool) -> Prediction:
    """Eval mode with the batch's own statistics; a pass only if no other was the same."""
    if not unbiased and passes.batch is passes.noisy_batch:
        return recalibrated
    return passes.with_mean or panel.predict_with(passes.batch, exact=True)


def _without_initial_value(typical: Panel, judgement: Judgement) -> Prediction | None:
    """Eval mode without what is left of the initial value; a pass only if that is something."""
    training = judgement.training
    clean = running.debias(training.stop, training.start, training.initial_weights)
    left = distances.distortion(training.stop, clean, training.eps)
    if (left <= FORGOTTEN).all():
        return judgement.compared.typical.eval
    return typical.predict_with(clean)


def _attribute(adapter: Adapter, typical: Panel, judgement: Judgement) -> Attribution:
    """Each layer's share in the gap, and what is left of the gap without the largest."""
    with typical.statistics(judgement.judged_statistics):
        stored = adapter.read(exact=True)

    def react(statistics: Statistics, direction: Mapping[str, Any]) -> Any:
        with typical.statistics(statistics, exact=True):
            return typical.slopes(direction)

    def predict(statistics: Statistics) -> Prediction:
        return typical.predict_with(statistics, exact=True)

    return culprits.attribute(judgement.typical, stored, react, predict)
