"""Forward passes of a Keras model: direct calls, with what a pass changes for its time."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pytest_bncheck.adapters.attributes import PlainAttributes
from pytest_bncheck.adapters.keras import internals
from pytest_bncheck.adapters.keras.backends.base import Backend
from pytest_bncheck.adapters.keras.calls import (
    Record,
    Replacement,
    counted,
    muted,
    replaced_calls,
    without_idle_draws,
)
from pytest_bncheck.adapters.keras.compilation import Function, compiled
from pytest_bncheck.adapters.keras.data import Batch, by_sample, form_of, rows_of
from pytest_bncheck.adapters.keras.layers import Inventory
from pytest_bncheck.adapters.keras.state import contents, fingerprint, in_mode, put_back
from pytest_bncheck.types import Recipe


@dataclass
class Pass:
    """What one forward pass gave besides its outputs."""

    outputs: Any
    records: list[Record]
    random: bool
    mutated: tuple[str, ...]

    def first(self, samples: int | None, size: int | None) -> Pass:
        """The same with the outputs for the first of so many samples."""
        cut = by_sample(lambda leaf: rows_of(leaf, slice(samples)), self.outputs, size)
        return dataclasses.replace(self, outputs=cut)


class Kind(NamedTuple):
    """What is special about a pass; see `Passes.run`."""

    training: bool = False
    collect: bool = False
    force: bool = False
    mute: bool = False


class Passes:
    """The passes of one check.

    Parameters
    ----------
    model, recipe
        The user's.
    parts, backend
        What is known about them.
    trains
        Whether a layer, by its place, is to use batch statistics where they are forced.

    Attributes
    ----------
    attributes
        Plain attributes of all layers before the first pass that can leave them changed.
    """

    def __init__(
        self,
        model: Any,
        recipe: Recipe,
        parts: Inventory,
        backend: Backend,
        trains: Callable[[int], bool],
    ) -> None:
        self._model, self._recipe, self._parts = model, recipe, parts
        self._backend, self._trains = backend, trains
        self._compiled: dict[object, tuple[Function | None, list[Record]]] = {}
        self.attributes: PlainAttributes | None = None

    def forward(self, batch: Batch, *, training: bool) -> Any:
        """The model's outputs, as ``fit`` or ``predict`` would have them.

        Whether derivatives can be taken of them is for the caller to say.
        """
        __tracebackhide__ = True
        # The mode is passed only to a model whose call takes it.
        mode = training if internals.takes_mode(self._model) else None
        if self._recipe.forward is not None:
            with in_mode(self._model, mode):
                return self._recipe.forward(self._model, batch.whole)
        told = {} if mode is None else {"training": mode}
        return self._backend.call(self._model, batch.inputs, **told)

    def run(
        self,
        batch: Batch,
        *,
        training: bool,
        collect: bool = False,
        force: bool = False,
        mute: bool = False,
        observe: bool = True,
    ) -> Pass:
        """One forward pass and what it shows.

        Parameters
        ----------
        collect
            Record batch statistics; all variables but the states of random generators are put back.
        force
            The layers that used batch statistics in training use them now.
        mute
            All other layers of Keras are in inference mode.
        observe
            Look for random numbers and changed buffers.
        """
        __tracebackhide__ = True
        parts, backend = self._parts, self._backend
        records = [Record() for _ in parts.layers]
        if self.attributes is None and not training:
            self.attributes = PlainAttributes(parts.named)
        with contextlib.ExitStack() as changes:
            changes.enter_context(replaced_calls(without_idle_draws(parts.recurrent, backend)))
            if collect:
                changes.enter_context(put_back(parts.variables, backend))
                calls = self._counted(records, force=force, collect=True)
                changes.enter_context(replaced_calls(calls))
            if mute:
                kept = [layer for k, layer in enumerate(parts.layers) if self._trains(k)]
                changes.enter_context(replaced_calls(muted(self._model, kept)))
            watched = parts.watched(statistics=not collect) if observe else {}
            random = fingerprint(parts.seeds) if observe else ()
            state = contents(watched.values())
            outputs = self._outputs(batch, Kind(training, collect, force, mute), records)
            moved = zip(watched, state, contents(watched.values()), strict=True)
            return Pass(
                outputs,
                records,
                random=observe and random != fingerprint(parts.seeds),
                mutated=tuple(name for name, old, new in moved if old != new),
            )

    def prepare(self, batch: Batch) -> None:
        """Compile eval mode, which is free while the backend still works on steps."""
        records = [Record() for _ in self._parts.layers]
        with replaced_calls(without_idle_draws(self._parts.recurrent, self._backend)):
            self._program(batch, Kind(), records)

    def _outputs(self, batch: Batch, kind: Kind, records: list[Record]) -> Any:
        """The forward pass, compiled where the backend's eager operations are slow."""
        __tracebackhide__ = True
        run, seen = self._program(batch, kind, records)
        if run is None:
            return self.forward(batch, training=kind.training)
        outputs, found = run(batch.inputs)
        for record, each, (batches, masked) in zip(records, seen, found, strict=True):
            each.note_masked(masked)
            if record is not each:
                record.add(each)
            record.batches = batches
        return outputs

    def _program(
        self, batch: Batch, kind: Kind, records: list[Record]
    ) -> tuple[Function | None, list[Record]]:
        """What is compiled for a pass with such inputs, and the calls that its trace saw."""
        key = form_of(batch.inputs), kind
        if key not in self._compiled:
            self._compiled[key] = self._compile(batch, kind, records), records
        return self._compiled[key]

    @property
    def compiles(self) -> bool:
        """Whether passes are compiled, for one shape of inputs each."""
        built, own = self._model.built, self._recipe.forward is None
        return self._backend.compiles_passes and built and own

    def _compile(self, batch: Batch, kind: Kind, records: list[Record]) -> Function | None:
        if not self.compiles:
            return None

        def compute(inputs: Any) -> tuple[Any, list[Any]]:
            outputs = self.forward(batch.with_inputs(inputs), training=kind.training)
            return outputs, [(record.batches, record.masked) for record in records]

        # What collects runs once; eval mode many times, under other statistics.
        run = compiled(
            compute,
            self._model.variables,
            batch.inputs,
            self._parts,
            self._backend,
            once=kind.collect,
        )
        if run is None:
            for record in records:
                record.clear()
        return run

    def _counted(
        self, records: Sequence[Record], *, force: bool, collect: bool
    ) -> list[Replacement]:
        return [
            counted(layer, record, self._backend, force=force and self._trains(k), collect=collect)
            for k, (layer, record) in enumerate(zip(self._parts.layers, records, strict=True))
        ]
