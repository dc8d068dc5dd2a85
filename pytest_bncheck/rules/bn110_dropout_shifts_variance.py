"""BN110: dropout before a normalisation layer changes what the layer sees in eval mode."""

from __future__ import annotations

from collections.abc import Sequence, Set

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.maths import distances
from pytest_bncheck.maths.verdict import USUAL_GAP
from pytest_bncheck.rules import _words as words
from pytest_bncheck.rules._base import Rule
from pytest_bncheck.types import Finding, Severity, Trace

FAR = 2.0
"""How many times the training pass's distortion, and the limit, count as far above."""


class DropoutShiftsVariance(Rule):
    """Stochastic layers before batch normalisation.

    What it does
    ------------
    Measures the running statistics against two batches of statistics: with dropout as in training
    and without it as in eval mode. It fires where they fit the first and are far from the second:
    an error where eval mode decides worse and statistics without dropout would decide right.

    Why it is bad
    -------------
    Dropout raises the variance of what follows; the running variance learns the raised one and
    normalises with it in eval mode, where there is no dropout.

    Example
    -------
    ::

        nn.Sequential(
            nn.Linear(64, 64), nn.Dropout(), nn.Linear(64, 64), nn.BatchNorm1d(64)
        )

    Use instead
    -----------
    Dropout after the last normalisation layer, or none: batch normalisation regularises by
    itself. Re-estimating the running statistics with dropout off helps a finished network.

    References
    ----------
    Li, Chen, Hu & Yang 2019, Understanding the Disharmony between Dropout and Batch Normalization
    by Variance Shift.
    """

    code = "BN110"
    name = "dropout-shifts-variance"
    severity = "warning"
    error_when = "it is why eval mode decides worse"

    def find(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        stochastic = evidence.training.stochastic
        if not stochastic or evidence.inconclusive or evidence.passes.is_random:
            return None
        noisy = evidence.judged_distortions
        clean = distances.distortion(
            evidence.judged_statistics, evidence.passes.batch, evidence.eps
        )
        least = FAR * evidence.distortion_limit
        shifted = {
            layer.name: float(d)
            for layer, d, trained in zip(evidence.layers, clean, noisy, strict=True)
            if d > least and d > FAR * trained and layer.name not in explained
        }
        if not shifted:
            return None
        names = sorted(shifted, key=lambda name: -shifted[name])
        draws = evidence.diagnosis.draws
        return self.finding(
            f"{words.n_of_m(names, evidence, 'see')} another distribution in eval mode than in "
            f"training. The worst is {words.layer(names[0])}, by {shifted[names[0]]:.2f} standard "
            f"deviations (up to {least:g} is usual).",
            cause=f"{_source(draws)} changes what a layer behind it sees in training, and the "
            "running statistics keep that.",
            remedy=words.bullets(
                "Move it behind the last normalisation layer, or leave it out.",
                "Or re-estimate the statistics with it off before predicting.",
            ),
            severity=_grade(evidence),
            layers=names,
            distortion_without_dropout=shifted[names[0]],
            calls=[words.place(trace) for trace in draws],
        )


def _source(draws: Sequence[Trace]) -> str:
    """What draws the random numbers, as far as that is known."""
    if not draws:
        return "A dropout or other stochastic layer"
    named = "; ".join(words.place(trace) for trace in draws[:3])
    return f"What draws random numbers in training ({named})"


def _grade(evidence: Evidence) -> Severity:
    """An error where it costs decisions that statistics without dropout would get right."""
    gap, surviving = evidence.judged_gap, evidence.surviving_gap
    bad = gap is not None and not gap <= evidence.gap_limit and evidence.fails(evidence.judged)
    return "error" if bad and surviving is not None and surviving <= USUAL_GAP else "warning"
