"""The verdict on batch normalisation: healthy, degraded or broken.

A network is broken if its eval prediction is far from the training one (gap), far from what
converged statistics would give (excess), the decisions suffer against those, and either some
layer's statistics are wrong (distortion) or converged ones decide much better: depth amplifies
small distortions. Each condition alone has false alarms: the unbiased variance alone gives healthy
deep networks a gap of 0.4, a dead branch any distortion, a growing logit a gap without
consequence. Every comparison is written so that NaN never passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pytest_bncheck.types import BNVerdict

USUAL_GAP = 0.10
"""What healthy networks keep to."""

USUAL_DISTORTION = 0.05
"""What healthy networks keep to."""

MOST_RETAINED = 0.9
"""Share of what was learned below which decisions suffer where no accuracy is measured."""

HALF_RETAINED = 0.5
"""The same where one is measured."""

ACCURACY_DROP = 0.05
"""Accuracy whose loss makes decisions suffer."""

MUCH_BETTER = 0.10
"""Accuracy by which converged statistics decide so much better that distortion need not show it."""

WORTH_A_WARNING = 0.02
"""Accuracy that converged statistics would bring back, from which on a warning helps."""

RETAINED_WORTH_A_WARNING = 0.10
"""The same for the share of what was learned."""

SAMPLES = 2
"""Decisions that a drop of accuracy has to cost: a single one is chance."""

ROUNDING = 1e-9


@dataclass(frozen=True)
class Scores:
    """What the verdict looks at, for one set of running statistics.

    Attributes
    ----------
    gap
        Difference from the training prediction, relative, >= 0; None if it cannot be measured.
    distortion
        Largest over the layers, in standard deviations; None where no layer has one, as running
        state that was found by behaviour.
    excess
        Difference from the prediction with converged statistics; None if it was not needed.
    floor
        The gap that converged statistics would leave; None if it was not needed.
    retained
        Share of training's progress that is kept, <= 1 as a rule; None if unknown.
    loss, accuracy
        On the training targets; None if unknown.
    finite
        Whether the outputs and the loss are finite.
    settles
        Whether running state without a distortion, once settled, closes most of the gap.
    """

    gap: float | None
    distortion: float | None
    excess: float | None = None
    retained: float | None = None
    loss: float | None = None
    accuracy: float | None = None
    finite: bool = True
    floor: float | None = None
    settles: bool = False


class Reference(Protocol):
    """What decisions are compared with: loss and accuracy, each None if unknown."""

    @property
    def loss(self) -> float | None:
        """On the training targets."""

    @property
    def accuracy(self) -> float | None:
        """In [0, 1]."""


def decisions_suffer(
    scores: Scores, reference: Reference | None, samples: int | None = None
) -> bool | None:
    """Whether the network decides worse than the reference; None if that cannot be measured.

    With accuracy: at least 0.05 and two samples below the reference, or less than half retained.
    Without: less than 0.9 retained. Outputs that are not finite always suffer, a loss that is no
    larger than the reference's never does.

    Parameters
    ----------
    samples
        That the accuracy was measured on; None if unknown, and then two samples need not differ.
    """
    if not scores.finite:
        return True
    if reference is not None and _costs_nothing(scores, reference):
        return False
    if scores.accuracy is not None and reference is not None and reference.accuracy is not None:
        half_lost = scores.retained is not None and not scores.retained >= HALF_RETAINED
        return half_lost or decides_worse(scores, reference, ACCURACY_DROP, samples)
    if scores.retained is not None:
        return not scores.retained >= MOST_RETAINED
    return None


def decides_worse(
    scores: Reference, reference: Reference, least: float, samples: int | None = None
) -> bool:
    """Whether the accuracy is lower by at least `least` and two samples; False if unknown."""
    if scores.accuracy is None or reference.accuracy is None:
        return False
    drop = reference.accuracy - scores.accuracy + ROUNDING
    return not drop < least and (samples is None or not drop * samples < SAMPLES - 0.01)


def _costs_nothing(scores: Reference, reference: Reference) -> bool:
    """Whether the loss is known to be no larger than the reference's."""
    loss, other = scores.loss, reference.loss
    return loss is not None and other is not None and loss <= other


def judge(
    scores: Scores,
    converged: Scores | None,
    gap_tolerance: float,
    distortion_tolerance: float,
    *,
    train: Reference | None = None,
    samples: int | None = None,
) -> BNVerdict:
    """The verdict.

    Without a gap, distortion and decisions alone decide. Where nobody can say what the statistics
    did to the decisions, the verdict is degraded.

    Parameters
    ----------
    converged
        The prediction with converged (recalibrated) statistics; None where it was not needed.
    gap_tolerance, distortion_tolerance
        Limits, > 0.
    train
        The prediction of training mode.
    samples
        See `decisions_suffer`.
    """
    suffer = decisions_suffer(scores, converged, samples)
    much = converged is not None and decides_worse(scores, converged, MUCH_BETTER, samples)
    excess = scores.gap if scores.excess is None else scores.excess
    # Without a gap there is nothing to be far from.
    apart = scores.gap is None or not (
        scores.gap <= gap_tolerance or (excess or 0.0) <= gap_tolerance
    )
    theirs = _is_bent(scores, distortion_tolerance) or (much and scores.gap is not None)
    if apart and theirs and suffer is not False:
        return "broken" if suffer else "degraded"
    if not scores.finite or _loses(scores, converged, train, samples):
        return "degraded"
    return "healthy"


def _is_bent(scores: Scores, tolerance: float) -> bool:
    """Whether statistics are wrong: by distortion, or since converging closes half of the gap."""
    if scores.settles:
        return True
    if scores.distortion is not None:
        return not scores.distortion <= tolerance
    return scores.gap is not None and scores.floor is not None and scores.floor <= 0.5 * scores.gap


def _loses(
    scores: Scores, converged: Scores | None, train: Reference | None, samples: int | None
) -> bool:
    """Whether converged statistics would decide a little better."""
    if converged is None or (train is not None and _costs_nothing(scores, train)):
        return False
    if decides_worse(scores, converged, WORTH_A_WARNING, samples):
        return True
    if scores.retained is None or converged.retained is None:
        return False
    return not converged.retained - scores.retained <= RETAINED_WORTH_A_WARNING
