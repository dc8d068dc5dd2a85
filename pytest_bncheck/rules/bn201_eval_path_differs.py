"""BN201: the network computes something else in eval mode, and it is not batch normalisation."""

from __future__ import annotations

from collections.abc import Set

from pytest_bncheck.evidence import REPRODUCED, Evidence
from pytest_bncheck.rules import _faults as faults
from pytest_bncheck.rules import _words as words
from pytest_bncheck.rules._base import Rule
from pytest_bncheck.types import Finding, Prediction, Severity


class EvalPathDiffers(Rule):
    """Code under ``if self.training`` that changes the result.

    What it does
    ------------
    Compares two predictions with the same batch statistics and without dropout: one in which the
    model's own code is told that it trains, one in which it is told that it predicts. Where that
    comparison is possible and differs, the model's code takes another path in eval mode. It also
    fires when a difference survives replacing every running statistic by the batch's own. It names
    the first module, in the order of the calls, that computes something else from the same inputs,
    and the line of its code that asks for the mode.

    Why it is bad
    -------------
    The network that was trained is not the one that predicts, and no amount of further training
    or better statistics brings them together.

    Example
    -------
    ::

        def forward(self, x):
            x = self.body(x)
            return x * self.scale if self.training else x

    Use instead
    -----------
    The same computation in both modes. Merge adapters in ``train(mode)``, which parents call on
    their children, not in ``eval()``, which they do not. If the difference is the design, declare
    it: ``intended="mode-dependent-path"``.

    References
    ----------
    torch.nn.Module.train and eval (which call each child's train). Hu et al. 2022, LoRA (merged
    weights at inference).
    """

    code = "BN201"
    name = "eval-path-differs"
    severity = "error"
    intended = frozenset({"mode-dependent-path"})

    def find(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        return (
            self._by_other_layers(evidence)
            or self._by_other_inputs(evidence)
            or self._by_path(evidence)
            or self._by_survival(evidence, explained)
        )

    def _by_other_layers(self, evidence: Evidence) -> Finding | None:
        """What predicts is not what was trained, and has not caught up with it."""
        rehearsal, train = evidence.training.rehearsal, evidence.train
        if rehearsal is None or train is None or not faults.predicts_untrained(evidence):
            return None
        trained, runs = words.code(rehearsal.absent, 3), words.code(rehearsal.untrained, 3)
        return self.finding(
            f"The training step trains {trained}, and the prediction runs {runs} instead: loss "
            f"{evidence.training.losses[-1]:.3g} in the step, {train.loss:.3g} in the prediction.",
            cause="The layers that predict are a copy, or another part of the model, that is "
            "behind those that were trained.",
            remedy=words.bullets(
                "Train until the copy has caught up, or let it follow faster.",
                "Or predict with the layers that were trained: forward=, or bncheck_forward.",
            ),
            trained=list(rehearsal.absent),
            predicts=list(rehearsal.untrained),
            by="other layers",
        )

    def _by_other_inputs(self, evidence: Evidence) -> Finding | None:
        """What was learned on the inputs of the step does not hold for the batch as it is."""
        losses = faults.trains_on_others(evidence)
        if losses is None:
            return None
        changed = words.listing(list(evidence.training.changed), 3)
        return self.finding(
            "The training step learns on other inputs than those of the prediction: loss "
            f"{losses[1]:.3g} in the step, {losses[0]:.3g} in a pass in training mode on the batch "
            "as it is, with the same weights and random numbers.",
            cause="The step changes the batch before it calls the model"
            + (f": the batch statistics of {changed} differ." if changed else "."),
            remedy=words.bullets(
                "Prepare the inputs of the prediction as the training step does: in forward=, or "
                "bncheck_forward, and wherever the model predicts.",
            ),
            losses=list(losses),
            by="other inputs",
        )

    def _by_path(self, evidence: Evidence) -> Finding | None:
        path, train = evidence.passes.path, evidence.passes.first
        if path is None or train is None or not evidence.takes_another_path:
            return None
        if evidence.states_explain:
            return None
        if evidence.passes.is_random:  # then two passes differ whatever the mode
            return None
        worse = faults.cost_of_other_path(evidence)
        grade: Severity = "warning" if worse is None else "error"
        other = worse or train
        gap = evidence.compared.gap(other, path) or 0.0
        allowed = evidence.passes.allowed_path_gap
        by_design = evidence.passes.shares_state or evidence.passes.splits  # as ghost batches
        if worse is None and (gap <= allowed or by_design):
            return None
        shared = _shared(evidence)
        which = "the same batch statistics" if other is train else "converged statistics"
        seen = other if evidence.stream else evidence.recalibrated or other
        return self.finding(
            f"{_whose(evidence)} computes something else in eval mode{_how_good(path, seen)}. "
            f"With {which} the predictions differ by {gap:.2g} of their spread over the batch (up "
            f"to {allowed:g} is rounding).",
            cause=_where(evidence)
            or f"The model's own code depends on the mode ({evidence.dialect.mode}), outside of "
            f"dropout and normalisation layers{_or_shared(shared)}.",
            remedy=words.bullets(
                _same_in_both(evidence),
                f"Or give each call of {shared[0]} a layer of its own." if shared else None,
                'If the difference is the design, declare it: intended="mode-dependent-path".',
            ),
            severity=grade,
            gap=gap,
            by="training path",
        )

    def _by_survival(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        gap, replaced, train = evidence.surviving_gap, evidence.diagnosis.replaced, evidence.train
        if gap is None or replaced is None or train is None or evidence.modes_meet:
            return None
        allowed = evidence.passes.allowed_path_gap
        must_repeat, decides_worse = _must_repeat(evidence), _decides_worse(evidence, gap)
        if gap <= allowed or not (must_repeat or (decides_worse and not explained)):
            return None
        fails = not gap <= evidence.gap_limit and evidence.fails(replaced)
        tracking = [x.name for x in evidence.layers if x.type.startswith("InstanceNorm")]
        cause, advice = _cause(evidence, tracking)
        return self.finding(
            "Eval mode differs from training mode for a reason other than converging statistics"
            f"{_how_good(train, replaced)}. {_with_which(evidence)} the predictions still differ "
            f"by {gap:.2g} of their spread over the batch (up to {allowed:g} is rounding).",
            cause=cause,
            remedy=words.bullets(
                advice,
                'If the difference is the design, declare it: intended="mode-dependent-path".',
            ),
            severity="error" if fails or decides_worse else "warning",
            layers=tracking,
            gap=gap,
            by="survival",
        )


def _shared(evidence: Evidence) -> list[str]:
    """Home-made layers that a training step calls several times, whose streams nobody sees."""
    rows = zip(evidence.layers, evidence.passes.calls.training, strict=True)
    return [layer.name for layer, count in rows if layer.states and count > 1]


def _or_shared(names: list[str]) -> str:
    if not names:
        return ""
    return (
        f", or {names[0]} normalises each of its calls by itself in training mode and all of them "
        "by one average in eval mode"
    )


def _with_which(evidence: Evidence) -> str:
    """With which statistics the modes still differ."""
    if evidence.training.changes_data:
        return "With the statistics of the training steps"
    return "With the batch's own statistics"


def _cause(evidence: Evidence, tracking: list[str]) -> tuple[str, str]:
    """Why the modes differ, and what to do."""
    if tracking:
        return (
            f"{tracking[0]} normalises each sample by itself in training, and all of them by one "
            "running average in eval mode.",
            "Leave track_running_stats=False on instance normalisation.",
        )
    if evidence.training.changes_data:
        changed = evidence.training.changed
        return (
            "The training step feeds the model other inputs than the batch as it is: the batch "
            f"statistics of {words.listing(list(changed), 3)} differ from those of a pass on it.",
            "Prepare the inputs of the prediction as the training step does.",
        )
    return (
        _where(evidence) or "Something other than the normalisation layers depends on the mode.",
        _same_in_both(evidence),
    )


def _whose(evidence: Evidence) -> str:
    parting = evidence.diagnosis.parting
    return "The model" if parting and parting.library else "The model's own code"


def _where(evidence: Evidence) -> str:
    """The module, and the line of its code, at which the modes part; empty where unknown."""
    parting = evidence.diagnosis.parting
    if parting is None:
        return ""
    name = parting.module or "the model itself"
    kind = f"{parting.type}{' of the framework' if parting.library else ''}"
    source = f": {parting.source}" if parting.source else ""
    return f"The modes part in {name} ({kind}){source}{'' if source else '.'}"


def _same_in_both(evidence: Evidence) -> str:
    parting = evidence.diagnosis.parting
    if parting is not None and parting.library:
        return f"Call {parting.module or 'it'} so that it does the same in both modes."
    if parting is not None:
        return f"Let {parting.module or 'the model'} compute the same in both modes."
    return f"Compute the same in both modes; look for code under `{evidence.dialect.mode}`."


def _decides_worse(evidence: Evidence, surviving: float) -> bool:
    """Whether eval mode is far from training mode and decides worse, whatever explains it.

    Nothing of that passes, unless settled statistics repeat training mode.
    """
    gap = evidence.judged_gap
    if gap is None or evidence.inconclusive or evidence.passes.is_random or evidence.stream:
        return False
    if evidence.training.ended is not None:  # other weights predict, which BN401 says
        return False
    repeats = surviving <= max(REPRODUCED, gap / 5.0)
    return not repeats and not gap <= evidence.gap_limit and evidence.fails(evidence.judged)


def _must_repeat(evidence: Evidence) -> bool:
    """Whether replacing statistics must repeat the training prediction."""
    once = all(count <= 1 for count in evidence.passes.calls.training)
    return (
        once
        and faults.are_batches_known(evidence)
        and not evidence.stream
        and not evidence.inconclusive
        and all(layer.stock for layer in evidence.layers)
        and not evidence.passes.is_random
        and evidence.training.ended is None  # else other weights differ, too
        and not evidence.training.changes_data
    )


def _how_good(training: Prediction, other: Prediction) -> str:
    first, second = words.how_good(training), words.how_good(other)
    return f": {first} in training mode, {second} in eval mode" if first and second else ""
