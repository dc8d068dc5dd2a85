"""Training a Keras model for a few steps: the user's step, the model's own, or that of ``fit``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import keras
import numpy as np

from pytest_bncheck.adapters.hints import kind
from pytest_bncheck.adapters.keras.backends.base import Backend, Tensor
from pytest_bncheck.adapters.keras.calls import (
    Modes,
    Record,
    Replacement,
    counted,
    replaced_calls,
)
from pytest_bncheck.adapters.keras.compilation import compiled
from pytest_bncheck.adapters.keras.data import Batch, has_own_step, make_optimizer
from pytest_bncheck.adapters.keras.hints import hints
from pytest_bncheck.adapters.keras.layers import Inventory, statistics_of
from pytest_bncheck.adapters.keras.loss import Objective, scalar
from pytest_bncheck.adapters.keras.state import fingerprint, value_of
from pytest_bncheck.types import InputError, Recipe

Forward: TypeAlias = Callable[[Batch], Any]


@dataclass
class Repeat:
    """How the steps with one batch are made.

    Attributes
    ----------
    run
        A compiled step: from inputs to loss, packed statistics, those between the calls of each
        layer with the values under its masks, and outputs where `Steps.once_more` needs them; None
        for eager steps.
    records
        The calls of each layer in one compiled step.
    """

    run: Callable[[Any], tuple[Tensor, Tensor, list[Any], Any]] | None
    records: list[Record]


class Steps:
    """The training of one check.

    Parameters
    ----------
    model, recipe, optimizer
        The user's; the optimizer is None, one to take the settings of, or a function.
    parts, objective, backend
        What is known about them.
    forward
        A forward pass in training mode.
    packed
        The running statistics in one tensor.

    Attributes
    ----------
    losses
        Of every step, on the device.
    log
        Packed running statistics before the first step and after each.
    records
        The calls of each layer in all steps together.
    dropouts, whole
        In which modes the noise layers and the model itself were called.
    stochastic
        Whether the first step drew random numbers.
    execution
        How the last step ran: ``eager``, or what the backend calls a compiled step.
    expected
        Steps that are planned with each batch: few do not repay a compilation.
    """

    def __init__(
        self,
        model: Any,
        recipe: Recipe,
        optimizer: Any,
        parts: Inventory,
        objective: Objective,
        backend: Backend,
        forward: Forward,
        packed: Callable[[], Tensor],
    ) -> None:
        self._model, self._recipe, self._chosen = model, recipe, optimizer
        self._parts, self._objective, self._backend = parts, objective, backend
        self._forward, self._packed = forward, packed
        self._optimizer: Any = None
        self._repeats: dict[int, Repeat] = {}
        self._calls: list[Replacement] = []
        # Then a step's forward is the pass with batch statistics, which would be a program more.
        self._is_forward = parts.only_normalises and backend.compiles_passes
        self.expected = 0
        self.losses: list[Tensor] = []
        self.log: list[Tensor] = []
        self.records = [Record() for _ in parts.layers]
        self.dropouts = Modes(parts.dropouts, backend)
        self.whole = Modes([model], backend)
        self.stochastic = False
        self.execution = "eager"

    def begin(self) -> None:
        """Make the optimizer."""
        __tracebackhide__ = True
        self._optimizer = make_optimizer(self._chosen, self._model)
        if getattr(self._model, "optimizer", None) is not None:
            # A step of the user's that asks the model for its optimizer must not move theirs.
            self._model.__dict__["optimizer"] = self._optimizer
        self.log = [self._packed()]

    def make(self, batch: Batch) -> None:
        """Make one step."""
        __tracebackhide__ = True
        if id(batch) not in self._repeats:
            self._repeats[id(batch)] = self._compiled(batch)
        repeat, first = self._repeats[id(batch)], not self.losses
        before = fingerprint(self._parts.seeds) if first else ()
        if repeat.run is not None:
            loss, packed, seen, _ = repeat.run(batch.inputs)
            for record, each, (between, masked) in zip(
                self.records, repeat.records, seen, strict=True
            ):
                each.note_masked(masked)
                record.add(each)
                record.samples, record.between = each.samples, between
        else:
            for record in self.records:
                record.begin_step()
            self._calls = self._calls or self._counted(self.records)
            with self._watched(self._calls):
                loss = self._eager(batch)
            for record in self.records:
                found = keras.tree.map_structure(self._backend.concrete, record.between)
                # Where the user's own step compiled it, there are no values.
                whole = all(value is not None for value in keras.tree.flatten(found))
                record.between = found if whole else []
            packed = self._packed()
        self.losses.append(loss)
        self.log.append(packed)
        self.execution = "eager" if repeat.run is None else str(self._backend.compilation)
        if first:
            self.stochastic = before != fingerprint(self._parts.seeds)

    def once_more(self, batch: Batch) -> tuple[Any, Tensor, list[Record]] | None:
        """Outputs of one more step, running statistics packed, and calls; it changes nothing.

        The statistics start at 0, so that they show those of the batch. None where that is not the
        same as a pass with batch statistics, or a program less is worth nothing.
        """
        repeat = self._repeats.get(id(batch))
        if repeat is None or repeat.run is None or not self._is_forward:
            return None
        pairs = list(zip(self._parts.layers, repeat.records, strict=True))
        used = [layer for layer, record in pairs if record.training]
        running = [variable for layer in used for variable in statistics_of(layer)]
        if (
            any(record.training and record.inference for record in repeat.records)
            or any(layer.momentum >= 1 for layer in used)
            or any(variable.dtype != "float32" for variable in running)
        ):
            return None
        # As they are: these arrays do not change, other ones take their place.
        variables = [*self._parts.variables, *self._optimizer.variables]
        kept = [(variable, value_of(variable)) for variable in variables]
        zeros = self._backend.from_host([np.zeros(v.shape, "float32") for v in running])
        try:
            for variable, zero in zip(running, zeros, strict=True):
                variable.assign(zero)
            _, packed, _, outputs = repeat.run(batch.inputs)
        finally:
            for variable, value in kept:
                variable.assign(value)
        return outputs, packed, repeat.records

    def _counted(self, records: list[Record]) -> list[Replacement]:
        return [
            counted(layer, record, self._backend)
            for layer, record in zip(self._parts.layers, records, strict=True)
        ]

    @contextlib.contextmanager
    def _watched(self, calls: list[Replacement]) -> Iterator[None]:
        with replaced_calls(calls), self.dropouts.watch(), self.whole.watch():
            yield

    def _compiled(self, batch: Batch) -> Repeat:
        """A compiled step with this batch, where that is quicker and gives the same."""
        backend = self._backend
        if not self._is_as_fit() or backend.compilation is None or self.expected < backend.repaid:
            return Repeat(None, [])

        records = [Record() for _ in self.records]

        def step(inputs: Any) -> tuple[Tensor, Tensor, list[Any], Any]:
            loss, outputs = self._as_fit(batch.with_inputs(inputs), records)
            return loss, self._packed(), [(r.between, r.masked) for r in records], outputs

        self._build(self._model.trainable_weights)
        variables = [*self._model.variables, *self._optimizer.variables]
        with self._watched(self._counted(records)):
            return Repeat(compiled(step, variables, batch.inputs, self._parts, backend), records)

    def _is_as_fit(self) -> bool:
        own = self._recipe.loss is None and has_own_step(self._model)
        return not own and self._recipe.train_step is None and self._recipe.forward is None

    def _eager(self, batch: Batch) -> Tensor:
        __tracebackhide__ = True
        if self._recipe.train_step is not None:
            with self._backend.users_step():
                return _loss_in(self._recipe.train_step(self._model, batch.whole), "train_step=")
        if self._recipe.loss is None and has_own_step(self._model):
            return self._models_own(batch)
        return self._as_fit(batch, self.records)[0]

    def _as_fit(self, batch: Batch, records: list[Record]) -> tuple[Tensor, Any]:
        """What ``fit`` does with a batch, without its metrics; `records` see its calls.

        Returns the loss, and the outputs where they are to be kept.
        """
        __tracebackhide__ = True

        def losses() -> tuple[Any, Tensor]:
            __tracebackhide__ = True
            outputs = self._forward(batch)
            shown, total = self._objective.losses(outputs, batch)
            seen = [(record.between, record.masked) for record in records]
            kept = outputs if self._is_forward else ()
            return (shown, seen, kept), self._optimizer.scale_loss(total)

        weights = self._model.trainable_weights
        self._build(weights)
        (shown, seen, outputs), gradients = self._backend.gradients(losses, weights)
        for record, (between, masked) in zip(records, seen, strict=True):
            record.between, record.masked = between, masked
        if weights and all(gradient is None for gradient in gradients):
            raise hints.no_loss(
                "the loss does not depend on any trainable weight of the model, so it cannot "
                "be trained on; loss= must return a value computed from the outputs with "
                f"keras.ops or {self._backend.name}, not with numpy"
            )
        if weights:
            self._backend.apply(self._optimizer, gradients, weights)
        return shown, outputs

    def _models_own(self, batch: Batch) -> Tensor:
        """The model's ``train_step``, whose logs are means since the last reset of its metrics."""
        __tracebackhide__ = True
        if not self._model.compiled:
            raise InputError(
                f"{type(self._model).__name__} has a train_step of its own, which needs the model "
                "to be compiled; call model.compile(...), or pass loss= to train without it"
            )
        self._build(self._model.trainable_weights)
        self._model.reset_metrics()
        logs = self._backend.models_step(self._model, self._optimizer, batch.data)
        return _loss_in(logs, f"train_step of {type(self._model).__name__}")

    def _build(self, weights: list[Any]) -> None:
        if weights and not self._optimizer.built:  # for all: a later step may reach others
            with self._backend.building(self._optimizer):
                self._optimizer.build(weights)
            shapes = {tuple(v.shape) for v in self._parts.kernels}
            own = [v for v in self._optimizer.variables if tuple(v.shape) in shapes]
            self._backend.lay_out(own)


def _loss_in(found: Any, where: str) -> Tensor:
    """The loss that a step returned, alone or among its logs."""
    loss = found.get("loss") if isinstance(found, dict) else found
    if not hasattr(loss, "dtype") and not isinstance(loss, (int, float)):
        raise hints.no_step(f"{where} must return the loss as a number, got {kind(found)}")
    return keras.ops.stop_gradient(scalar(loss))  # to be read later, whatever it hangs on
