"""Keras 3, on TensorFlow: models of any kind, run by direct eager calls.

Nothing goes through the model's compiled functions: they would keep, or ignore, what a check
changes for the time of a pass. How a layer with running statistics is called is seen, and changed,
by another ``call`` on the instance, which works wherever the layer is nested.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

from pytest_bncheck.adapters._keras_calls import (
    Modes,
    Order,
    Record,
    Replacement,
    batch_statistics_of,
    calls_of,
    counted,
    muted,
    replaced_calls,
)
from pytest_bncheck.adapters._keras_data import (
    Batch,
    check_optimizer,
    floating,
    make_optimizer,
    structure,
)
from pytest_bncheck.adapters._keras_eval import Tracer, plain_attributes, sticky_attributes
from pytest_bncheck.adapters._keras_layers import DIALECT, Inventory, statistics_of
from pytest_bncheck.adapters._keras_loss import Objective, scalar
from pytest_bncheck.adapters._keras_state import (
    Snapshot,
    TensorFlow,
    contents,
    fingerprint,
    in_mode,
    pack,
    put_back,
    split,
)
from pytest_bncheck.adapters.base import Adapter
from pytest_bncheck.adapters.random_state import RandomState
from pytest_bncheck.types import Calls, InputError, Layer, Prediction, Recipe, Statistics, Trace

Tensor: TypeAlias = Any

_NOISE = {"float16": 1e-2, "bfloat16": 5e-2}


@dataclasses.dataclass
class _Pass:
    """What one forward pass gave besides its outputs."""

    outputs: Any
    records: list[Record]
    random: bool
    mutated: tuple[str, ...]


class KerasAdapter(Adapter):
    """A Keras model under test; see `Adapter`."""

    framework = "keras"
    dialect = DIALECT

    def __init__(
        self, model: Any, batches: Sequence[Any], recipe: Recipe, device: str | None
    ) -> None:
        self.backend = keras.backend.backend()
        if self.backend != TensorFlow.name:
            raise InputError(
                f"Keras on the {self.backend} backend is not supported yet; "
                "use KERAS_BACKEND=tensorflow"
            )
        self._own = TensorFlow()
        self._model = model
        self._recipe = recipe
        self._device = None if device is None else self._own.find_device(device)
        self.device = self._device or self._own.device_of(model.variables)
        with self._on_device():
            self._batches = [Batch(batch, recipe, model) for batch in batches]
        self.batch_size = self._batches[0].size
        self.noise = _NOISE.get(model.compute_dtype, self.noise)
        self._chosen_optimizer = check_optimizer(recipe.optimizer)
        self._optimizer: Any = None
        self._objective = Objective(model, recipe)
        self._random: RandomState | None = None
        self._snapshot: Snapshot | None = None
        self._cleanup = contextlib.ExitStack()
        self._described: list[Layer] | None = None
        self._order: Order | None = None
        self._find_layers()

    @classmethod
    def accepts(cls, model: object) -> bool:
        """Whether `model` is a Keras 3 model."""
        return isinstance(model, keras.Model)

    def _on_device(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self._device is None else self._own.on(self._device)

    def _find_layers(self) -> None:
        """Look for layers with running statistics: they have them once they are built."""
        places = {} if self._order is None else self._order.places
        self._parts = Inventory(self._model, places, self._own)
        self._records = [Record() for _ in self._parts.layers]
        self._dropouts = Modes(self._parts.dropouts, self._own)
        self._whole = Modes([self._model], self._own)
        self._attributes: dict[tuple[int, str], Any] | None = None
        self._losses: list[Tensor] = []
        self._log: list[Tensor] = []
        self._history: list[Statistics] = []

    # before -----------------------------------------------------------------------------------

    def save(self) -> None:
        __tracebackhide__ = True
        self._keep_random_state()
        try:
            self._cleanup.enter_context(self._own.nothing_traced())
            with self._on_device():
                if not all(layer.built for layer in self._model._flatten_layers()):
                    self._look_at_order()
                self._snapshot = Snapshot(self._model, self._own)
        except BaseException:
            self.restore()
            raise

    def restore(self, *, keep_weights: bool = False) -> None:
        with self._on_device():
            if self._snapshot is not None:
                self._snapshot.restore(keep_weights=keep_weights)
            if self._random is not None:
                self._random.restore()
                self._own.forget_kernels()
        self._snapshot = self._random = None
        self._cleanup.close()

    def _keep_random_state(self) -> None:
        if self._random is None:
            self._random = RandomState.capture()

    def _look_at_order(self) -> None:
        """One inference pass, which builds what is not built and shows what runs when."""
        __tracebackhide__ = True
        self._order = Order(self._model, self._own)
        with self._order.watch():
            self._forward(self._batches[0], training=False)
        self._objective.last_layer = self._order.last
        self._find_layers()

    # training ---------------------------------------------------------------------------------

    def begin(self) -> None:
        __tracebackhide__ = True
        with self._on_device():
            if self._order is None:
                # An eval pass before training must not change the training.
                random, model = RandomState.capture(), Snapshot(self._model, self._own)
                self._look_at_order()
                model.restore()
                random.restore()
            self._described = self._parts.describe()
            self._optimizer = make_optimizer(self._chosen_optimizer, self._model)
            if getattr(self._model, "optimizer", None) is not None:
                # A step of the user's that asks the model for its optimizer must not move theirs.
                self._model.__dict__["optimizer"] = self._optimizer
            self._log = [self._packed()]

    def train_step(self, batch: int) -> None:
        __tracebackhide__ = True
        first = not self._losses
        with (
            self._on_device(),
            replaced_calls(self._counted(self._records)),
            self._dropouts.watch(),
            self._whole.watch(),
        ):
            before = fingerprint(self._own, self._parts.seeds) if first else ()
            self._losses.append(self._step(self._batches[batch]))
            if first:
                self.stochastic = before != fingerprint(self._own, self._parts.seeds)
            self._log.append(self._packed())

    def _step(self, batch: Batch) -> Tensor:
        __tracebackhide__ = True
        if self._recipe.train_step is not None:
            loss = self._recipe.train_step(self._model, batch.whole)
            loss = loss.get("loss") if isinstance(loss, dict) else loss
            if not hasattr(loss, "dtype") and not isinstance(loss, (int, float)):
                raise InputError(
                    f"train_step= must return the loss as a number, got {type(loss).__name__}"
                )
            return scalar(loss)

        def losses() -> tuple[Tensor, Tensor]:
            __tracebackhide__ = True
            outputs = self._forward(batch, training=True)
            return self._objective.losses(outputs, batch.inputs, batch.targets)

        return self._own.step(self._model, self._optimizer, losses)

    @property
    def losses(self) -> list[float]:
        return [float(loss) for loss in self._losses]

    @property
    def history(self) -> list[Statistics]:
        self._history += [self._unpacked(packed) for packed in self._log[len(self._history) :]]
        return list(self._history)

    @property
    def calls(self) -> Calls:
        return calls_of(self._records)

    # looking ----------------------------------------------------------------------------------

    @property
    def idle(self) -> list[str]:
        if self._whole.training:
            return []  # the mode got to the model: what a layer was told then is the user's design
        normal = {
            id(layer)
            for k, layer in enumerate(self._parts.layers)
            if self._only_infers(k) and layer.trainable
        }
        only = normal | (self._dropouts.inference - self._dropouts.training)
        return [path for layer, path in self._parts.named if id(layer) in only]

    def _only_infers(self, k: int) -> bool:
        return self._records[k].inference > 0 and not self._records[k].training

    def layers(self) -> list[Layer]:
        described = self._described or self._parts.describe()
        if not self._whole.training:
            return list(described)
        return [
            dataclasses.replace(layer, frozen=layer.frozen or self._only_infers(k))
            for k, layer in enumerate(described)
        ]

    def read(self) -> Statistics:
        return self._unpacked(self._packed())

    def write(self, statistics: Statistics, *, exact: bool = False) -> None:
        # Keras stores the biased variance, so both conventions are the same.
        for layer, mean, var in zip(
            self._parts.layers, statistics.mean, statistics.var, strict=True
        ):
            for variable, value in ((layer.moving_mean, mean), (layer.moving_variance, var)):
                variable.assign(np.reshape(value, variable.shape))

    def _packed(self) -> Tensor:
        return pack([self._own.copy(v) for k in self._parts.layers for v in statistics_of(k)])

    def _unpacked(self, packed: Tensor) -> Statistics:
        sizes = [int(np.prod(v.shape)) for k in self._parts.layers for v in statistics_of(k)]
        values = split(packed, sizes)
        return Statistics(tuple(values[0::2]), tuple(values[1::2]))

    # passes -----------------------------------------------------------------------------------

    def predict(self, batch: int) -> Prediction:
        __tracebackhide__ = True
        # No layer has a mode of its own that it could miss a change of: `in_training` stays empty.
        with self._on_device():
            found = self._pass(self._batches[batch], training=False)
            return self._prediction(self._batches[batch], found)

    def predict_half(self, batch: int) -> Prediction | None:
        half = self._batches[batch].half()
        if half is None:
            return None
        with self._on_device(), put_back(self._parts.variables, self._own):
            try:
                found = self._pass(half, training=False)
            except Exception:  # whatever a model made for one size says to another
                return None
            return self._prediction(half, found)

    def trace(self, batch: int) -> list[Trace]:
        tracer = Tracer(self._parts.named, self._parts.drawn, self._parts.idle, self._own)
        with self._on_device(), put_back(self._parts.variables, self._own):
            return tracer.run(lambda: self._forward(self._batches[batch], training=False))

    def sticky(self, batch: int) -> list[str]:
        def forward() -> Any:
            with put_back([*self._parts.variables, *self._parts.seeds], self._own):
                return self._forward(self._batches[batch], training=True)

        with self._on_device():
            return sticky_attributes(self._parts.named, self._attributes or {}, forward, self.noise)

    def predict_with_batch_statistics(self, batch: int) -> tuple[Prediction, Statistics, Calls]:
        __tracebackhide__ = True
        with self._on_device():
            found = self._pass(self._batches[batch], training=False, collect=True, force=True)
            prediction = self._prediction(self._batches[batch], found)
            return prediction, self._batch_statistics(found), calls_of(found.records)

    def batch_statistics(self, batch: int) -> Statistics:
        __tracebackhide__ = True
        with self._on_device():
            found = self._pass(self._batches[batch], training=True, collect=True)
            return self._batch_statistics(found)

    def predict_on_training_path(self, batch: int) -> Prediction:
        __tracebackhide__ = True
        with self._on_device():
            found = self._pass(
                self._batches[batch], training=True, collect=True, force=True, mute=True
            )
            return self._prediction(self._batches[batch], found)

    def _pass(
        self,
        batch: Batch,
        *,
        training: bool,
        collect: bool = False,
        force: bool = False,
        mute: bool = False,
    ) -> _Pass:
        """One forward pass.

        Parameters
        ----------
        collect
            Record batch statistics; all variables but the states of random generators are put back.
        force
            The layers that used batch statistics in training use them now.
        mute
            All other layers of Keras are in inference mode.
        """
        __tracebackhide__ = True
        records = [Record() for _ in self._parts.layers]
        if self._attributes is None and not training:  # the first pass that can leave them changed
            self._attributes = plain_attributes(self._parts.named)
        with contextlib.ExitStack() as changes:
            if collect:
                changes.enter_context(put_back(self._parts.variables, self._own))
                calls = self._counted(records, force=force, collect=True)
                changes.enter_context(replaced_calls(calls))
            if mute:
                kept = [layer for k, layer in enumerate(self._parts.layers) if self._trains(k)]
                changes.enter_context(replaced_calls(muted(self._model, kept)))
            watched = self._parts.watched(statistics=not collect)
            random, state = fingerprint(self._own, self._parts.drawn), contents(watched.values())
            outputs = self._forward(batch, training=training)
            moved = zip(watched, state, contents(watched.values()), strict=True)
            return _Pass(
                outputs,
                records,
                random=random != fingerprint(self._own, self._parts.drawn),
                mutated=tuple(name for name, old, new in moved if old != new),
            )

    def _counted(
        self, records: Sequence[Record], *, force: bool = False, collect: bool = False
    ) -> list[Replacement]:
        return [
            counted(layer, record, self._own, force=force and self._trains(k), collect=collect)
            for k, (layer, record) in enumerate(zip(self._parts.layers, records, strict=True))
        ]

    def _trains(self, k: int) -> bool:
        """Whether the layer used batch statistics in training, or would have without any step."""
        return self._parts.layers[k].trainable and (
            not self._losses or self._records[k].training > 0
        )

    def _forward(self, batch: Batch, *, training: bool) -> Any:
        __tracebackhide__ = True
        # As fit and predict: the mode is passed only to a model whose call takes it.
        mode = training if self._model._call_has_training_arg else None
        if self._recipe.forward is not None:
            with in_mode(self._model, mode):
                return self._recipe.forward(self._model, batch.whole)
        return self._model(batch.inputs, **({} if mode is None else {"training": mode}))

    def _prediction(self, batch: Batch, found: _Pass) -> Prediction:
        outputs, targets, judge = found.outputs, batch.targets, self._objective
        loss: float | None = None
        with contextlib.suppress(InputError):
            loss = float(judge.loss(outputs, targets))
        return Prediction(
            outputs=floating(outputs, batch.size),
            structure=structure(outputs, batch.size),
            loss=loss,
            accuracy=judge.accuracy(outputs, targets),
            constant_loss=None if loss is None else judge.constant_loss(outputs, targets),
            random=found.random,
            mutated=found.mutated,
        )

    def _batch_statistics(self, found: _Pass) -> Statistics:
        return batch_statistics_of(self._parts.layers, found.records, self.read())
