"""Forward passes of a Keras model: direct calls, with what a pass changes for its time."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, TypeAlias

from pytest_bncheck.adapters.attributes import PlainAttributes
from pytest_bncheck.adapters.base import Mode
from pytest_bncheck.adapters.keras.calls import replaced_calls, without_idle_draws
from pytest_bncheck.adapters.keras.compilation import CompiledPasses
from pytest_bncheck.adapters.keras.data import Batch
from pytest_bncheck.adapters.keras.layers import Layers
from pytest_bncheck.adapters.keras.modes import forced, muted
from pytest_bncheck.adapters.keras.records import (
    NO_LAYERS,
    Outcome,
    Record,
    TrainingModes,
    counted,
)
from pytest_bncheck.adapters.keras.state import attributes_kept, contents, fingerprint, put_back
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
        layers, backend = self._layers, self._subject.backend
        records = [Record() for _ in layers.tracking]
        if self.attributes is None and mode in (Mode.EVAL, Mode.BATCH_STATISTICS):
            self.attributes = PlainAttributes(layers.named)
        with contextlib.ExitStack() as changes:
            changes.enter_context(put_back(layers.variables, backend))
            if mode is not Mode.EVAL:
                changes.enter_context(attributes_kept(layers.named))
            changes.enter_context(replaced_calls(without_idle_draws(layers.recurrent, backend)))
            if mode in (Mode.BATCH_STATISTICS, Mode.TRAINING):
                force = modes.normalising if mode is Mode.BATCH_STATISTICS else ()
                changes.enter_context(self._collecting(records, force))
            everything = [layer for layer, _ in layers.named]
            if mode is Mode.TRAINING_PATH:
                changes.enter_context(replaced_calls(muted(everything)))
            if mode in (Mode.TRAINING, Mode.TRAINING_PATH) and not modes.follow:
                changes.enter_context(replaced_calls(forced(everything, modes.by_layer)))
            watched = layers.watched(statistics=mode is Mode.EVAL) if observe else {}
            random = fingerprint(layers.seeds) if observe else ()
            before = contents(watched.values())
            outputs = self._outputs(batch, mode, records)
            after = contents(watched.values())
            return Outcome(
                outputs,
                records,
                random=observe and random != fingerprint(layers.seeds),
                mutated=tuple(
                    name
                    for name, old, new in zip(watched, before, after, strict=True)
                    if old != new
                ),
            )

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
            self.programs.get(batch, Mode.EVAL, training=False, records=records)

    def _outputs(self, batch: Batch, mode: Mode, records: list[Record]) -> Any:
        __tracebackhide__ = True
        training = mode in (Mode.TRAINING, Mode.TRAINING_PATH)
        program = self.programs.get(batch, mode, training=training, records=records)
        if program is None:
            return self._subject.forward(batch, training=training)
        return program(batch.inputs, records)

    def _collecting(
        self, records: Sequence[Record], forced: Sequence[KerasLayer]
    ) -> contextlib.AbstractContextManager[None]:
        """Let layers record their batch statistics, some of them in training mode in any case."""
        ids = {id(layer) for layer in forced}
        return replaced_calls(
            [
                counted(layer, record, self._subject.backend, force=id(layer) in ids, collect=True)
                for layer, record in zip(self._layers.tracking, records, strict=True)
            ]
        )
