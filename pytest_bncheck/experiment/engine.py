"""The experiment: train briefly, measure both modes, judge, leave everything as it was.

Knows neither pytest nor a framework.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pytest_bncheck import rules
from pytest_bncheck.adapters.base import (
    Adapter,
    Mode,
    Replicated,
    Sampling,
    Streaming,
    TooFewValues,
    Watching,
)
from pytest_bncheck.adapters.random_state import seeded
from pytest_bncheck.evidence import Evidence
from pytest_bncheck.experiment import conclude, culprits, remedies
from pytest_bncheck.experiment.panel import Panel, joined
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

Progress: TypeAlias = Callable[[int, int, bool, Callable[[], float]], None]
"""Told after each training step: steps so far, the most there can be, whether all of them will be
made, and how to get the loss."""

AUTO_FIRST, AUTO_EVERY, AUTO_LAST = 20, 10, 150
"""`steps="auto"`: the first look, the steps between looks, the end."""

FORGOTTEN = 1e-3
"""Distortion by what is left of the initial value that changes no prediction worth a pass."""

DRAWS = 8
"""Passes that stand for the mean over dropout's random numbers, where one draw looks off."""


def run(
    model: Any,
    batches: Sequence[Any],
    settings: Settings,
    recipe: Recipe,
    adapter: type[Adapter],
    progress: Progress | None = None,
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
    progress
        Told about each training step.

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
    with seeded(settings.seed), _let_go(adapter(model, batches, recipe, settings.device)) as lab:
        lab.save()
        finished = False
        try:
            evidence = _experiment(lab, len(batches), settings, clock, progress)
            finished = True
        finally:
            lab.restore(keep_weights=finished and not settings.restore)
        findings, suppressed = rules.find(evidence)
        return conclude.report(evidence, findings, suppressed, lab, clock.stop())


@contextmanager
def _let_go(lab: Adapter) -> Iterator[Adapter]:
    """Free what a check holds at its end.

    An adapter's parts refer to each other, so gradients and optimizer would stay until Python
    looks for cycles, three copies of a model's parameters.
    """
    try:
        yield lab
    finally:
        vars(lab).clear()


def _experiment(
    lab: Adapter, batches: int, settings: Settings, clock: _Clock, progress: Progress | None
) -> Evidence:
    __tracebackhide__ = True
    lab.expected_steps = AUTO_LAST if settings.steps == "auto" else settings.steps
    try:
        with _during("entering training mode"):
            lab.begin()
        _train(lab, batches, settings, progress)
        clock.lap("train")
        panel = Panel.whole(lab, batches, len(lab.losses))
        evidence = _measure(lab, panel, settings)
    except TooFewValues as refusal:
        return _refused(lab, settings, refusal.layer)
    clock.lap("measure")
    _diagnose(lab, panel, evidence)
    clock.lap("diagnose")
    return evidence


# training -------------------------------------------------------------------------------------


def _train(lab: Adapter, batches: int, settings: Settings, progress: Progress | None) -> None:
    __tracebackhide__ = True
    steps, planned = lab.expected_steps, settings.planned_updates
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
        if step == 0:
            _refuse_numbers(lab)
        look = settings.steps == "auto" and _is_look(step + 1)
        settled = look and _agree(lab, _settled(lab))
        if progress is not None:
            most = step + 1 if settled else steps
            progress(step + 1, most, settings.steps != "auto", lambda: lab.losses[-1])
        if settled:
            return


def _refuse_numbers(lab: Adapter) -> None:
    """Raise an InputError if what the model is fed explains a loss that is not finite."""
    loss = lab.losses[0]
    place = None if math.isfinite(loss) else lab.not_finite(0)
    if place is not None:
        raise InputError(f"{place}, and the first loss is {loss:g}; keep such samples out")


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
    if any(map(_hides_its_start, layers, lab.calls.training, counted)):
        return False
    # The step's batch statistics come from the weights that `before` belongs to.
    distortion = running.distortion(before, batch, eps, counted)
    return bool((distortion <= verdict.DEGRADED_DISTORTION).all())


def _hides_its_start(layer: Layer, calls: int, readable: Any) -> bool:
    """Whether rounding hides all changes, as in half precision, and the start is not forgotten."""
    left = running.remaining_weight(layer.update_rate, calls)
    return bool(calls and layer.update_rate and not readable.any() and left > running.SETTLED)


# measuring ------------------------------------------------------------------------------------


def _measure(lab: Adapter, panel: Panel, settings: Settings) -> Evidence:
    __tracebackhide__ = True
    streams = lab.streams if isinstance(lab, Streaming) else {}
    replicas = lab.gather() if isinstance(lab, Replicated) else []
    watching = lab if isinstance(lab, Watching) else None
    with _during("the pass with batch statistics"):
        found = lab.run(0, Mode.BATCH_STATISTICS)
    train, batch, calls_in_pass = found.prediction, found.statistics, found.calls
    with _during("the pass in eval mode"):
        evaluated = lab.predict(0)
    half = lab.predict_half(0) if isinstance(lab, Sampling) else None
    noisy = batch
    if lab.stochastic:
        with _during("the pass in training mode"):
            noisy = lab.run(0, Mode.TRAINING).statistics
    with _during("the pass on the training path"):
        path = lab.run(0, Mode.TRAINING_PATH).prediction
    stop, layers = lab.read(), lab.layers()
    if lab.stochastic and not _agree(lab, _fit(stop, noisy, layers)):
        more = [lab.run(0, Mode.TRAINING).statistics for _ in range(DRAWS - 1)]
        noisy = running.mean([noisy, *more])
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
        first=train,
        half=half,
        idle=watching.idle if watching else [],
        asleep=watching.asleep if watching else [],
        sticky=watching.sticky(0) if watching else [],
        unsaved=watching.unsaved if watching else [],
        noise=lab.noise,
        stochastic=lab.stochastic,
        history=history,
        streams=streams,
        replicas=replicas,
        program=lab.program,
    )
    fits = not evidence.takes_another_path and _fit(stop, batch, layers)
    if not lab.stochastic and not _agree(lab, fits or not running.is_possible(stop)):
        # Running statistics come from the training path, and are measured against it.
        evidence.noisy_batch = lab.run(0, Mode.TRAINING).statistics
    _repeat(lab, evidence)
    if panel.size > 1:
        _measure_stream(lab, panel, evidence)
    elif isinstance(lab, Replicated) and lab.follows and train is not None:
        _take_mean(panel, evidence, [train], [batch], [evidence.noisy_batch])
    if settings.planned_updates is not None:
        _project(panel, evidence)
    return evidence


