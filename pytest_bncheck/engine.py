"""The experiment: train briefly, measure both modes, judge, leave everything as it was.

Knows neither pytest nor a framework.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pytest_bncheck import remedies, result, rules
from pytest_bncheck.adapters.base import Adapter, TooFewValues
from pytest_bncheck.adapters.random_state import seeded
from pytest_bncheck.evidence import Evidence
from pytest_bncheck.maths import predictions, running, verdict
from pytest_bncheck.report import Report, Seconds
from pytest_bncheck.types import (
    Calls,
    InputError,
    Layer,
    Prediction,
    Recipe,
    Settings,
    Statistics,
)

AUTO_FIRST, AUTO_EVERY, AUTO_LAST = 20, 10, 150
"""`steps="auto"`: the first look, the steps between looks, the end."""

DRAWS = 8
"""Passes that stand for the mean over dropout's random numbers, where one draw looks off."""

STREAM = 8
"""Mini-batches at frozen weights that stand for a stream."""


def run(
    model: Any,
    batches: Sequence[Any],
    settings: Settings,
    recipe: Recipe,
    adapter: type[Adapter],
) -> Report:
    """Make one check.

    Parameters
    ----------
    model, batches
        What the user handed over; see `Adapter`.
    settings, recipe
        Options, and the user's own parts of the training.
    adapter
        The adapter class for the model's framework.

    Returns
    -------
    Report
        Whatever was found; findings never raise.

    Raises
    ------
    InputError
        If something handed over cannot be used.
    Exception
        What the user's code raised, with its own traceback. The model is as found even then.
    """
    __tracebackhide__ = True
    if not batches:
        raise InputError("batches: there is none; at least one is needed")
    clock = _Clock()
    with seeded(settings.seed):
        lab = adapter(model, batches, recipe, settings.device)
        lab.save()
        finished = False
        try:
            evidence = _experiment(lab, len(batches), settings, clock)
            finished = True
        finally:
            lab.restore(keep_weights=finished and not settings.restore)
    findings, suppressed = rules.find(evidence)
    return result.report(evidence, findings, suppressed, lab, clock.stop())


def _experiment(lab: Adapter, batches: int, settings: Settings, clock: _Clock) -> Evidence:
    __tracebackhide__ = True
    try:
        with _during("entering training mode"):
            lab.begin()
        _train(lab, batches, settings)
        clock.lap("train")
        evidence = _measure(lab, batches, settings)
    except TooFewValues as refusal:
        return _refused(lab, settings, refusal.layer)
    clock.lap("measure")
    _diagnose(lab, evidence)
    clock.lap("diagnose")
    return evidence


# training -------------------------------------------------------------------------------------


def _train(lab: Adapter, batches: int, settings: Settings) -> None:
    __tracebackhide__ = True
    steps = AUTO_LAST if settings.steps == "auto" else settings.steps
    planned = settings.planned_updates
    if planned is not None and settings.steps != "auto" and planned < settings.steps:
        raise InputError(
            f"planned_updates: {planned} is less than the {settings.steps} steps of the check; "
            "it counts all updates of the real training"
        )
    if settings.steps == "auto" and planned is not None:
        steps = min(steps, planned)
    for step in range(steps):
        with _during(f"training step {step + 1} of {steps}"):
            lab.train_step(step % batches)
        if settings.steps == "auto" and _is_look(step + 1) and _settled(lab):
            return


def _is_look(step: int) -> bool:
    return step >= AUTO_FIRST and (step - AUTO_FIRST) % AUTO_EVERY == 0


def _settled(lab: Adapter) -> bool:
    """Whether the loss fell and the last step's own batch statistics distort no layer."""
    losses = lab.losses
    if not predictions.achieved(losses[0], losses[-1]):
        return False
    layers, steps = lab.layers(), len(losses)
    before, after = lab.history[-2:]
    calls = [count / steps for count in lab.calls.training]
    rates = [
        1.0 / max(c * steps, 1.0) if layer.update_rate is None else layer.update_rate
        for layer, c in zip(layers, calls, strict=True)
    ]
    weights = [(1.0 - a) ** c if a > 0 else 1.0 for a, c in zip(rates, calls, strict=True)]
    batch = running.recover_batch(before, after, weights)
    eps = [layer.eps for layer in layers]
    counted = running.readable(after, batch, eps, rates, [layer.resolution for layer in layers])
    # The step's batch statistics come from the weights that `before` belongs to.
    distortion = running.distortion(before, batch, eps, counted)
    return bool((distortion <= verdict.DEGRADED_DISTORTION).all())


# measuring ------------------------------------------------------------------------------------


def _measure(lab: Adapter, batches: int, settings: Settings) -> Evidence:
    __tracebackhide__ = True
    with _during("the pass with batch statistics"):
        train, batch, calls_in_pass = lab.predict_with_batch_statistics(0)
    with _during("the pass in eval mode"):
        evaluated = lab.predict(0)
    half = lab.predict_half(0)
    noisy = batch
    if lab.stochastic:
        with _during("the pass in training mode"):
            noisy = lab.batch_statistics(0)
    with _during("the pass on the training path"):
        path = lab.predict_on_training_path(0)
    stop, layers = lab.read(), lab.layers()
    if lab.stochastic and not _fit(stop, noisy, layers):
        noisy = _mean([noisy, *(lab.batch_statistics(0) for _ in range(DRAWS - 1))])
    history = lab.history
    evidence = Evidence(
        settings=settings,
        dialect=lab.dialect,
        batch_size=lab.batch_size,
        layers=layers,
        active=[count > 0 for count in calls_in_pass.training],
        calls=lab.calls,
        calls_in_pass=calls_in_pass,
        losses=lab.losses,
        start=history[0],
        stop=stop,
        batch=batch,
        noisy_batch=noisy,
        train=train,
        eval=evaluated,
        path=path,
        half=half,
        idle=lab.idle,
        asleep=lab.asleep,
        sticky=lab.sticky(0),
        noise=lab.noise,
        stochastic=lab.stochastic,
        history=history,
    )
    _repeat(lab, evidence)
    if batches > 1:
        _measure_stream(lab, batches, evidence)
    if settings.planned_updates is not None:
        _project(lab, evidence)
    return evidence


