"""The verdict on batch normalisation: healthy, degraded or broken.

Four conditions have to agree before a network is called broken: its eval prediction is far from
the training one (gap), far from what converged statistics would give (excess), some layer's
statistics are wrong (distortion), and the decisions suffer. Each alone has false alarms: the
unbiased variance alone gives healthy deep networks a gap of 0.4, a dead branch any distortion,
a growing logit a gap without consequence. Every comparison is written so that NaN never passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pytest_bncheck.types import BNVerdict

DEGRADED_GAP = 0.10
DEGRADED_DISTORTION = 0.05
DEGRADED_RETAINED = 0.9
ACCURACY_DROP = 0.05
HALF_RETAINED = 0.5


@dataclass(frozen=True)
class Scores:
    """What the verdict looks at, for one set of running statistics.

    Attributes
    ----------
    gap
        Difference from the training prediction, relative, >= 0; None if it cannot be measured.
    excess
        Difference from the prediction with converged statistics; None if it was not needed.
    distortion
        Largest over the layers, in standard deviations.
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
    distortion: float
    excess: float | None = None
    retained: float | None = None
    loss: float | None = None
    accuracy: float | None = None
    finite: bool = True
    settles: bool = False


class Reference(Protocol):
    """What decisions are compared with: loss and accuracy, each None if unknown."""

    @property
    def loss(self) -> float | None:
        """On the training targets."""

    @property
    def accuracy(self) -> float | None:
        """In [0, 1]."""


def decisions_suffer(scores: Scores, reference: Reference | None) -> bool | None:
    """Whether the network decides worse than the reference; None if that cannot be measured.

    With accuracy: at least 0.05 below the reference, or less than half retained. Without: less
    than 0.9 retained. Outputs that are not finite always suffer, a loss that is no larger than the
    reference's never does.
    """
    if not scores.finite:
        return True
    loss, accuracy = (None, None) if reference is None else (reference.loss, reference.accuracy)
    if loss is not None and scores.loss is not None and scores.loss <= loss:
        return False
    if scores.accuracy is not None and accuracy is not None:
        half_lost = scores.retained is not None and not scores.retained >= HALF_RETAINED
        return half_lost or not accuracy - scores.accuracy < ACCURACY_DROP - 1e-9
    if scores.retained is not None:
        return not scores.retained >= DEGRADED_RETAINED
    return None


def judge(
    scores: Scores,
    reference: Reference | None,
    gap_tolerance: float,
    distortion_tolerance: float,
    slack: float = 1.0,
) -> BNVerdict:
    """The verdict.

    Without a gap, distortion and decisions alone decide: broken if both are bad, degraded if
    nobody can say what a distortion did to the decisions.

    Parameters
    ----------
    reference
        The prediction with converged (recalibrated) statistics.
    gap_tolerance, distortion_tolerance
        Limits, > 0.
    slack
        Times the usual limits from which on a verdict is degraded.
    """
    suffer = decisions_suffer(scores, reference)
    bent = scores.settles or not scores.distortion <= distortion_tolerance
    if scores.gap is None:
        return _without_gap(bent, suffer)
    excess = scores.gap if scores.excess is None else scores.excess
    apart = not scores.gap <= gap_tolerance and not excess <= gap_tolerance
    if apart and bent and suffer is not False:
        return "broken"
    if (
        not scores.gap <= slack * DEGRADED_GAP
        or not scores.distortion <= slack * DEGRADED_DISTORTION
        or (scores.retained is not None and not scores.retained >= DEGRADED_RETAINED)
    ):
        return "degraded"
    return "healthy"


def _without_gap(bent: bool, suffer: bool | None) -> BNVerdict:
    if not bent or suffer is False:
        return "healthy"
    return "broken" if suffer else "degraded"