def _fit(statistics: Statistics, batch: Statistics, layers: Sequence[Layer]) -> bool:
    distortion = running.distortion(statistics, batch, [layer.eps for layer in layers])
    return bool((distortion <= verdict.DEGRADED_DISTORTION).all())


def _repeat(lab: Adapter, evidence: Evidence) -> None:
    """Once more in eval mode, and a look at its calls, if it is random or minds its batch.

    A rare random event can miss the whole passes and hit a half, so that is repeated too.
    """
    half = evidence.half_gap
    evaluated = evidence.eval
    if evaluated is None or not (evaluated.random or (half is not None and half > lab.noise)):
        return
    evidence.again = lab.predict(0)
    if evaluated.random and evidence.half is not None and isinstance(lab, Sampling):
        evidence.half_again = lab.predict_half(0)
    if isinstance(lab, Watching):
        evidence.traces = lab.trace(0)


def _measure_stream(lab: Adapter, panel: Panel, evidence: Evidence) -> None:
    """Measure each of the first mini-batches as it was trained on."""
    own, clean = [], []
    for k in range(panel.size):
        found = lab.run(k, Mode.BATCH_STATISTICS)
        assert found.prediction is not None
        own.append(found.prediction)
        clean.append(found.statistics)
    noisy = clean
    if lab.stochastic:
        noisy = [lab.run(k, Mode.TRAINING).statistics for k in range(panel.size)]
    _take_mean(panel, evidence, own, clean, noisy)


