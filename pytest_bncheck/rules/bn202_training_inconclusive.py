"""BN202: the brief training achieved nothing, so the modes cannot be compared."""

from __future__ import annotations

import math
from collections.abc import Set

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.rules import _faults as faults
from pytest_bncheck.rules import _words as words
from pytest_bncheck.rules._base import Rule
from pytest_bncheck.types import Finding


class TrainingInconclusive(Rule):
    """A training that did not lower the loss.

    What it does
    ------------
    Compares the loss after training with the first one. If it did not fall by a tenth, or is not
    finite, there is nothing that eval mode could lose, and no verdict is taken. It also compares
    the layers that the training step trained with those that the prediction runs: where these are
    others, as in a copy that averages the weights, nothing was learnt about what was trained.

    Why it is bad
    -------------
    The test does not test anything. Near-constant outputs differ between the modes by any amount
    without meaning.

    Example
    -------
    ::

        @pytest.mark.bn_consistency(steps=2)  # too few steps for the loss to move

    Use instead
    -----------
    More steps, the optimizer and loss of the real training (``bncheck_optimizer``,
    ``bncheck_loss``), a batch that can be learnt. A loss that is not finite is a fault of its own.

    References
    ----------
    Goodfellow, Bengio & Courville 2016, Deep Learning, section 11.5 (fit a tiny data set).
    """

    code = "BN202"
    name = "training-inconclusive"
    severity = "warning"

    def find(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        return self._not_trained(evidence) or self._no_progress(evidence)

    def _not_trained(self, evidence: Evidence) -> Finding | None:
        """What predicts is not what was trained: a copy, or another part of the model."""
        rehearsal = evidence.training.rehearsal
        if rehearsal is None or not rehearsal.is_of_others or faults.predicts_untrained(evidence):
            return None
        trained, runs = words.code(rehearsal.absent, 3), words.code(rehearsal.untrained, 3)
        return self.finding(
            f"The training step trains {trained}, and the prediction runs {runs} instead: no "
            "verdict is possible on what was trained.",
            cause="The prediction does not come from the layers that the step trained, but from "
            "others, as from an averaged copy.",
            remedy=words.bullets(
                "Check what was trained: give forward=, or bncheck_forward, that predicts with it.",
                "If the copy is what predicts, train until it has caught up.",
            ),
            trained=list(rehearsal.absent),
            predicts=list(rehearsal.untrained),
        )

    def _no_progress(self, evidence: Evidence) -> Finding | None:
        if not evidence.inconclusive or not evidence.steps or faults.predicts_untrained(evidence):
            return None
        losses = evidence.training.losses
        first, last = losses[0], losses[-1]
        train = evidence.train.loss if evidence.train else None
        finite = math.isfinite(first) and math.isfinite(last)
        now = last if train is None else train
        return self.finding(
            f"Training achieved nothing in {words.plural(evidence.steps, 'step')}, so no verdict "
            f"is possible. {_course(first, now)}",
            cause=_cause(first, now),
            remedy=words.bullets(
                "Lower the learning rate, or use the optimizer and loss of the real training "
                "(bncheck_optimizer, bncheck_loss)."
                if finite and now > first
                else "Train for more steps, or with the optimizer and loss of the real training "
                "(bncheck_optimizer, bncheck_loss)."
                if finite
                else "Lower the learning rate (bncheck_optimizer), or look for the operation "
                "that overflows.",
            ),
            first_loss=first,
            last_loss=now,
        )


def _course(first: float, now: float) -> str:
    """First and last loss, with as many digits as tell them apart."""
    digits = next((d for d in range(3, 7) if f"{first:.{d}g}" != f"{now:.{d}g}"), 3)
    return f"The loss was {first:.{digits}g} at the first step and is {now:.{digits}g} now."


def _cause(first: float, now: float) -> str:
    if not (math.isfinite(first) and math.isfinite(now)):
        return "The loss is not finite."
    if now > first:
        return "The loss rose."
    return (
        "The loss fell by less than a tenth of its first value."
        if now < first
        else ("The loss did not fall.")
    )
