"""The passes of every check: what both modes give after the training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pytest_bncheck.adapters.base import (
    Adapter,
    Mode,
    Rehearsing,
    Replicated,
    Sampling,
    Stateful,
    Streaming,
    TooFewValues,
    Watching,
)
from pytest_bncheck.adapters.random_state import fingerprint
from pytest_bncheck.errors import add_note
from pytest_bncheck.evidence import MiniBatches, Passes, Projection, Training
from pytest_bncheck.evidence.passes import PATH_GAP, gap_of_half, gap_of_path
from pytest_bncheck.evidence.past import Past, past
from pytest_bncheck.experiment import states
from pytest_bncheck.experiment.panel import Panel, averaged, joined
from pytest_bncheck.experiment.reference import (
    chance_explains,
    decides_worse_than_all,
    draw,
    reference_of,
)
from pytest_bncheck.maths import distances, predictions, running
from pytest_bncheck.maths.verdict import USUAL_DISTORTION, USUAL_GAP
from pytest_bncheck.types import (
    Calls,
    InputError,
    Layer,
    Modes,
    Prediction,
    RunningState,
    Settings,
    Statistics,
    Trace,
)

DRAWS = 8
"""Passes that stand for the mean over dropout's random numbers, where one draw looks off."""


def measure(
    adapter: Adapter, panel: Panel, settings: Settings, probes: states.Probes
) -> tuple[Training, Passes]:
    """Read what the training logged, and run the model in both modes.

    Parameters
    ----------
    probes
        Rates of running state that were measured during the training.

    Raises
    ------
    TooFewValues
        If a layer refuses a single value per channel.
    """
    __tracebackhide__ = True
    # Before any pass, while every process is at the end of its training.
    streams = adapter.streams if isinstance(adapter, Streaming) else {}
    replicas = adapter.gather() if isinstance(adapter, Replicated) else []
    seen = None
    if not adapter.expected_steps and adapter.program is None:
        seen = _look_for_chance(adapter)
    passes, stop, found = _run_passes(adapter, panel, probes, seen)
    if adapter.ends:
        with during("the end of the training"):
            adapter.finish()
        # Training mode is of the weights that were trained, all else of those that predict.
        after, stop, found = _run_passes(adapter, panel, probes)
        passes = dataclasses.replace(after, train=passes.train)
    layers = adapter.layers()
    watching = adapter if isinstance(adapter, Watching) else None
    losses = adapter.losses
    training = Training(
        layers=layers,
        batch_size=adapter.batch_size,
        losses=losses,
        calls=adapter.calls,
        history=adapter.history,
        stop=stop,
        kept_in_steps=adapter.kept,
        schedules={each.name: each.kept for each in found if each.kept},
        streams=streams,
        replicas=replicas,
        idle=watching.idle if watching else [],
        asleep=watching.asleep if watching else [],
        unsaved=watching.unsaved if watching else [],
        stochastic=adapter.stochastic,
        past=None if losses else _past(layers, stop, passes, adapter.dialect.unbiased),
        ended=adapter.ends,
        modes=_modes(adapter),
        rehearsal=adapter.rehearsal if isinstance(adapter, Rehearsing) else None,
    )
    if panel.size == 1 and training.changes_data:
        noisy = training.as_in_steps(passes.noisy_batch)
        passes = dataclasses.replace(passes, batch=noisy, noisy_batch=noisy)
    if settings.planned_updates is not None:
        _refuse_plan(training, settings.planned_updates)
        kept = training.kept_until(settings.planned_updates)
        statistics = running.project(stop, passes.noisy_batch, kept)
        projection = Projection(statistics, panel.predict_with(statistics))
        passes = dataclasses.replace(passes, projection=projection)
    return training, passes


def _modes(adapter: Adapter) -> Modes:
    """What is known of the modes in which layers train."""
    if adapter.program is not None:
        return "hidden"
    return "assumed" if adapter.assumes_modes else "observed"


