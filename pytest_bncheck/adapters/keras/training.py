"""The training steps of one check, and what was seen in them."""

from __future__ import annotations

from typing import Any

import keras

from pytest_bncheck.adapters.keras import step
from pytest_bncheck.adapters.keras.backends.base import Tensor
from pytest_bncheck.adapters.keras.calls import Replacement
from pytest_bncheck.adapters.keras.compilation import CompiledSteps
from pytest_bncheck.adapters.keras.data import Batch
from pytest_bncheck.adapters.keras.layers import Layers
from pytest_bncheck.adapters.keras.loss import Criterion
from pytest_bncheck.adapters.keras.records import Record, Watch, all_counted
from pytest_bncheck.adapters.keras.state import fingerprint
from pytest_bncheck.adapters.keras.subject import Subject
from pytest_bncheck.types import Statistics


class Training:
    """The training of one check.

    Attributes
    ----------
    losses
        Loss of every step, on the device.
    records
        The calls of each layer with running statistics, over all steps.
    watch
        The modes in which the model and its noise layers were called.
    stochastic
        Whether the first step drew random numbers.
    execution
        How the last step ran: ``eager``, or the backend's name for a compiled step.
    programs
        Compiled steps; None before `begin`, and where steps only run eagerly.
    """

    def __init__(self, subject: Subject, layers: Layers, criterion: Criterion) -> None:
        self._subject, self._layers, self._criterion = subject, layers, criterion
        self._step: step.FitStep | step.UsersStep | step.ModelsStep | None = None
        self._calls: list[Replacement] = []
        self._log: list[Tensor] = []
        self._history: list[Statistics] = []
        self.losses: list[Tensor] = []
        self.records = [Record() for _ in layers.tracking]
        self.watch = Watch(subject, layers)
        self.stochastic = False
        self.execution = "eager"
        self.programs: CompiledSteps | None = None

    def begin(self, expected: int) -> None:
        """Make the optimizer and the step.

        Parameters
        ----------
        expected
            Steps that will be made with each batch.
        """
        __tracebackhide__ = True
        subject, layers = self._subject, self._layers
        optimizer = step.make_optimizer(subject.recipe.optimizer, subject.model)
        if getattr(subject.model, "optimizer", None) is not None:
            # The user's step may ask the model for its optimizer, and must not change that one.
            subject.model.__dict__["optimizer"] = optimizer
        self._step = step.make(subject, layers, self._criterion, optimizer)
        if isinstance(self._step, step.FitStep):
            self.programs = CompiledSteps(subject, layers, self._step, self.watch, expected)
        self._log = [layers.packed()]

    def make_step(self, batch: Batch) -> None:
        """Make one step."""
        __tracebackhide__ = True
        program = None if self.programs is None else self.programs.get(batch)
        first, seeds = not self.losses, self._layers.seeds
        before = fingerprint(seeds) if first else ()
        if program is None:
            self.execution = "eager"
            loss, packed = self._eagerly(batch)
        else:
            self.execution = str(self._subject.backend.compilation)
            loss, packed = program(batch.inputs, self.records)
        self.losses.append(loss)
        self._log.append(packed)
        if first:
            self.stochastic = before != fingerprint(seeds)

    def _eagerly(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss and packed running statistics of one step."""
        __tracebackhide__ = True
        assert self._step is not None, "begin comes first"
        layers, backend = self._layers, self._subject.backend
        self._calls = self._calls or all_counted(layers.tracking, self.records, backend)
        for record in self.records:
            record.begin_step()
        with self.watch.during(self._calls):
            loss, _ = self._step.run(batch, self.records)
        for record in self.records:
            between: Any = keras.tree.map_structure(backend.concrete, record.between)
            # Where the user's step compiled the call, there are no values.
            whole = all(value is not None for value in keras.tree.flatten(between))
            record.between = between if whole else []
        return loss, layers.packed()

    @property
    def history(self) -> list[Statistics]:
        """Running statistics before the first step and after each."""
        unread = self._log[len(self._history) :]
        self._history += [self._layers.unpacked(packed) for packed in unread]
        return list(self._history)

    def only_infers(self, k: int, *, with_mode: bool | None = None) -> bool:
        """Whether the layer at this position ran in inference mode only.

        Parameters
        ----------
        with_mode
            Count only layers that were given a mode, or only those that were not.
        """
        record = self.records[k]
        only = record.inference > 0 and not record.training
        return only and with_mode in (None, not record.without_mode)

    def trained(self) -> list[Any]:
        """The layers that used batch statistics; before any step, all that would."""
        return [
            layer
            for layer, record in zip(self._layers.tracking, self.records, strict=True)
            if layer.trainable and (record.training > 0 or not self.losses)
        ]
