"""What the plots of a report show, in few enough numbers for a file."""

from __future__ import annotations

import numpy as np

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.maths.predictions import worst_output
from pytest_bncheck.report import AfterUpdates, Curves, Samples, WithMomentum

SAMPLES, VALUES = 32, 8
"""The most samples, and values of each, that a plot shows."""

DIGITS = 4
"""Significant digits of an output."""


def curves(evidence: Evidence, *, found: bool) -> Curves:
    """The plots of a check; `found` says whether any rule fired."""
    momentum_of = evidence.dialect.momentum_of
    return Curves(
        gap_limit=evidence.gap_limit,
        distortion_limit=evidence.distortion_limit,
        samples=_samples(evidence) if found else None,
        updates=[AfterUpdates(*pair) for pair in sorted(evidence.probed_updates.items())],
        momentum=[
            WithMomentum(momentum_of(rate), rate, gap)
            for rate, gap in sorted(evidence.probed_rates.items())
        ],
    )


def _samples(evidence: Evidence) -> Samples | None:
    """Some samples of the output that differs most, in the values that tell samples apart most."""
    train, judged = evidence.train, evidence.judged
    if train is None or judged is None or evidence.gap(judged, train) is None:
        return None
    worst = worst_output(judged.outputs, train.outputs)
    count = len(train.outputs[worst])
    first = train.outputs[worst].reshape(count, -1)
    second = judged.outputs[worst].reshape(count, -1)
    decisions = train.accuracy is not None and train.outputs[worst].ndim == 2
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