def _look_for_chance(adapter: Adapter) -> Statistics:
    """Whether training mode draws random numbers, where no step has shown it.

    Returns
    -------
    Statistics
        Batch statistics of the first batch, with stochastic layers on.
    """
    before = fingerprint()
    with during("the pass in training mode"):
        found = adapter.run(0, Mode.TRAINING)
    adapter.stochastic |= before != fingerprint()
    return found.statistics


def _run_passes(
    adapter: Adapter, panel: Panel, probes: states.Probes, seen: Statistics | None = None
) -> tuple[Passes, Statistics, list[RunningState]]:
    """The passes in both modes, the running statistics, and which of them a pass found.

    Parameters
    ----------
    seen
        Batch statistics of training mode, where they are known already.
    """
    __tracebackhide__ = True
    if isinstance(adapter, Stateful):
        adapter.adopt([])
    with during("the pass with batch statistics"):
        first = adapter.run(0, Mode.BATCH_STATISTICS)
    with during("the pass in eval mode"):
        evaluated = adapter.predict(0)
    half = adapter.predict_half(0) if isinstance(adapter, Sampling) else None
    noisy = first.statistics
    if adapter.stochastic:
        with during("the pass in training mode"):
            noisy = seen or adapter.run(0, Mode.TRAINING).statistics
    with during("the pass on the training path"):
        on_path = adapter.run(0, Mode.TRAINING_PATH)
    path = on_path.prediction
    train, batch = first.prediction, first.statistics
    draws = draw(adapter, path) if path is not None and train is not None else []
    noisy_path = decides_worse_than_all(adapter, train, draws)
    reference = reference_of(adapter, train, draws, beyond_chance=noisy_path)
    if reference is not train:
        train, batch = reference, on_path.statistics or batch
        noisy = noisy if adapter.stochastic else batch
    if noisy_path:
        path = dataclasses.replace(averaged(draws), random=False)  # chance does not explain it
    stop, layers = adapter.read(), adapter.layers()
    if adapter.stochastic and not agree(adapter, _fit(stop, noisy, layers)):
        more = [adapter.run(0, Mode.TRAINING).statistics for _ in range(DRAWS - 1)]
        noisy = running.mean([noisy, *more])
    watching = adapter if isinstance(adapter, Watching) else None
    sticky = watching.sticky(0) if watching else []
    if not adapter.stochastic:
        path_gap = gap_of_path(path, first.prediction)
        same_path = path_gap is None or path_gap <= max(PATH_GAP, adapter.noise)
        fits = same_path and _fit(stop, batch, layers)
        if not agree(adapter, fits or not running.is_possible(stop)):
            # Running statistics come from the training path, and are measured against it.
            noisy = seen or adapter.run(0, Mode.TRAINING).statistics
    again, half_again, traces = _repeat(adapter, evaluated, half)
    drawn = on_path.prediction is not None and on_path.prediction.random
    found, shares, settled = _find_states(adapter, train, evaluated, probes, drawn=drawn)
    if found and drawn and panel.size == 1:
        # Eval mode with what the states settle at stands for training mode without chance.
        there = panel.predict_with(_with_states(noisy, found), exact=True)
        if agree(adapter, chance_explains(adapter, there, draws)):
            first = dataclasses.replace(first, prediction=there)
            train, path, noisy_path = there, on_path.prediction, False
    if found and train is not None:
        found = _debiased(adapter, panel, batch, train, found)
    stop = adapter.read()
    if train is not first.prediction and not found:
        batch = first.statistics
    passes = Passes(
        batch=_with_states(batch, found, clean=True),
        noisy_batch=_with_states(noisy, found),
        calls=first.calls.beside([each.calls for each in found]),
        rounding=adapter.noise,
        train=train,
        eval=evaluated,
        first=first.prediction,
        path=path,
        half=half,
        again=again,
        half_again=half_again,
        traces=traces,
        sticky=sticky,
        own_path=train is not first.prediction and not found and bool(adapter.layers()),
        shares_state=shares,
        settled=settled,
        splits=_has_more(on_path.calls, first.calls),
        noisy_path=noisy_path,
    )
    if panel.size > 1:
        passes = _measure_all(adapter, panel, passes, found)
    elif isinstance(adapter, Replicated) and adapter.follows and first.prediction is not None:
        passes = _judged_by_mean(panel, passes, [first.prediction], [passes.batch], [noisy])
    return passes, stop, found


