"""From evidence and findings to the report that users read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pytest_bncheck import rules
from pytest_bncheck.adapters.base import Adapter
from pytest_bncheck.evidence import Evidence
from pytest_bncheck.maths import distances, predictions
from pytest_bncheck.maths.predictions import worst_pair
from pytest_bncheck.report import (
    AfterUpdates,
    Curves,
    LayerReport,
    Predictions,
    Projected,
    Remedies,
    Report,
    Samples,
    Scored,
    Seconds,
    Training,
    WithMomentum,
)
from pytest_bncheck.rules import Found
from pytest_bncheck.types import Finding, Prediction, Verdict

SAMPLES, VALUES = 32, 8
"""The most samples, and values of each, that a plot shows."""

DIGITS = 4
"""Significant digits of an output."""


def report(
    evidence: Evidence,
    found: Found,
    adapter: Adapter,
    seconds: Seconds,
) -> Report:
    """The report on one check.

    Parameters
    ----------
    evidence, found
        What was measured and what the rules made of it.
    adapter
        For the names of framework and device.
    seconds
        Wall times.
    """
    settings = evidence.settings
    return Report(
        framework=adapter.framework,
        backend=adapter.backend,
        device=adapter.device,
        verdict=_verdict(found.findings, settings.strict),
        bn_verdict=evidence.bn_verdict,
        steps=evidence.steps,
        planned_updates=settings.planned_updates,
        batch_size=evidence.training.batch_size,
        seed=settings.seed,
        findings=found.findings,
        notes=found.notes,
        suppressed=found.suppressed,
        not_checked=rules.not_checked(evidence),
        modes=evidence.training.modes,
        predictions=_predictions(evidence),
        layers=_layers(evidence),
        remedies=_remedies(evidence),
        training=Training(evidence.training.losses),
        curves=_curves(evidence, found=any(found)),
        seconds=seconds,
    )


def _verdict(findings: Sequence[Finding], strict: bool) -> Verdict:
    severities = {finding.severity for finding in findings}
    if "error" in severities or (strict and severities):
        return "fail"
    return "warn" if severities else "pass"


def _predictions(evidence: Evidence) -> Predictions:
    train, evaluated = evidence.passes.train, evidence.passes.eval
    if train is None or evaluated is None:
        return Predictions()
    scores = evidence.scores(evaluated, evidence.training.stop)
    own_path = evidence.passes.own_path
    return Predictions(
        gap=predictions.gap(evaluated.outputs, train.outputs) if own_path else scores.gap,
        floor=evidence.floor,
        excess=scores.excess,
        distortion=None if _all_states(evidence) else scores.distortion,
        retained=scores.retained,
        argmax_agreement=predictions.argmax_agreement(evaluated.outputs, train.outputs),
        train=_scored(train),
        eval=_scored(evaluated),
        recalibrated=_scored(evidence.recalibrated) if evidence.recalibrated else None,
        projected=_projected(evidence),
    )


def _scored(prediction: Prediction) -> Scored:
    return Scored(prediction.loss, prediction.accuracy)


def _projected(evidence: Evidence) -> Projected | None:
    projection = evidence.passes.projection
    if projection is None:
        return None
    scores = evidence.scores(projection.prediction, projection.statistics)
    return Projected(
        loss=scores.loss,
        accuracy=scores.accuracy,
        gap=scores.gap,
        excess=scores.excess,
        distortion=None if _all_states(evidence) else scores.distortion,
        retained=scores.retained,
    )


def _all_states(evidence: Evidence) -> bool:
    """Whether no layer has a mean and a variance, so that none has a distortion."""
    return bool(evidence.layers) and all(layer.states for layer in evidence.layers)


def _layers(evidence: Evidence) -> list[LayerReport]:
    training, passes = evidence.training, evidence.passes
    pairs = distances.shift_and_scale(training.stop, passes.noisy_batch, evidence.eps)
    distortions = evidence.distortions(training.stop).tolist()
    weights, shares = training.initial_weights, evidence.diagnosis.attribution.shares
    return [
        LayerReport(
            name=layer.name,
            type=layer.type,
            momentum=layer.momentum,
            update_rate=layer.update_rate,
            updates=training.updates[k],
            initial_weight=weights[k] if training.steps or weights[k] else None,
            values_per_channel=passes.calls.values[k],
            shift=None if layer.states else _root_mean_square(pairs[k][0]),
            scale=None if layer.states else _root_mean_square(pairs[k][1] - 1.0),
            distortion=None if layer.states else distortions[k],
            attribution=shares[k] if shares else None,
            states=layer.states,
        )
        for k, layer in enumerate(training.layers)
    ]


def _remedies(evidence: Evidence) -> Remedies | None:
    recalibrated, remedies = evidence.recalibrated, evidence.diagnosis.remedies
    if recalibrated is None and remedies.further_updates is None:
        return None
    rate = remedies.sufficient_rates.get(evidence.training.made or 0)
    return Remedies(
        further_updates=remedies.further_updates,
        momentum=None if rate is None else evidence.dialect.momentum_of(rate),
        recalibrates=None if recalibrated is None else not evidence.fails(recalibrated),
        silent_updates=remedies.silent_updates,
    )


def _root_mean_square(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0


# plots ------------------------------------------------------------------------------------------


def _curves(evidence: Evidence, *, found: bool) -> Curves:
    """The plots of a check; `found` says whether any rule fired."""
    momentum_of, remedies = evidence.dialect.momentum_of, evidence.diagnosis.remedies
    return Curves(
        gap_limit=evidence.gap_limit,
        distortion_limit=evidence.distortion_limit,
        samples=_samples(evidence) if found else None,
        updates=[AfterUpdates(*pair) for pair in sorted(remedies.gaps_after.items())],
        momentum=[
            WithMomentum(momentum_of(rate), rate, gap)
            for rate, gap in sorted(remedies.gaps_at.items())
        ],
    )


def _samples(evidence: Evidence) -> Samples | None:
    """Some samples of the output that differs most, in the values that tell samples apart most."""
    train, judged = evidence.train, evidence.judged
    if train is None or judged is None:
        return None
    worst = worst_pair(judged.outputs, train.outputs)
    if worst is None:
        return None
    count = len(worst.reference)
    first, second = worst.reference.reshape(count, -1), worst.prediction.reshape(count, -1)
    decisions = train.accuracy is not None and worst.reference.ndim == 2
    same = first.argmax(1) == second.argmax(1) if decisions and first.shape[1] > 1 else None
    rows = np.unique(np.linspace(0, count - 1, min(count, SAMPLES)).round().astype(int))
    with np.errstate(all="ignore"):
        columns = np.sort(np.argsort(-first.var(axis=0), kind="stable")[:VALUES])
    return Samples(
        train=[[_rounded(value) for value in row] for row in first[np.ix_(rows, columns)]],
        eval=[[_rounded(value) for value in row] for row in second[np.ix_(rows, columns)]],
        same_decision=None if same is None else [bool(value) for value in same[rows]],
    )


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