def _fit(statistics: Statistics, batch: Statistics, layers: Sequence[Layer]) -> bool:
    distortion = running.distortion(statistics, batch, [layer.eps for layer in layers])
    return bool((distortion <= verdict.DEGRADED_DISTORTION).all())


def _mean(some: Sequence[Statistics]) -> Statistics:
    """The mean of several batches' statistics: what a running average of them settles around."""
    means = zip(*(each.mean for each in some), strict=True)
    variances = zip(*(each.var for each in some), strict=True)
    return Statistics(
        tuple(np.mean(layer, axis=0) for layer in means),
        tuple(np.mean(layer, axis=0) for layer in variances),
    )


def _repeat(lab: Adapter, evidence: Evidence) -> None:
    """Once more in eval mode, and a look at its calls, if it is random or minds its batch.

    A rare random event can miss the whole passes and hit a half, so that is repeated too.
    """
    half = evidence.half_gap
    evaluated = evidence.eval
    if evaluated is None or not (evaluated.random or (half is not None and half > lab.noise)):
        return
    evidence.again = lab.predict(0)
    if evaluated.random and evidence.half is not None:
        evidence.half_again = lab.predict_half(0)
    evidence.traces = lab.trace(0)


def _measure_stream(lab: Adapter, batches: int, evidence: Evidence) -> None:
    """Take the mean over several mini-batches as what the statistics should be.

    A single mini-batch of a stream differs from its neighbours, so the reference prediction is
    eval mode with the statistics averaged over up to 8 of them at frozen weights.
    """
    evidence.stream = True
    mean = _mean([lab.batch_statistics(k) for k in range(min(batches, STREAM))])
    evidence.batch = evidence.noisy_batch = mean
    evidence.train = _predict_with(lab, mean, exact=True)
    evidence.path = None


def _project(lab: Adapter, evidence: Evidence) -> None:
    """Eval mode with the statistics that the planned number of updates would lead to."""
    planned = evidence.settings.planned_updates
    if planned is not None and planned < evidence.steps:
        raise InputError(
            f"planned_updates: {planned} is less than the {evidence.steps} steps of the check"
        )
    shares = [
        running.remaining_share(layer.update_rate, done, evidence.further(layer, done))
        for layer, done in zip(evidence.layers, evidence.calls.training, strict=True)
    ]
    evidence.projected_statistics = running.project(evidence.stop, evidence.noisy_batch, shares)
    evidence.projected = _predict_with(lab, evidence.projected_statistics)


def _diagnose(lab: Adapter, evidence: Evidence) -> None:
    """More passes, only if something is off: converged, replaced and debiased statistics."""
    gap = evidence.gap(evidence.judged, evidence.train)
    if gap is None or not evidence.layers or evidence.is_random:
        return
    if not gap <= verdict.DEGRADED_GAP:
        evidence.recalibrated = _predict_with(lab, evidence.noisy_batch)
        evidence.replaced = _predict_with(lab, evidence.batch, exact=True)
    if evidence.measured_verdict in ("broken", "degraded") and evidence.steps:
        clean = running.debias(evidence.stop, evidence.start, evidence.initial_weights)
        evidence.debiased = _predict_with(lab, clean)
    if evidence.bn_verdict == "broken" and evidence.steps:

        def predict(statistics: Statistics) -> Prediction:
            return _predict_with(lab, statistics)

        evidence.further_updates = remedies.further_updates(evidence, predict)
        evidence.sufficient_rate = remedies.sufficient_rate(evidence, predict)


def _predict_with(lab: Adapter, statistics: Statistics, *, exact: bool = False) -> Prediction:
    """Eval mode with other running statistics; the model's own are put back."""
    own = lab.read()
    lab.write(statistics, exact=exact)
    try:
        return lab.predict(0)
    finally:
        lab.write(own)


def _refused(lab: Adapter, settings: Settings, layer: str) -> Evidence:
    """What is known where a layer refused to train on one value per channel."""
    now, layers = lab.read(), lab.layers()
    nothing = Calls((0,) * len(layers), (0,) * len(layers), (None,) * len(layers))
    return Evidence(
        settings=settings,
        dialect=lab.dialect,
        batch_size=lab.batch_size,
        layers=layers,
        active=[False] * len(layers),
        calls=nothing,
        calls_in_pass=nothing,
        losses=[],
        start=now,
        stop=now,
        batch=now,
        noisy_batch=now,
        too_few=layer,
    )


# around it --------------------------------------------------------------------------------------


@contextmanager
def _during(what: str) -> Iterator[None]:
    """Say at the end of a user's traceback which of the plugin's calls it came from."""
    __tracebackhide__ = True
    try:
        yield
    except (InputError, TooFewValues):
        raise
    except Exception as error:
        error.add_note(f"pytest-bncheck: raised in {what}.")
        raise


@dataclass
class _Clock:
    """Wall time of the parts of a check."""

    begin: float = field(default_factory=time.perf_counter)
    laps: dict[str, float] = field(default_factory=dict)

    def lap(self, name: str) -> None:
        self.laps[name] = time.perf_counter() - self.begin - sum(self.laps.values())

    def stop(self) -> Seconds:
        return Seconds(**self.laps, total=time.perf_counter() - self.begin)