def _has_more(on_path: Calls, first: Calls) -> bool:
    """Whether some layer is called more often on the training path than on that of eval mode."""
    pairs = zip(on_path.training, first.training, strict=False)
    return any(more > once > 0 for more, once in pairs)


def _find_states(
    adapter: Adapter,
    train: Prediction | None,
    evaluated: Prediction,
    probes: states.Probes,
    *,
    drawn: bool,
) -> tuple[list[RunningState], bool, Prediction | None]:
    """Running state of no known layer, which counts as layers from then on.

    Looked for where training moved any, or where the modes differ in a model whose training nobody
    saw. Left alone where training mode reads it too and both modes nearly agree; the second value
    says so. The third is what training mode predicts once the state settled; nobody can tell where
    the model's own code has `drawn` random numbers, whose mean the settled values are then.
    """
    if not isinstance(adapter, Stateful) or adapter.program is not None or train is None:
        return [], False, None
    gap = predictions.gap(evaluated.outputs, train.outputs)
    steps = len(adapter.losses)
    if not steps and gap is not None and gap <= PATH_GAP:
        return [], False, None
    there = None
    with during("a pass in training mode"):
        found = states.find(adapter, steps, stochastic=adapter.stochastic, probes=probes)
        if drawn:
            found = [dataclasses.replace(each, clean=each.settled) for each in found]
        elif found:
            there = states.predict_settled(adapter, found)
            moved = there and predictions.gap(there.outputs, train.outputs)
            if moved and moved > PATH_GAP and gap is not None and gap <= USUAL_GAP:
                return [], True, None
    adapter.adopt(found)
    return found, False, there


def _debiased(
    adapter: Adapter,
    panel: Panel,
    batch: Statistics,
    train: Prediction,
    found: list[RunningState],
) -> list[RunningState]:
    """Running states that eval mode frees of their initial value when it reads them, as Adam does.

    It divides by ``1 - (1-α)^t``, so that not the settled values give the prediction of training
    mode, but these with as much of the initial value as the count of the updates says.
    """
    if not isinstance(adapter, Stateful) or panel.size > 1:
        return found
    mixed = states.with_initial_value(adapter, found, len(adapter.losses))
    if not mixed:
        return found

    def apart(each: Sequence[RunningState]) -> float:
        prediction = panel.predict_with(_with_states(batch, each, clean=True), exact=True)
        gap = predictions.gap(prediction.outputs, train.outputs)
        return math.inf if gap is None else gap

    allowed = max(PATH_GAP, adapter.noise)
    gaps = apart(found), apart(mixed)  # both: every process has to make the same passes
    if not agree(adapter, gaps[0] > allowed >= gaps[1]):
        return found
    adapter.adopt(mixed)
    return mixed


def _with_states(
    known: Statistics, found: Sequence[RunningState], *, clean: bool = False
) -> Statistics:
    return running.joined(known, [each.clean if clean else each.settled for each in found])


def _past(layers: Sequence[Layer], now: Statistics, passes: Passes, unbiased: bool) -> Past:
    values = passes.calls.values
    return past(layers, passes.active, now, passes.noisy_batch, values, unbiased=unbiased)


def _refuse_plan(training: Training, planned: int) -> None:
    """Raise an InputError if fewer updates are planned than the model has made already."""
    made = training.made
    if training.past is not None and made is not None and planned < made:
        raise InputError(
            f"planned_updates: {planned} is less than the {made} updates that the model has made "
            "already; it counts all updates of the real training"
        )


