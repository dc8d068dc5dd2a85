"""The experiment: train briefly, measure both modes, judge, leave everything as it was.

Knows neither pytest nor a framework.
"""

from __future__ import annotations

import contextvars
import dataclasses
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from pytest_bncheck import rules
from pytest_bncheck.adapters.base import (
    Adapter,
    Rehearsing,
    Stateful,
    TooFewValues,
)
from pytest_bncheck.adapters.hints import given
from pytest_bncheck.adapters.random_state import seeded
from pytest_bncheck.adapters.undo import Ending
from pytest_bncheck.errors import users_error
from pytest_bncheck.evidence import (
    Evidence,
    Judgement,
    Passes,
    Training,
)
from pytest_bncheck.evidence.past import past
from pytest_bncheck.experiment import conclude
from pytest_bncheck.experiment.clock import Clock
from pytest_bncheck.experiment.diagnose import diagnose
from pytest_bncheck.experiment.measure import agree, during, measure
from pytest_bncheck.experiment.panel import Panel
from pytest_bncheck.experiment.states import PROBED, Probes, probe
from pytest_bncheck.maths import distances, predictions, running, verdict
from pytest_bncheck.report import Report
from pytest_bncheck.types import (
    Calls,
    InputError,
    Layer,
    Recipe,
    Settings,
)

Progress: TypeAlias = Callable[[int, int, bool, Callable[[], float]], None]
"""Told after each training step: steps so far, the most there can be, whether all of them will be
made, and how to get the loss."""

_ALONE = threading.RLock()
"""Held by the thread that makes a check; a check may make another."""

AUTO_FIRST, AUTO_EVERY, AUTO_LAST = 20, 10, 150
"""`steps="auto"`: the first look, the steps between looks, the end."""


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
    if not _ALONE.acquire(blocking=False):
        raise InputError(
            "another thread of this process is making a check; both would train and put back the "
            "same switches and random state, so make one after the other"
        )
    try:
        within = contextvars.copy_context()  # what user code sets in it ends with it
        return within.run(_run, model, batches, settings, recipe, adapter, progress)
    except BaseException as error:
        own = users_error(error)
        if own is error:
            del own  # else the error would hold this frame, and its frame the error
            raise
    finally:
        _ALONE.release()
    try:
        raise own
    finally:
        del own


def _run(
    model: Any,
    batches: Sequence[Any],
    settings: Settings,
    recipe: Recipe,
    adapter: type[Adapter],
    progress: Progress | None,
) -> Report:
    __tracebackhide__ = True
    if not batches:
        raise InputError("batches: there is none; at least one is needed")
    clock = Clock()
    with (
        given(recipe),
        seeded(settings.seed),
        _freed(adapter(model, batches, recipe, settings.device)) as subject,
    ):
        subject.expected_steps = AUTO_LAST if settings.steps == "auto" else settings.steps
        subject.save()
        finished = False
        ending = Ending(lambda: subject.restore(keep_weights=finished and not settings.restore))
        with ending, ending:
            evidence = _experiment(subject, len(batches), settings, clock, progress)
            finished = True
        return conclude.report(evidence, rules.find(evidence), subject, clock.stop())


@contextmanager
def _freed(adapter: Adapter) -> Iterator[Adapter]:
    """Free what a check holds at its end.

    An adapter's parts refer to each other, so gradients and optimizer would stay until Python
    looks for cycles, three copies of a model's parameters.
    """
    try:
        yield adapter
    finally:
        vars(adapter).clear()


def _experiment(
    adapter: Adapter, batches: int, settings: Settings, clock: Clock, progress: Progress | None
) -> Evidence:
    __tracebackhide__ = True
    probes: Probes = {}
    try:
        with during("entering training mode"):
            adapter.begin()
        _train(adapter, batches, settings, probes, progress)
        clock.lap("train")
        panel, measured = _measured(adapter, batches, settings, probes)
        while _is_unripe(adapter, panel, measured):
            _resume(adapter)
            _train(adapter, batches, settings, probes, progress)
            panel, measured = _measured(adapter, batches, settings, probes)
    except TooFewValues as refusal:
        return _refused(adapter, settings, refusal.layer)
    clock.lap("measure")
    training, passes = measured.training, measured.passes
    compared, diagnosis = diagnose(adapter, panel, measured)
    clock.lap("diagnose")
    return Evidence(
        settings=settings,
        training=training,
        passes=passes,
        compared=compared,
        dialect=adapter.dialect,
        diagnosis=diagnosis,
        offers=adapter.offers,
        program=adapter.program,
    )


def _measured(
    adapter: Adapter, batches: int, settings: Settings, probes: Probes
) -> tuple[Panel, Judgement]:
    __tracebackhide__ = True
    panel = Panel.first(adapter, batches, len(adapter.losses))
    training, passes = measure(adapter, panel, settings, probes)
    return panel, Judgement(settings, training, passes, passes.compared())


def _is_unripe(adapter: Adapter, panel: Panel, measured: Judgement) -> bool:
    """Whether an automatic training ended early, and eval mode decides otherwise than it could.

    Small distortions, and state of which only a pass knows, can still matter then. Where more
    updates are planned than are made, what clearly fails is projected to fail; all other gaps, such
    as the floor of few values, change while the loss still falls.
    """
    settings, training = measured.settings, measured.training
    planned = settings.planned_updates
    last = AUTO_LAST if planned is None else min(AUTO_LAST, planned)
    if settings.steps != "auto" or training.replicas:
        return False
    if not AUTO_FIRST <= training.steps < last or training.ended or measured.inconclusive:
        return False
    if not measured.layers or measured.passes.is_random or not measured.looks_off:
        return False
    settled = panel.predict_with(measured.passes.noisy_batch)
    compared = measured.passes.compared(settled)
    judged = dataclasses.replace(measured, compared=compared)
    if planned is None:
        return judged.conclusive_verdict in ("broken", "degraded")
    return judged.conclusive_verdict != "broken"


