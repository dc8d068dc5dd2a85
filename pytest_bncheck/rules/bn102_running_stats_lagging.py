"""BN102: the running statistics describe weights that the network no longer has."""

from __future__ import annotations

from collections.abc import Set

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.rules import _faults as faults
from pytest_bncheck.rules import _remedies as remedies
from pytest_bncheck.rules import _words as words
from pytest_bncheck.rules._base import Rule
from pytest_bncheck.types import Finding


class RunningStatsLagging(Rule):
    """Running statistics that trail fast-moving weights.

    What it does
    ------------
    As BN101, but the initial value is forgotten: what is wrong is that the average looks back
    further than the weights stayed the same. Statistics re-estimated at the final weights would
    predict right, which is tried.

    Why it is bad
    -------------
    Eval mode normalises with numbers that belong to an earlier network. The loss in eval mode
    jumps from epoch to epoch although the training loss falls smoothly.

    Example
    -------
    A cumulative average weighs the first steps, when the weights moved most, like the last::

        nn.BatchNorm2d(64, momentum=None)      # 20 steps with Adam(1e-2)

    Use instead
    -----------
    Re-estimate the statistics after training (``torch.optim.swa_utils.update_bn``; in Keras a few
    forward passes with ``training=True``), let the learning rate decay before the end, or train on
    until the weights settle.

    References
    ----------
    Wu & Johnson 2021, Rethinking "Batch" in BatchNorm, section 3 (EMA against PreciseBN). Izmailov
    et al. 2018, Averaging Weights Leads to Wider Optima, section 3.2.
    """

    code = "BN102"
    name = "running-stats-lagging"
    severity = "error"

    def find(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        grade = faults.severity(evidence, explained)
        layers = faults.layers_at_fault(evidence, explained)
        if faults.inherited(evidence) in ("lost", "stale") or faults.has_worse_weights(evidence):
            return None
        if grade is None or layers is None or faults.initial_value_explains(evidence, explained):
            return None
        if faults.cost_of_other_path(evidence):
            grade = "warning"  # on another path than they were made for, any lag looks grave
        if grade != "error" and _remembers_nothing(evidence, layers):
            return None  # BN104 says so
        trained, rates = evidence.steps > 0, evidence.diagnosis.remedies.sufficient_rates
        left = evidence.training.largest_initial_weight()
        return self.finding(
            f"{words.headline(evidence)}. {words.size_of_gap(evidence)}",
            cause=_cause(evidence, layers),
            remedy=_remedy(evidence, layers),
            severity=grade,
            layers=layers,
            initial_share=evidence.initial_share(explained) if trained else None,
            largest_initial_weight=left if trained else None,
            causes=evidence.causes if trained else None,
            sufficient_rates={str(steps): rate for steps, rate in rates.items()},
            gap_with_batch_statistics=evidence.surviving_gap,
        )


def _remembers_nothing(evidence: Evidence, layers: list[str]) -> bool:
    """Whether what is wrong with the layers is that the last batch makes them."""
    forgetful = {layer.name for layer in evidence.training.forgetful}
    draws = evidence.stream or evidence.training.stochastic
    return draws and bool(forgetful) and set(layers) <= forgetful


def _cause(evidence: Evidence, layers: list[str]) -> str:
    who = words.distorting(layers, evidence)
    if not evidence.steps:
        return (
            f"{who}: the statistics that came with the model trail its weights, as a long memory "
            f"does ({_memory(evidence, layers)}). {faults.not_the_initial_value(evidence)} A copy "
            "without its statistics would look the same, since the check did not see the training "
            "(steps=0)."
        )
    worst = faults.worst_layer(evidence, layers)
    weight = evidence.training.initial_weights[evidence.layers.index(worst)]
    average = (
        "the cumulative average (momentum=None) weighs all steps alike"
        if worst.update_rate is None
        else f"at {words.memory(evidence, worst, worst.update_rate)} only "
        f"{words.percent(weight, 1)} of the initial value is left"
    )
    ended = evidence.training.ended
    if ended:
        trail = f"The training {ended} at its end, and the running statistics are of those before"
        return words.sentences(f"{who}. {trail}.", faults.split_of_gap(evidence))
    trail = f"The weights move faster than the running average follows: {average}"
    if _remembers_nothing(evidence, layers):
        rate = worst.update_rate or 0.0
        share, memory = words.percent(rate), words.memory(evidence, worst, rate)
        last = "mini-batch makes" if evidence.stream else "training pass makes"
        others = "others" if evidence.stream else "with other random numbers they"
        trail = f"At {memory} the last {last} {share} of the statistics, and {others} differ"
    elif not faults.closes_the_gap(evidence):
        trail = (
            "Statistics that are re-estimated with the weights as they are decide better"
            f"{_by_how_much(evidence)}, though they leave a difference as well: {average}"
        )
    return words.sentences(
        f"{who}. {trail}.",
        faults.unscored(evidence),
        faults.mixed_causes(evidence),
        faults.whose_gap(evidence),
        faults.split_of_gap(evidence),
    )


def _by_how_much(evidence: Evidence) -> str:
    pair = words.compared(evidence.recalibrated, evidence.judged)
    return f" ({pair[0]} instead of {pair[1]})" if pair else ""


def _memory(evidence: Evidence, layers: list[str]) -> str:
    worst = faults.worst_layer(evidence, layers)
    if worst.update_rate is None:
        return "a cumulative average"
    return words.memory(evidence, worst, worst.update_rate)


def _remedy(evidence: Evidence, layers: list[str]) -> str:
    recalibration = remedies.recalibration(evidence)
    if not evidence.steps:
        return words.bullets(
            recalibration,
            "Or load the running statistics together with the parameters (a full state, buffers "
            "included).",
        )
    if evidence.training.ended:
        return words.bullets(recalibration, "Or predict with the weights as they were trained.")
    worst = faults.worst_layer(evidence, layers)
    if _remembers_nothing(evidence, layers):
        code = remedies.set_rate(evidence, worst, remedies.COMMON_RATE)
        return words.bullets(f"Use a momentum that remembers many batches:\n{code}", recalibration)
    return words.bullets(
        recalibration,
        remedies.shorter_memory(evidence, worst)
        if any(evidence.diagnosis.remedies.sufficient_rates.values())
        else None,
        "Or train on until the loss is flat, or let the learning rate decay towards the end.",
    )
