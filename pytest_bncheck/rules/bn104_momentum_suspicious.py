"""BN104: a momentum that looks like the other framework's."""

from __future__ import annotations

from collections.abc import Sequence, Set

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.maths import running
from pytest_bncheck.rules import _words as words
from pytest_bncheck.rules._base import Rule
from pytest_bncheck.types import Finding

SWAPPED = 0.75
"""Update rate from which on one minus it is a usual one, so that the two were likely mixed up."""

LITTLE = 0.05
"""Weight of the initial value that no longer needs a word."""


class MomentumSuspicious(Rule):
    """A momentum that keeps only the last batches.

    What it does
    ------------
    Reads the momentum of each normalisation layer: 0.5 or more in PyTorch, 0.5 or less in Keras,
    means that the last batch alone makes at least half of the running statistics. Given several
    mini-batches (``batches=``), it also lets each of them be the last one and reports how far the
    loss in eval mode goes up and down with it.

    Why it is bad
    -------------
    What eval mode predicts depends on which batch came last. With one repeated batch nothing is
    to be seen. It is nearly always the other framework's convention: PyTorch's momentum is the
    weight of the new batch, Keras's the weight of the past.

    Example
    -------
    ::

        nn.BatchNorm2d(64, momentum=0.99)  # torch, meant as 0.01
        keras.layers.BatchNormalization(momentum=0.1)  # Keras, meant as 0.9

    Use instead
    -----------
    One minus the value; for one about half, the framework's default.

    References
    ----------
    torch.nn.BatchNorm2d and keras.layers.BatchNormalization, on momentum.
    """

    code = "BN104"
    name = "momentum-suspicious"
    severity = "warning"

    def find(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        fast = [layer for layer in evidence.training.forgetful if layer.stock]
        if not fast:
            return None
        first, names = fast[0], [layer.name for layer in fast]
        rate = first.update_rate or 1.0
        advice = (
            f"Was {evidence.dialect.momentum_of(1.0 - rate):g} meant?{_left(evidence, rate)}\n"
            + evidence.dialect.set_momentum(first.type, 1.0 - rate)
            if SWAPPED <= rate < 1.0
            else "Use a momentum that remembers more than one batch:\n"
            + evidence.dialect.set_momentum(first.type, 0.1)
        )
        losses = [each.loss for each in evidence.diagnosis.after_each if each.loss is not None]
        return self.finding(
            f"In {words.n_of_m(names, evidence, '')} the last batch alone makes "
            f"{words.percent(rate)} of the running statistics. The first is "
            f"{words.layer(names[0])}.{_spread(losses)}",
            cause=_cause(evidence, first.momentum or 0.0, rate),
            remedy=words.bullets(advice),
            layers=names,
            momentum=first.momentum,
            eval_losses=losses or None,
        )


def _cause(evidence: Evidence, momentum: float, rate: float) -> str:
    if rate >= 1.0:
        return f"At momentum {momentum:g} the running statistics are those of the last batch."
    if rate < SWAPPED:
        return f"At momentum {momentum:g} a batch is forgotten within a few others."
    sides = ["of the new batch", "of the past"]
    if evidence.dialect.momentum_of(1.0) < evidence.dialect.momentum_of(0.0):
        sides.reverse()
    return (
        f"Momentum is the weight {sides[0]} here; {momentum:g} looks like the convention of a "
        f"framework where it is the weight {sides[1]}."
    )


def _left(evidence: Evidence, rate: float) -> str:
    """What the longer memory leaves of the initial value after the updates of this check."""
    updates = evidence.training.made or 0
    left = running.remaining_weight(1.0 - rate, updates)
    if not updates or left <= LITTLE:
        return ""
    return (
        f" After the {updates} updates of this check {words.percent(left)} of the initial value "
        "is left then; planned_updates= says how many the real training makes."
    )


def _spread(losses: Sequence[float]) -> str:
    """How much the loss in eval mode depends on which mini-batch came last."""
    if not losses:
        return ""
    return (
        f" In eval mode the loss on one mini-batch goes from {min(losses):.2g} to "
        f"{max(losses):.2g}, depending on which of {len(losses)} mini-batches came last."
    )