def _resume(adapter: Adapter) -> None:
    """Go back to training; running state that a pass found is found again after it."""
    if isinstance(adapter, Stateful):
        adapter.adopt([])
    adapter.resume()


# training -------------------------------------------------------------------------------------


def _train(
    adapter: Adapter, batches: int, settings: Settings, probes: Probes, progress: Progress | None
) -> None:
    __tracebackhide__ = True
    steps, planned = adapter.expected_steps, settings.planned_updates
    if planned is not None and settings.steps != "auto" and planned < settings.steps:
        raise InputError(
            f"planned_updates: {planned} is less than the {settings.steps} steps of the check; "
            "it counts all updates of the real training"
        )
    if settings.steps == "auto" and planned is not None:
        steps = min(steps, planned)
    for step in range(len(adapter.losses), steps):
        look = settings.steps == "auto" and _is_look(step + 1)
        if isinstance(adapter, Rehearsing) and (look or step + 1 == steps):
            with during(f"the pass before training step {step + 1} of {steps}"):
                adapter.rehearse(step % batches)
        with during(f"training step {step + 1} of {steps}"):
            adapter.train_step(step % batches)
        if step == 0:
            _refuse_numbers(adapter)
        moving = not probes or any(probes.values())  # else each look is a transfer for nothing
        if step + 1 in PROBED and step + 1 < steps and moving and isinstance(adapter, Stateful):
            with during("a pass in training mode"):
                probes[step + 1] = probe(adapter)
        enough = look and agree(adapter, _is_enough(adapter, planned))
        if progress is not None:
            most = step + 1 if enough else steps
            progress(step + 1, most, settings.steps != "auto", lambda: adapter.losses[-1])
        if enough:
            return


def _refuse_numbers(adapter: Adapter) -> None:
    """Raise an InputError if what the model is fed explains a loss that is not finite."""
    loss = adapter.losses[0]
    place = None if math.isfinite(loss) else adapter.not_finite(0)
    if place is not None:
        raise InputError(f"{place}, and the first loss is {loss:g}; keep such samples out")


def _is_look(step: int) -> bool:
    return step >= AUTO_FIRST and (step - AUTO_FIRST) % AUTO_EVERY == 0


def _is_enough(adapter: Adapter, planned: int | None) -> bool:
    """Whether further steps would tell nothing more.

    They do not where nothing runs along. Else the loss has to fall and the statistics to settle,
    which need not settle where they are projected to the `planned` updates.
    """
    losses = adapter.losses
    if not adapter.layers() and isinstance(adapter, Stateful) and not adapter.states():
        return True
    if not predictions.achieved(losses[0], losses[-1]):
        return False
    return planned is not None or _has_converged(adapter)


def _has_converged(adapter: Adapter) -> bool:
    """Whether the last step's own batch statistics distort no layer."""
    losses, layers = adapter.losses, adapter.layers()
    steps = len(losses)
    before, after = adapter.history[-2:]
    calls = [count / steps for count in adapter.calls.training]
    rows = list(zip(layers, calls, strict=True))
    kept: Sequence[float] = [
        running.remaining_share(layer.update_rate, c * (steps - 1), c) for layer, c in rows
    ]
    if adapter.kept:
        kept = adapter.kept[-1]
    batch = running.recover_batch(before, after, kept)
    eps = [layer.eps for layer in layers]
    rates = [
        1.0 / max(c * steps, 1.0) if layer.update_rate is None else layer.update_rate
        for layer, c in rows
    ]
    counted = running.readable(after, batch, eps, rates, [layer.resolution for layer in layers])
    if any(map(_hides_its_start, layers, adapter.calls.training, counted)):
        return False
    # The step's batch statistics come from the weights that `before` belongs to.
    distortion = distances.distortion(before, batch, eps, counted)
    return bool((distortion <= verdict.USUAL_DISTORTION).all())


def _hides_its_start(layer: Layer, calls: int, readable: Any) -> bool:
    """Whether rounding hides all changes, as in half precision, and the start is not forgotten."""
    left = running.remaining_weight(layer.update_rate, calls)
    return bool(calls and layer.update_rate and not readable.any() and left > running.SETTLED)


# around it ------------------------------------------------------------------------------------


def _refused(adapter: Adapter, settings: Settings, layer: str) -> Evidence:
    """What is known where a layer refused to train on one value per channel."""
    now, layers = adapter.read(), adapter.layers()
    nothing = Calls((0,) * len(layers), (0,) * len(layers), (None,) * len(layers))
    before = None
    if settings.steps == 0:
        used, dialect = [True] * len(layers), adapter.dialect
        before = past(layers, used, now, now, nothing.values, unbiased=dialect.unbiased)
    training = Training(layers, adapter.batch_size, [], nothing, [now], now, past=before)
    passes = Passes(now, now, nothing)
    return Evidence(
        settings=settings,
        training=training,
        passes=passes,
        compared=passes.compared(),
        dialect=adapter.dialect,
        offers=adapter.offers,
        too_few=layer,
    )
