"""BN401: parameters were copied or saved, their running statistics were not."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set

import numpy as np

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.rules import _faults as faults
from pytest_bncheck.rules import _remedies as remedies
from pytest_bncheck.rules import _words as words
from pytest_bncheck.rules._base import Rule
from pytest_bncheck.types import Finding, Prediction

OTHER_SCALE, ALIKE = 0.4, 0.1
"""Logarithm of a scale that is worth a word, and how alike the first layer's channels show it."""


class StatisticsLostInCopy(Rule):
    """A copy, an average or a checkpoint without the running statistics.

    What it does
    ------------
    With ``steps=0`` it judges a model as it is handed over: it fires where statistics are at
    exactly 0 and 1 beside trained parameters, and where they are so far from the batch's that the
    prediction fails, though statistics of the batch would bring it back. After a training of its
    own it fires where the end of the training replaced the weights by an average that predicts
    worse. Always, it looks for
    statistics that the model's own state leaves out, so that no checkpoint could hold them.

    Why it is bad
    -------------
    The parameters are right and the prediction is not. Training the copy on hides it, since
    training mode does not look at running statistics.

    Example
    -------
    A teacher whose parameters follow a student's; its buffers stay those of the first day::

        for p, q in zip(teacher.parameters(), student.parameters()):
            p.data.mul_(0.99).add_(q.data, alpha=0.01)

    Use instead
    -----------
    Copy the buffers too, save and load the full state (``state_dict()``, in Keras
    ``get_weights()`` instead of ``trainable_weights``), average with
    ``AveragedModel(model, use_buffers=True)`` or re-estimate the statistics of the average with
    ``update_bn``, and register statistics as persistent buffers.

    References
    ----------
    Izmailov et al. 2018, Averaging Weights Leads to Wider Optima, section 3.2 (batch statistics
    of averaged weights). torch.optim.swa_utils.AveragedModel, on use_buffers.
    """

    code = "BN401"
    name = "statistics-lost-in-copy"
    severity = "error"

    def find(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        lost = self._replaced(evidence) if evidence.steps else self._lost(evidence, explained)
        return lost or self._unsaved(evidence, explained)

    def _replaced(self, evidence: Evidence) -> Finding | None:
        """Weights by which the end of the training replaced those that were trained."""
        if not faults.has_worse_weights(evidence):
            return None
        return self.finding(
            f"{words.headline(evidence)}. {words.size_of_gap(evidence)}",
            cause=f"The training {evidence.training.ended} at its end. The new ones predict worse, "
            f"even with statistics of their own{_as_good(evidence.recalibrated)}.",
            remedy=words.bullets(
                "Predict with the weights as they were trained, or let the average forget faster.",
                "Or train on until the weights change little within its memory.",
            ),
            gap=evidence.judged_gap,
        )

    def _lost(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        cause, grade = faults.inherited(evidence), faults.severity(evidence, explained)
        stale = faults.layers_at_fault(evidence, explained)
        untouched = faults.untouched(evidence, explained) if cause == "lost" else []
        if grade is None or (not untouched and (stale is None or cause != "stale")):
            return None
        message, why = words.size_of_gap(evidence), _not_theirs(evidence, stale or [])
        if untouched:
            message = (
                f"{words.n_of_m(untouched, evidence, 'have')} statistics at exactly 0 and 1 beside "
                "trained parameters."
            )
            why = (
                "The parameters were trained or loaded, the running statistics were not: a copy, "
                "an average or a checkpoint went without them."
            )
        return self.finding(
            f"{words.headline(evidence)}. {message}",
            cause=why,
            severity=grade,
            remedy=_remedy(evidence, lost=bool(untouched)),
            layers=untouched or stale or [],
            distortion=float(np.max(evidence.judged_distortions, initial=0.0)),
        )

    def explains(self, finding: Finding) -> Sequence[str]:
        # A state without the statistics spoils the next copy, and no prediction of this model.
        return () if "unsaved" in finding.evidence else finding.layers

    def _unsaved(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        names = [name for name in evidence.training.unsaved if name not in explained]
        if not names:
            return None
        return self.finding(
            f"{words.n_of_m(names, evidence, 'have')} running statistics that the model's state "
            f"leaves out; the first is {words.layer(names[0])}.",
            cause="They are not registered, or not as persistent, so that a checkpoint, a copy or "
            "another process gets the parameters without them.",
            remedy=words.bullets(
                "Keep them where the model's state finds them:\n"
                'self.register_buffer("running_mean", torch.zeros(channels))  # persistent'
            ),
            layers=names,
            unsaved=len(names),
        )


def _scale_of_inputs(evidence: Evidence) -> float | None:
    """How many times larger these inputs are than those of the training; None if they are alike.

    What reaches the first layer is linear in the inputs, so all its channels grow alike.
    """
    now, batch, eps = evidence.training.stop, evidence.passes.noisy_batch, evidence.eps
    samples = evidence.training.batch_size
    if not samples or not evidence.passes.active[0] or not now.var[0].size:
        return None
    with np.errstate(all="ignore"):
        logs = 0.5 * np.log((batch.var[0] + eps[0]) / (now.var[0] + eps[0]))
    middle = float(np.median(logs))
    apart = float(np.median(np.abs(logs - middle)))
    alike = apart <= max(ALIKE, 0.5 / math.sqrt(samples))
    return math.exp(middle) if alike and abs(middle) >= OTHER_SCALE else None


def _rough(scale: float) -> str:
    """Two digits, or a whole number: chance has its say in the others."""
    return f"{scale:.2g}" if scale < 100.0 else f"{scale:.0f}"


def _remedy(evidence: Evidence, *, lost: bool) -> str:
    copied = (
        "Load or copy the running statistics together with the parameters:\n"
        + evidence.dialect.copy_statistics
    )
    estimated = remedies.recalibration(evidence)
    if lost:
        return words.bullets(copied, estimated)
    if (scale := _scale_of_inputs(evidence)) is not None:
        by = f"divide them by {_rough(scale)}"
        if scale < 1.0:
            by = f"multiply them by {_rough(1.0 / scale)}"
        return words.bullets(
            f"Prepare the inputs as the training did; it seems that you have to {by}.", estimated
        )
    calm = "Or, if the training just ended, let the learning rate decay towards its end."
    return words.bullets(estimated, calm, f"Or, if this is a copy: {copied[0].lower()}{copied[1:]}")


def _as_good(recalibrated: Prediction | None) -> str:
    figure = words.how_good(recalibrated)
    return f" (tried here: {figure})" if figure else ""


def _not_theirs(evidence: Evidence, layers: list[str]) -> str:
    if (scale := _scale_of_inputs(evidence)) is not None:
        times = f"{_rough(scale)} times"
        return (
            f"{words.distorting(layers, evidence)}. In {words.layer(evidence.layers[0].name)}, the "
            f"first, all channels vary {times} as much as the statistics say: these inputs look "
            f"{times} as large as those of the training. If it saw inputs like these, the "
            "statistics do not belong to the parameters."
        )
    return (
        f"{words.distorting(layers, evidence)}: the statistics that came with the model do not "
        f"belong to its parameters, or to data like this. {faults.not_the_initial_value(evidence)} "
        "A copy, an average, weights that moved fast in the last updates or trained on without "
        "them, and other data cannot be told apart by looking at the model (steps=0)."
    )