def _take_mean(
    panel: Panel,
    evidence: Evidence,
    own: Sequence[Prediction],
    clean: Sequence[Statistics],
    noisy: Sequence[Statistics],
) -> None:
    """Take the mean over several mini-batches as what the statistics should be.

    A single mini-batch of a stream differs from its neighbours, so a gap is measured from eval
    mode with the statistics averaged over up to 8 of them at frozen weights. Loss and accuracy of
    training mode are those on the mini-batches as they were trained on.
    """
    evidence.stream, evidence.batches = True, noisy
    evidence.batch, evidence.noisy_batch = running.mean(clean), running.mean(noisy)
    evidence.eval = panel.predict()
    evidence.settled = panel.predict_with(evidence.batch, exact=True)
    evidence.own = joined(own)
    evidence.train = joined(
        [
            dataclasses.replace(
                part, loss=mine.loss, accuracy=mine.accuracy, constant_loss=mine.constant_loss
            )
            for part, mine in zip(evidence.settled.parts or [evidence.settled], own, strict=True)
        ]
    )


def _project(panel: Panel, evidence: Evidence) -> None:
    """Eval mode with the statistics that the planned number of updates would lead to."""
    kept = evidence.kept_until_planned
    evidence.projected_statistics = running.project(evidence.stop, evidence.noisy_batch, kept)
    evidence.projected = panel.predict_with(evidence.projected_statistics)


def _diagnose(lab: Adapter, panel: Panel, evidence: Evidence) -> None:
    """More passes, only if something is off: converged, replaced and debiased statistics."""
    gap = evidence.gap(evidence.judged, evidence.train)
    if gap is None or not evidence.layers or evidence.is_random:
        return
    trial = panel.only(evidence.typical)
    if evidence.stream:
        _look_at_mini_batches(lab, panel, trial, evidence)
    if evidence.cured_by_planning:
        evidence.further_updates = remedies.further_updates(evidence.tried, trial.predict_with)
    if not gap <= verdict.DEGRADED_GAP:
        evidence.recalibrated = panel.predict_with(evidence.noisy_batch)
        same = not lab.dialect.unbiased and evidence.batch is evidence.noisy_batch
        known = evidence.recalibrated if same else evidence.settled
        evidence.replaced = known or panel.predict_with(evidence.batch, exact=True)
        if evidence.cured_by_converging:
            _attribute(lab, trial, evidence)
    if evidence.measured_verdict in ("broken", "degraded") and evidence.steps:
        evidence.debiased = _without_initial_value(trial, evidence)
    if evidence.bn_verdict == "broken" and evidence.steps:
        remedies.work_out(evidence, trial.predict_with)


def _without_initial_value(trial: Panel, evidence: Evidence) -> Prediction | None:
    """Eval mode without what is left of the initial value; a pass only if that is something."""
    clean = running.debias(evidence.stop, evidence.start, evidence.initial_weights)
    left = running.distortion(evidence.stop, clean, evidence.eps)
    return evidence.tried.eval if (left <= FORGOTTEN).all() else trial.predict_with(clean)


def _look_at_mini_batches(lab: Adapter, panel: Panel, trial: Panel, evidence: Evidence) -> None:
    """Mix the mini-batches if only training mode is right on them; let each be the last one."""
    right = panel.size == 1 or _agree(lab, not evidence.fails(evidence.settled))
    if not right and isinstance(lab, Sampling):
        dealt = lab.predict_remixed(panel.size)
        evidence.remixed = joined(dealt) if dealt else None
    if evidence.forgetful:
        kept = evidence.kept(1)
        evidence.after_each = [
            trial.predict_with(running.project(evidence.stop, batch, kept))
            for batch in evidence.batches
        ]


def _attribute(lab: Adapter, trial: Panel, evidence: Evidence) -> None:
    """Each layer's share in the gap, and what is left of the gap without the largest."""
    with trial.statistics(evidence.judged_statistics):
        seen = lab.read(exact=True)

    def react(statistics: Statistics, direction: Mapping[str, Any]) -> Any:
        with trial.statistics(statistics, exact=True):
            return trial.slopes(direction)

    culprits.attribute(evidence, seen, react, lambda s: trial.predict_with(s, exact=True))


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


def _agree(lab: Adapter, value: bool) -> bool:
    """Whether it is so in every process that trains the same model."""
    return lab.agree(value) if isinstance(lab, Replicated) else value


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
