"""What cures running statistics, in sentences with the numbers of the check."""

from __future__ import annotations

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.maths.running import SETTLED, updates_until
from pytest_bncheck.rules import _words as words
from pytest_bncheck.types import Layer

COMMON_RATE = 0.1
"""PyTorch's default; in Keras, momentum 0.9."""


def longer_training(evidence: Evidence, layer: Layer) -> str | None:
    """The advice to train for longer, with the number of updates where it is known."""
    more = evidence.diagnosis.remedies.further_updates
    if more is not None:
        made = evidence.training.made
        in_all = "" if made is None else f", {made + more} in all"
        silent = evidence.diagnosis.remedies.silent_updates
        calm = f", and without a warning after {silent}" if silent and silent > more else ""
        return (
            f"Or train for at least {more} more updates{in_all}: with the weights as they are now, "
            f"eval mode passes then{calm}."
        )
    until = updates_until(layer.update_rate, SETTLED)
    if until is None or layer.momentum is None:
        return None
    return (
        f"Or train for more updates: at {words.memory(evidence, layer, layer.update_rate or 0.0)} "
        f"the initial value falls to 1 % only after {until}."
    )


def declaration(evidence: Evidence, layer: Layer) -> str | None:
    """The advice to declare the updates of the real training, if they are not declared yet.

    None for a layer that no number of updates moves.
    """
    if evidence.settings.planned_updates is not None or layer.update_rate == 0.0:
        return None
    more, made = evidence.diagnosis.remedies.further_updates, evidence.training.made
    known = more is not None and made is not None
    many = f"at least {(made or 0) + (more or 0)} updates" if known else "many more updates"
    code = "@pytest.mark.bn_consistency(planned_updates=...)"
    if not evidence.steps:
        code = "check(model, batch, steps=0, planned_updates=...)"
    if evidence.steps:
        steps = words.plural(evidence.steps, "step")
        may_be = f"The real training may be longer than this check's {steps}: if it makes {many}"
    else:
        may_be = f"If the real training makes {many}"
    return (
        f"{may_be}, declare how many, and the check judges the "
        f"statistics as they will be then:\n{code}"
    )


def shorter_memory(evidence: Evidence, layer: Layer) -> str | None:
    """The advice of a larger update rate: the one that sufficed here, or the common one."""
    rate = layer.update_rate
    rates = evidence.diagnosis.remedies.sufficient_rates
    enough = {steps: r for steps, r in rates.items() if r is not None}
    if enough:
        pairs = list(enough.items())
        one_for_all = len(set(enough.values())) == 1
        advice = [_enough(evidence, layer, *pair) for pair in (pairs[:1] if one_for_all else pairs)]
        if evidence.training.made not in enough:
            none = "momentum" if layer.stock else "update rate"
            advice.insert(0, f"no {none} would have sufficed for {_made(evidence)}")
        code = set_rate(evidence, layer, next(iter(enough.values())))
        return f"Or shorten the memory: {', '.join(advice)}.\n{code}"
    if rate is None or not 0.0 < rate < COMMON_RATE:
        return None
    until = updates_until(COMMON_RATE, SETTLED)
    return (
        f"Or shorten the memory: {words.memory(evidence, layer, COMMON_RATE)} forgets the initial "
        f"value in {until} updates:\n{set_rate(evidence, layer, COMMON_RATE)}"
    )


def set_rate(evidence: Evidence, layer: Layer, rate: float) -> str:
    """Code that gives a layer the update rate."""
    if layer.stock:
        return evidence.dialect.set_momentum(layer.type, rate)
    return (
        f"# where {layer.type} updates its running statistics\n"
        f"running = {1.0 - rate:g} * running + {rate:g} * batch"
    )


def _enough(evidence: Evidence, layer: Layer, steps: int, rate: float) -> str:
    """``momentum 0.8 should suffice for 20 steps``."""
    momentum = words.memory(evidence, layer, rate)
    if steps > (evidence.training.made or 0):
        return f"{momentum} should suffice for {words.plural(steps, 'step')}"
    return f"{momentum} would have sufficed for {_made(evidence)}"


def _made(evidence: Evidence) -> str:
    """``the 20 steps of this check``."""
    if evidence.steps:
        return f"the {words.plural(evidence.steps, 'step')} of this check"
    return words.plural(evidence.training.made or 0, "update")


def recalibration(evidence: Evidence) -> str | None:
    """The advice to re-estimate the statistics, where that cures the prediction."""
    if evidence.recalibrated is None or evidence.fails(evidence.recalibrated):
        return None
    result = words.how_good(evidence.recalibrated)
    tried = f" (tried here: {result})" if result else ""
    return (
        f"Or re-estimate the statistics before predicting{tried}:\n{evidence.dialect.recalibrate}"
    )
