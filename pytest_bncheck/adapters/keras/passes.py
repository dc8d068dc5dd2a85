"""Forward passes of a Keras model: direct calls, with what a pass changes for its time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import keras

from pytest_bncheck.adapters.attributes import PlainAttributes
from pytest_bncheck.adapters.base import Mode
from pytest_bncheck.adapters.keras.backends.base import Variable
from pytest_bncheck.adapters.keras.batch import Batch
from pytest_bncheck.adapters.keras.calls import replaced_calls, without_idle_draws
from pytest_bncheck.adapters.keras.compilation import CompiledPasses
from pytest_bncheck.adapters.keras.layers import Layers
from pytest_bncheck.adapters.keras.modes import Ran, forced, muted
from pytest_bncheck.adapters.keras.records import (
    NO_LAYERS,
    Outcome,
    Record,
    TrainingModes,
    counted,
)
from pytest_bncheck.adapters.keras.state import (
    attributes_kept,
    contents,
    fingerprint,
    put_back,
    value_of,
)
from pytest_bncheck.adapters.keras.subject import Subject

KerasLayer: TypeAlias = Any


class Passes:
    """The passes of one check.

    Attributes
    ----------
    programs
        Compiled passes, where these are quicker.
    attributes
        Plain attributes of all layers before the first pass in eval mode; None before it.
    """

    def __init__(self, subject: Subject, layers: Layers) -> None:
        self._subject, self._layers = subject, layers
        self.programs = CompiledPasses(subject, layers)
        self.attributes: PlainAttributes | None = None

    def run(
        self,
        batch: Batch,
        mode: Mode,
        modes: TrainingModes = NO_LAYERS,
        *,
        observe: bool = True,
    ) -> Outcome:
        """One forward pass and what is seen in it.

        Batch statistics are recorded in `Mode.BATCH_STATISTICS` and `Mode.TRAINING`. All variables
        go back, except for the states of random generators, and in every mode but eval mode
        everything else on the layers.

        Parameters
        ----------
        modes
            The layers that a training step runs in training mode.
        observe
            Look for random numbers and changed buffers.
        """
        __tracebackhide__ = True
        layers = self._layers
        if self.attributes is None and mode in (Mode.EVAL, Mode.BATCH_STATISTICS):
            self.attributes = PlainAttributes(layers.named)
        with contextlib.ExitStack() as back:
            if mode is Mode.EVAL:
                back.enter_context(put_back(layers.variables, self._subject.backend))
            else:
                back.enter_context(self.kept())
            return self.go_on(batch, mode, modes, observe=observe)

    def resume(self) -> None:
        """Go on with the training: with the attributes that it had."""
        if self.attributes is not None:
            self.attributes.put_back()
            self.attributes = None

    @property
    def _dropped(self) -> list[Variable]:
        """Variables to which no forward of the framework can assign for good."""
        drops = self._subject.backend.drops_trainable
        return list(self._subject.model.trainable_variables) if drops else []

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Put back everything on the layers but the states of random generators."""
        layers = self._layers
        with put_back(layers.variables, self._subject.backend), attributes_kept(layers.named):
            yield

    def go_on(
        self,
        batch: Batch,
        mode: Mode,
        modes: TrainingModes = NO_LAYERS,
        *,
        observe: bool = True,
        collect: bool = True,
    ) -> Outcome:
        """A pass as `run` makes it, which leaves its traces in the model.

        Parameters
        ----------
        collect
            Record batch statistics, and leave the running statistics of known layers alone.
        """
        __tracebackhide__ = True
        layers, backend = self._layers, self._subject.backend
        records, ran = [Record() for _ in layers.tracking], Ran()
        with contextlib.ExitStack() as changes:
            changes.enter_context(put_back(self._dropped, backend))
            changes.enter_context(replaced_calls(without_idle_draws(layers.recurrent, backend)))
            if collect and mode is not Mode.EVAL:
                force = modes.normalising if mode is Mode.BATCH_STATISTICS else ()
                collects = mode is not Mode.TRAINING_PATH
                changes.enter_context(self._counting(records, force, collect=collects))
            everything = [layer for layer, _ in layers.named]
            if mode is Mode.TRAINING_PATH:
                changes.enter_context(replaced_calls(muted(everything)))
            if mode in (Mode.TRAINING, Mode.TRAINING_PATH) and not modes.follow:
                changes.enter_context(replaced_calls(forced(everything, modes.by_layer)))
            if mode in (Mode.TRAINING, Mode.TRAINING_PATH):
                changes.enter_context(ran.watching(layers.owners, backend))
            watched = layers.watched(statistics=mode is Mode.EVAL) if observe else {}
            random = fingerprint(layers.seeds) if observe else ()
            before = contents(watched.values())
            moved = self._moved_weights() if observe and mode is Mode.EVAL else tuple
            told = () if mode is Mode.EVAL else modes.told
            outputs, ran = self._outputs(batch, mode, records, ran, told, collect=collect)
            after = contents(watched.values())
            return Outcome(
                outputs,
                records,
                ran,
                random=observe and random != fingerprint(layers.seeds),
                mutated=tuple(
                    name
                    for name, old, new in zip(watched, before, after, strict=True)
                    if old != new
                ),
                rewritten=tuple(moved()),
            )

    def _moved_weights(self) -> Callable[[], Iterable[str]]:
        """A function that returns the names of the weights that changed since this call."""
        backend = self._subject.backend
        if backend.drops_trainable:
            return tuple
        weights = self._layers.weights
        before = {name: backend.copy(variable) for name, variable in weights.items()}

        def moved() -> list[str]:
            if not weights:
                return []
            flags = [_differs(before[name], value_of(weights[name])) for name in weights]
            told = keras.ops.convert_to_numpy(keras.ops.stack(flags))  # in one transfer
            return [name for name, differs in zip(weights, told, strict=True) if differs]

        return moved

    def run_half(self, batch: Batch) -> Outcome:
        """Eval mode on the first half of the samples, of which there are two or more."""
        if self.programs.pays:  # the program for the whole batch takes a half twice
            outcome = self.run(batch.first_half_again(), Mode.EVAL)
            size = batch.size or 0
            return outcome.first(size // 2, size)
        return self.run(batch.half(), Mode.EVAL)

    def prepare(self, batch: Batch) -> None:
        """Compile eval mode, which takes no time while the backend still computes steps."""
        layers, backend = self._layers, self._subject.backend
        records = [Record() for _ in layers.tracking]
        with replaced_calls(without_idle_draws(layers.recurrent, backend)):
            self.programs.get(batch, Mode.EVAL, records, Ran(), ())

    def _outputs(
        self,
        batch: Batch,
        mode: Mode,
        records: list[Record],
        ran: Ran,
        told: Hashable,
        *,
        collect: bool,
    ) -> tuple[Any, Ran]:
        """What the model returns, and what ran."""
        __tracebackhide__ = True
        program = self.programs.get(batch, mode, records, ran, told) if collect else None
        if program is None:
            training = mode in (Mode.TRAINING, Mode.TRAINING_PATH)
            return self._subject.forward(batch, training=training), ran
        return program(batch.inputs, records), program.ran

    def _counting(
        self,
        records: Sequence[Record],
        forced: Sequence[KerasLayer],
        *,
        collect: bool,
    ) -> contextlib.AbstractContextManager[None]:
        """Count the calls of layers, which may `collect` their batch statistics, some forced to."""
        ids = {id(layer) for layer in forced}
        backend = self._subject.backend
        return replaced_calls(
            [
                counted(layer, record, backend, force=id(layer) in ids, collect=collect)
                for layer, record in zip(self._layers.tracking, records, strict=True)
            ]
        )


def _differs(then: Any, now: Any) -> Any:
    """Whether two tensors differ, where NaN equals itself; still on the device."""
    ops = keras.ops
    are_nan = ops.logical_and(ops.not_equal(then, then), ops.not_equal(now, now))
    return ops.any(ops.logical_and(ops.not_equal(then, now), ops.logical_not(are_nan)))
