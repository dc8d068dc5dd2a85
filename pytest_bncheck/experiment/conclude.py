"""From what was measured and found to the report that users read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pytest_bncheck.adapters.base import Adapter
from pytest_bncheck.evidence import Evidence
from pytest_bncheck.experiment.curves import curves
from pytest_bncheck.maths import predictions, running
from pytest_bncheck.report import (
    LayerReport,
    Predictions,
    Projected,
    Remedies,
    Report,
    Scored,
    Seconds,
    Training,
)
from pytest_bncheck.types import Finding, Prediction, Suppressed, Verdict


def report(
    evidence: Evidence,
    findings: Sequence[Finding],
    suppressed: Sequence[Suppressed],
    lab: Adapter,
    seconds: Seconds,
) -> Report:
    """The report on one check.

    Parameters
    ----------
    evidence, findings, suppressed
        What was measured and what the rules made of it.
    lab
        The adapter, for the names of framework and device.
    seconds
        Wall times.
    """
    settings = evidence.settings
    return Report(
        framework=lab.framework,
        backend=lab.backend,
        device=lab.device,
        verdict=_verdict(findings, settings.strict),
        bn_verdict=evidence.bn_verdict,
        steps=evidence.steps,
        planned_updates=settings.planned_updates,
        batch_size=evidence.batch_size,
        seed=settings.seed,
        findings=findings,
        suppressed=suppressed,
        predictions=_predictions(evidence),
        layers=_layers(evidence),
        remedies=_remedies(evidence),
        training=Training(evidence.losses),
        curves=curves(evidence, found=bool(findings or suppressed)),
        seconds=seconds,
    )


def _verdict(findings: Sequence[Finding], strict: bool) -> Verdict:
    severities = {finding.severity for finding in findings}
    if "error" in severities or (strict and severities):
        return "fail"
    return "warn" if severities else "pass"


def _predictions(evidence: Evidence) -> Predictions:
    train, evaluated = evidence.train, evidence.eval
    if train is None or evaluated is None:
        return Predictions()
    scores = evidence.scores(evaluated, evidence.stop)
    return Predictions(
        gap=scores.gap,
        floor=evidence.floor,
        excess=scores.excess,
        distortion=scores.distortion,
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
    if evidence.projected is None:
        return None
    scores = evidence.scores(evidence.projected, evidence.judged_statistics)
    return Projected(
        loss=scores.loss,
        accuracy=scores.accuracy,
        gap=scores.gap,
        excess=scores.excess,
        distortion=scores.distortion,
        retained=scores.retained,
    )


def _layers(evidence: Evidence) -> list[LayerReport]:
    pairs = running.shift_and_scale(evidence.stop, evidence.noisy_batch, evidence.eps)
    distortions = evidence.distortions(evidence.stop).tolist()
    return [
        LayerReport(
            name=layer.name,
            type=layer.type,
            momentum=layer.momentum,
            update_rate=layer.update_rate,
            updates=evidence.calls.training[k],
            initial_weight=evidence.initial_weights[k] if evidence.steps else None,
            values_per_channel=evidence.calls_in_pass.values[k],
            shift=_root_mean_square(pairs[k][0]),
            scale=_root_mean_square(pairs[k][1] - 1.0),
            distortion=distortions[k],
            attribution=evidence.attribution[k] if evidence.attribution else None,
        )
        for k, layer in enumerate(evidence.layers)
    ]


def _remedies(evidence: Evidence) -> Remedies | None:
    recalibrated = evidence.recalibrated
    if recalibrated is None and evidence.further_updates is None:
        return None
    rate = evidence.sufficient_rates.get(evidence.steps)
    return Remedies(
        further_updates=evidence.further_updates,
        momentum=None if rate is None else evidence.dialect.momentum_of(rate),
        recalibrates=None if recalibrated is None else not evidence.fails(recalibrated),
    )


def _root_mean_square(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0
