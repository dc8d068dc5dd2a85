"""BN101: the running statistics are still close to where they started."""

from __future__ import annotations

from collections.abc import Set

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.maths.running import SETTLED, updates_until
from pytest_bncheck.rules import _faults as faults
from pytest_bncheck.rules import _remedies as remedies
from pytest_bncheck.rules import _words as words
from pytest_bncheck.rules._base import Rule
from pytest_bncheck.types import Finding, Layer

CHANGED = 0.1
"""Difference of two weights of the initial value that no lag of the weights explains."""


class RunningStatsUnderconverged(Rule):
    """Running statistics that are still mostly their initial value.

    What it does
    ------------
    Trains on a batch, then compares the prediction with batch statistics (training mode) and with
    running statistics (eval mode) on the same batch. It fires when eval mode is far off, decides
    worse, would be right with converged statistics, and the initial value is what keeps them from
    converging: its weight after t updates is (1 - α)^t, α = torch's momentum = 1 - Keras's. The
    rate of home-made layers is measured by what training does to their state.

    Why it is bad
    -------------
    The network is right while it trains and wrong when it predicts the very same samples.
    Validation looks like hopeless overfitting, and the usual cures for that do not help.

    Example
    -------
    Five updates at Keras's default momentum leave 0.99^5 = 95 % of each moving average at its
    initial 0 or 1::

        model = keras.applications.ResNet50(
            weights=None, input_shape=(197, 197, 1), classes=3
        )
        model.compile("adam", "sparse_categorical_crossentropy")
        model.fit(three_images, labels, epochs=5)  # loss 1e-7
        model.evaluate(three_images, labels)  # loss 10.7

    Use instead
    -----------
    More updates, a shorter memory (Keras ``momentum=0.9``, torch ``momentum=0.1``), or statistics
    that are re-estimated before predicting (``torch.optim.swa_utils.update_bn``). If the real
    training is long enough, declare it: ``bn_consistency(planned_updates=20_000)`` judges the
    statistics as they will be by then.

    References
    ----------
    Ioffe & Szegedy 2015, Batch Normalization, section 3.1 and algorithm 2. Kingma & Ba 2015, Adam,
    section 3 (the same bias of a moving average). Wu & Johnson 2021, Rethinking "Batch" in
    BatchNorm, section 3.
    """

    code = "BN101"
    name = "running-stats-underconverged"
    severity = "error"

    def find(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        grade = faults.severity(evidence, explained)
        layers = faults.layers_at_fault(evidence, explained)
        if (
            grade is None
            or layers is None
            or not faults.initial_value_explains(evidence, explained)
        ):
            return None
        worst = faults.worst_layer(evidence, faults.with_initial_value(evidence, layers))
        k = evidence.layers.index(worst)
        training, rates = evidence.training, evidence.diagnosis.remedies.sufficient_rates
        weight = training.initial_weights[k]
        return self.finding(
            f"{words.headline(evidence)}. {words.size_of_gap(evidence)}",
            cause=_cause(evidence, worst, k, weight, layers),
            remedy=_remedy(evidence, worst),
            severity=grade,
            layers=layers,
            momentum=worst.momentum,
            updates=training.updates[k],
            initial_weight=weight,
            updates_to_settle=updates_until(worst.update_rate, SETTLED),
            initial_share=evidence.initial_share(explained),
            causes=evidence.causes,
            sufficient_rates={str(steps): rate for steps, rate in rates.items()},
            gap_with_batch_statistics=evidence.surviving_gap,
            gap_without_initial_value=evidence.gap_without_initial_value,
        )


def _cause(evidence: Evidence, worst: Layer, k: int, weight: float, layers: list[str]) -> str:
    counts = zip(evidence.layers, evidence.training.updates, strict=True)
    alike = len({(layer.momentum, count) for layer, count in counts}) == 1
    whose = (
        "every running statistic is" if alike else f"each statistic of {words.layer(worst.name)} is"
    )
    updates = words.plural(evidence.training.updates[k], "update")
    text = (
        f"After {updates} at {words.memory(evidence, worst, worst.update_rate or 0.0)}, "
        f"{words.percent(weight, 1)} of {whose} still the initial value."
    )
    if evidence.training.past is not None:
        text = _read_from_statistics(evidence, worst, weight, whose)
    planned = evidence.settings.planned_updates
    if planned is not None:
        text += f" Projected to {planned} updates they are not close enough either."
    return words.sentences(
        f"{text} {words.distorting(layers, evidence)}.",
        faults.unscored(evidence),
        faults.mixed_causes(evidence),
        faults.whose_gap(evidence),
        faults.split_of_gap(evidence),
    )


def _read_from_statistics(evidence: Evidence, worst: Layer, weight: float, whose: str) -> str:
    """What the statistics show, and what the framework's counter says of it."""
    group = evidence.training.past.explaining if evidence.training.past else None
    if group is None or worst.momentum is None:
        return f"{words.percent(weight, 1)} of {whose} still the initial value."
    momentum, counted, says = worst.momentum, group.counted, group.counted_weight
    if group.agrees and counted is not None:
        return (
            f"After {words.plural(counted, 'update')} at momentum {momentum:g} (counted by "
            f"{evidence.dialect.counter}), {words.percent(weight, 1)} of {whose} still the initial "
            "value."
        )
    text = f"{words.percent(weight, 1)} of {whose} still the initial value"
    if group.made:
        text += f", as after about {words.plural(group.made, 'update')} at momentum {momentum:g}"
    if counted is None or says is None:
        return f"{text}."
    text += f" ({evidence.dialect.counter} is {counted}, which would leave {words.percent(says, 1)}"
    changed = abs(says - weight) > CHANGED
    return f"{text}: the counter or the momentum was changed since)." if changed else f"{text})."


def _remedy(evidence: Evidence, worst: Layer) -> str:
    longer = [
        remedies.declaration(evidence, worst),
        remedies.longer_training(evidence, worst),
    ]
    if not evidence.steps:  # a model that is trained already was not trained for the check
        longer.reverse()
    return words.bullets(
        *longer,
        remedies.shorter_memory(evidence, worst),
        remedies.recalibration(evidence),
    )