def _fit(statistics: Statistics, batch: Statistics, layers: Sequence[Layer]) -> bool:
    distortion = distances.distortion(statistics, batch, [layer.eps for layer in layers])
    return bool((distortion <= USUAL_DISTORTION).all())


def _repeat(
    adapter: Adapter, evaluated: Prediction, half: Prediction | None
) -> tuple[Prediction | None, Prediction | None, Sequence[Trace]]:
    """Once more in eval mode, and a look at its calls, if it is random or minds its batch.

    Also where it changed state: only what a later pass returns tells a cache from a fault. A rare
    random event can miss the whole passes and hit a half, so that is repeated too.
    """
    gap = gap_of_half(half, evaluated)
    apart = gap is not None and gap > adapter.noise
    if not (evaluated.random or evaluated.mutated or evaluated.rewritten or apart):
        return None, None, ()
    changed = evaluated.mutated and not evaluated.random
    again = adapter.predict_again(0) if changed else adapter.predict(0)
    half_again = None
    if evaluated.random and half is not None and isinstance(adapter, Sampling):
        half_again = adapter.predict_half(0)
    return again, half_again, adapter.trace(0) if isinstance(adapter, Watching) else ()


def _measure_all(
    adapter: Adapter, panel: Panel, passes: Passes, found: Sequence[RunningState]
) -> Passes:
    """Measure each of the first mini-batches as it was trained on."""
    trained: list[Prediction] = []
    clean: list[Statistics] = []
    rows: list[list[RunningState]] = [[] for _ in range(panel.size)]
    mode = Mode.BATCH_STATISTICS if passes.train is passes.first else Mode.TRAINING_PATH
    for k in range(panel.size):
        each = adapter.run(k, mode)
        assert each.prediction is not None
        trained.append(each.prediction)
        if found and isinstance(adapter, Stateful):
            rows[k] = states.settled_on(adapter, k, found, stochastic=adapter.stochastic)
        clean.append(_with_states(each.statistics, rows[k], clean=True))
    noisy = clean
    if adapter.stochastic:
        noisy = [
            _with_states(adapter.run(k, Mode.TRAINING).statistics, rows[k])
            for k in range(panel.size)
        ]
    return _judged_by_mean(panel, passes, trained, clean, noisy)


def _judged_by_mean(
    panel: Panel,
    passes: Passes,
    trained: Sequence[Prediction],
    clean: Sequence[Statistics],
    noisy: Sequence[Statistics],
) -> Passes:
    """Take the mean over several mini-batches as what the statistics should be.

    A single mini-batch of a stream differs from its neighbours, so a gap is measured from eval
    mode with the statistics averaged over up to 8 of them at frozen weights. Loss and accuracy of
    training mode are those on the mini-batches as they were trained on.

    Parameters
    ----------
    trained, clean, noisy
        Of each mini-batch: the prediction with batch statistics, and these with stochastic layers
        off and on.
    """
    batch, evaluated = running.mean(clean), panel.predict()
    with_mean = panel.predict_with(batch, exact=True)
    train = [
        dataclasses.replace(
            part, loss=each.loss, accuracy=each.accuracy, constant_loss=each.constant_loss
        )
        for part, each in zip(with_mean.parts or [with_mean], trained, strict=True)
    ]
    return dataclasses.replace(
        passes,
        batch=batch,
        noisy_batch=running.mean(noisy),
        train=joined(train),
        eval=evaluated,
        mini_batches=MiniBatches(noisy, with_mean),
    )


def agree(adapter: Adapter, value: bool) -> bool:
    """Whether it is so in every process that trains the same model."""
    return adapter.agree(value) if isinstance(adapter, Replicated) else value


@contextmanager
def during(what: str) -> Iterator[None]:
    """Say at the end of a user's traceback which of the plugin's calls it came from."""
    __tracebackhide__ = True
    try:
        yield
    except (InputError, TooFewValues):
        raise
    except Exception as error:
        add_note(error, f"pytest-bncheck: raised in {what}.")
        raise
