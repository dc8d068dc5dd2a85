"""Keras 3, on TensorFlow, PyTorch or JAX: models of any kind, run by direct calls.

Nothing goes through the model's compiled functions: they would keep, or ignore, what a check
changes for the time of a pass. How a layer with running statistics is called is seen, and changed,
by another ``call`` on the instance, which works wherever the layer is nested.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import keras
import numpy as np

from pytest_bncheck.adapters.base import Adapter, Mode, Pass, Sampling, Sloping, Streaming, Watching
from pytest_bncheck.adapters.devices import pick, rounding
from pytest_bncheck.adapters.keras import internals
from pytest_bncheck.adapters.keras.backends.base import own_backend, split, wide_type
from pytest_bncheck.adapters.keras.calls import Order, batch_statistics_of, calls_of, streams_of
from pytest_bncheck.adapters.keras.data import (
    Batch,
    batched,
    check_optimizer,
    floating,
    has_own_step,
    remixed,
    structure,
)
from pytest_bncheck.adapters.keras.layers import DIALECT, Inventory, in_time, statistics_of
from pytest_bncheck.adapters.keras.loss import Objective
from pytest_bncheck.adapters.keras.passes import Pass as Ran
from pytest_bncheck.adapters.keras.passes import Passes
from pytest_bncheck.adapters.keras.slopes import Slopes
from pytest_bncheck.adapters.keras.state import Snapshot, put_back, value_of
from pytest_bncheck.adapters.keras.step import Steps
from pytest_bncheck.adapters.keras.tracing import Tracer
from pytest_bncheck.adapters.random_state import RandomState
from pytest_bncheck.types import (
    Calls,
    InputError,
    Layer,
    Prediction,
    Recipe,
    Statistics,
    Streams,
    Trace,
)

if TYPE_CHECKING:
    from pytest_bncheck.types import Array, Slope

Tensor: TypeAlias = Any
Variable: TypeAlias = Any


class KerasAdapter(Adapter, Watching, Sampling, Streaming, Sloping):
    """A Keras model under test; see `Adapter`."""

    framework = "keras"
    dialect = DIALECT

    def __init__(
        self, model: Any, batches: Sequence[Any], recipe: Recipe, device: str | None
    ) -> None:
        internals.require(model)
        self._own = own_backend()
        self.backend = self._own.name
        self._model = model
        self._recipe = recipe
        home = self._own.device_of(model.variables)
        self.device = home if device is None else pick(device, self._own.devices())
        self._device = None if self.device == home else self.device
        with self._on_device():
            self._batches = [Batch(batch, recipe, model) for batch in batches]
        self.batch_size = self._batches[0].size
        self.noise = rounding(model.compute_dtype, self.device)
        self._optimizer = check_optimizer(recipe.optimizer)
        self._objective = Objective(model, recipe, self._own)
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

    @contextlib.contextmanager
    def _looking(self) -> Iterator[None]:
        with self._on_device(), self._own.without_gradients():
            yield

    def _find_layers(self) -> None:
        """Look for layers with running statistics: they have them once they are built."""
        places = {} if self._order is None else self._order.places
        self._parts = Inventory(self._model, places, self._own)
        self._passes = Passes(self._model, self._recipe, self._parts, self._own, self._trains)
        self._slopes = Slopes(self._model, self._parts, self._own)
        self._steps = Steps(
            self._model,
            self._recipe,
            self._optimizer,
            self._parts,
            self._objective,
            self._own,
            lambda batch: self._passes.forward(batch, training=True),
            self._packed,
        )
        self._read_log: list[Statistics] = []
        self._path: dict[int, Prediction | None] = {}
        self._trained_on: dict[int, Statistics] = {}

    # before -----------------------------------------------------------------------------------

    def save(self) -> None:
        __tracebackhide__ = True
        try:
            self._cleanup.enter_context(self._own.nothing_traced())
            if not all(layer.built for layer in internals.flat_layers(self._model)):
                self._look_at_order()
            functions = vars(self._recipe).values()
            self._snapshot = Snapshot(self._model, self._own, functions)
            if self._device is not None:
                self._cleanup.callback(self._own.move(self._snapshot.variables, self._device))
            if self._recipe.train_step is None and not has_own_step(self._model):
                self._cleanup.callback(self._own.lay_out(self._parts.kernels))
        except BaseException:
            self.restore()
            raise

    def restore(self, *, keep_weights: bool = False) -> None:
        self._cleanup.close()
        if self._snapshot is not None:
            self._snapshot.restore(keep_weights=keep_weights)
        self._snapshot = None

    def _look_at_order(self) -> None:
        """One inference pass, which builds what is not built and shows what runs when."""
        __tracebackhide__ = True
        self._order = Order(self._model, self._own)
        with self._order.watch(), self._own.without_gradients():
            outputs = self._passes.run(self._batches[0], training=False).outputs
        self._objective.last_layer = self._order.last
        self._objective.settle(outputs, self._batches[0])
        self._find_layers()

    def _rehearse(self) -> bool:
        """The same without any arithmetic, if the backend and the user's code can do without."""
        if self._recipe.forward is not None:
            return False
        order, first = Order(self._model, self._own), self._batches[0]

        def look(inputs: Any) -> None:
            outputs = self._passes.forward(first.with_inputs(inputs), training=False)
            self._objective.last_layer = order.last
            if self._own.compilation is not None:
                self._objective.settle(outputs, first)

        with order.watch():
            if not self._own.rehearsed(look, first.inputs):
                return False
        self._order = order
        self._find_layers()
        return True

    # training ---------------------------------------------------------------------------------

    def begin(self) -> None:
        __tracebackhide__ = True
        with self._on_device():
            if self._order is None:
                # An eval pass before training must not change the training.
                random, model = RandomState.capture(), Snapshot(self._model, self._own)
                if not self._rehearse():
                    self._look_at_order()
                model.restore()
                random.restore()
            self._described = self._parts.describe()
            self._steps.expected = self.expected_steps // len(self._batches)
            self._steps.begin()

    def train_step(self, index: int) -> None:
        __tracebackhide__ = True
        self.step(index)

    def step(self, index: int) -> Tensor:
        __tracebackhide__ = True
        with self._on_device():
            self._steps.make(self._batches[index])
            if len(self._steps.losses) == self.expected_steps and self.execution != "eager":
                self._passes.prepare(self._batches[0])
        self.stochastic = self._steps.stochastic
        return self._steps.losses[-1]

    @property
    def execution(self) -> str:
        """How the training steps ran: ``eager``, ``graph`` (TensorFlow) or ``jit`` (JAX)."""
        return self._steps.execution

    @property
    def losses(self) -> list[float]:
        return [float(loss) for loss in self._steps.losses]

    @property
    def history(self) -> list[Statistics]:
        log = self._steps.log
        self._read_log += [self._unpacked(packed) for packed in log[len(self._read_log) :]]
        return list(self._read_log)

    @property
    def calls(self) -> Calls:
        return calls_of(self._steps.records)

    @property
    def streams(self) -> Mapping[str, Streams]:
        if not self._steps.losses:
            return {}
        found = streams_of(self.layers(), self._steps.records, self.history[-2:], self._own)
        steps = in_time(self._parts)
        return {name: streams for name, streams in found.items() if name not in steps}

    # looking ----------------------------------------------------------------------------------

    @property
    def idle(self) -> list[str]:
        # Where the mode got to the model, what a layer was told then is the user's design.
        reached = bool(self._steps.whole.training)
        normal = {
            id(layer)
            for k, layer in enumerate(self._parts.layers)
            if self._only_infers(k, told=False if reached else None) and layer.trainable
        }
        if reached:
            return [path for layer, path in self._parts.named if id(layer) in normal]
        dropouts = self._steps.dropouts
        only = normal | (dropouts.inference - dropouts.training)
        return [path for layer, path in self._parts.named if id(layer) in only]

    def _only_infers(self, k: int, told: bool | None = None) -> bool:
        """Whether a layer only ran in inference mode; because it was told, or was not."""
        record = self._steps.records[k]
        only = record.inference > 0 and not record.training
        return only and told in (None, not record.untold)

    def _trains(self, k: int) -> bool:
        """Whether the layer used batch statistics in training, or would have without any step."""
        return self._parts.layers[k].trainable and (
            not self._steps.losses or self._steps.records[k].training > 0
        )

    def layers(self) -> list[Layer]:
        described = self._described or self._parts.describe()
        if not self._steps.whole.training:
            return list(described)
        return [
            dataclasses.replace(layer, frozen=layer.frozen or self._only_infers(k, told=True))
            for k, layer in enumerate(described)
        ]

    def read(self, *, exact: bool = False) -> Statistics:
        return self._unpacked(self._packed())

    def write(self, statistics: Statistics, *, exact: bool = False) -> None:
        # Keras stores the biased variance, so both conventions are the same.
        pairs = zip(statistics.mean, statistics.var, strict=True)
        values = [value for pair in pairs for value in pair]
        variables = self._running
        if not variables:
            return
        wide = wide_type(variables)
        shaped = [
            np.reshape(value, v.shape).astype(wide)
            for value, v in zip(values, variables, strict=True)
        ]
        with self._on_device():
            for variable, part in zip(variables, self._own.from_host(shaped), strict=True):
                variable.assign(part)

    @property
    def _running(self) -> list[Variable]:
        """Mean and variance of the first layer with running statistics, of the second, ..."""
        return [v for layer in self._parts.layers for v in statistics_of(layer)]

    def _packed(self) -> Tensor:
        return self._own.pack(list(map(value_of, self._running))) if self._running else None

    def _unpacked(self, packed: Tensor) -> Statistics:
        values = [] if packed is None else split(packed, self._running)
        return Statistics(tuple(values[0::2]), tuple(values[1::2]))

    # passes -----------------------------------------------------------------------------------

    def run(self, index: int, mode: Mode, *, observe: bool = True) -> Pass:
        __tracebackhide__ = True
        match mode:
            case Mode.EVAL:
                return Pass(self._predict(index, observe))
            case Mode.BATCH_STATISTICS:
                return self._predict_with_batch_statistics(index)
            case Mode.TRAINING:
                return Pass(None, self._batch_statistics_in_training(index))
            case Mode.TRAINING_PATH:
                return Pass(self._predict_on_training_path(index))

    def _predict(self, batch: int, observe: bool) -> Prediction:
        __tracebackhide__ = True
        # No layer has a mode of its own that it could miss a change of: `in_training` stays empty.
        with self._looking():
            found = self._passes.run(self._batches[batch], training=False, observe=observe)
            return self._prediction(self._batches[batch], found)

    def predict_half(self, index: int) -> Prediction | None:
        whole = self._batches[index]
        if whole.size is None or whole.size < 2:
            return None
        samples = whole.size // 2
        with self._looking(), put_back(self._parts.variables, self._own):
            try:
                if self._passes.compiles:  # the half over again needs no program of its own
                    found = self._passes.run(whole.first_half_again(), training=False)
                    found = found.first(samples, whole.size)
                else:
                    found = self._passes.run(whole.half(), training=False)
            except Exception:  # whatever a model made for one size says to another
                return None
            return _without_loss(found, samples)

    def trace(self, index: int) -> list[Trace]:
        tracer = Tracer(self._parts, self._own)
        with self._looking(), put_back(self._parts.variables, self._own):
            forward = self._passes.forward
            return tracer.run(lambda: forward(self._batches[index], training=False))

    def sticky(self, index: int) -> list[str]:
        attributes = self._passes.attributes

        def outputs() -> Mapping[str, Array]:
            with put_back([*self._parts.variables, *self._parts.seeds], self._own):
                return floating(self._passes.forward(self._batches[index], training=True), None)

        with self._looking():
            return [] if attributes is None else attributes.sticky(outputs, self.noise)

    def _predict_with_batch_statistics(self, batch: int) -> Pass:
        __tracebackhide__ = True
        own = self._batches[batch]
        found = self._from_a_step(own) or self._with_batch_statistics(own)
        if self._parts.is_all_library and self._recipe.forward is None:
            self._path[batch] = found.prediction
            if self._parts.only_normalises and self._steps.losses:
                self._trained_on[batch] = found.statistics
        return found

    def predict_remixed(self, batches: int) -> list[Prediction]:
        __tracebackhide__ = True
        with self._looking():
            dealt = remixed(self._batches[:batches])
        passes = [self._with_batch_statistics(batch) for batch in dealt]
        return [found.prediction for found in passes if found.prediction is not None]

    def _with_batch_statistics(self, batch: Batch) -> Pass:
        __tracebackhide__ = True
        with self._looking():
            found = self._passes.run(batch, training=False, collect=True, force=True)
            prediction = self._prediction(batch, found)
            return Pass(prediction, self._batch_statistics(found), calls_of(found.records))

    def _from_a_step(self, batch: Batch) -> Pass | None:
        """The same by the forward pass of one more training step, where that is the same."""
        with self._looking():
            found = self._steps.once_more(batch)
            if found is None:
                return None
            outputs, packed, records = found
            after, now = self._unpacked(packed), self.read()
            mean, var = list(now.mean), list(now.var)
            for k, (layer, record) in enumerate(zip(self._parts.layers, records, strict=True)):
                if record.training:
                    # From 0, calls with a momentum get this share of the way.
                    share = 1.0 - float(layer.momentum) ** record.training
                    mean[k], var[k] = after.mean[k] / share, after.var[k] / share
            seen = Ran(outputs, records, random=False, mutated=())
            statistics = Statistics(tuple(mean), tuple(var))
            return Pass(self._prediction(batch, seen), statistics, calls_of(records))

    def _batch_statistics_in_training(self, batch: int) -> Statistics:
        __tracebackhide__ = True
        if batch in self._trained_on:
            return self._trained_on.pop(batch)  # training mode is nothing but batch statistics
        with self._looking():
            found = self._passes.run(self._batches[batch], training=True, collect=True)
            return self._batch_statistics(found)

    def _predict_on_training_path(self, batch: int) -> Prediction | None:
        __tracebackhide__ = True
        if batch in self._path:
            return self._path.pop(batch)  # no code of the user's could make a difference
        with self._looking():
            found = self._passes.run(
                self._batches[batch], training=True, collect=True, force=True, mute=True
            )
            return self._prediction(self._batches[batch], found)

    def slopes(self, index: int, direction: Mapping[str, Array]) -> list[Slope | None] | None:
        __tracebackhide__ = True
        own = self._batches[index]

        def forward(inputs: Any) -> dict[str, Tensor]:
            return batched(self._passes.forward(own.with_inputs(inputs), training=False), own.size)

        with self._on_device(), put_back(self._parts.variables, self._own):
            return self._slopes.along(
                direction, forward, own.inputs, compile_it=self._passes.compiles
            )

    def _prediction(self, batch: Batch, found: Ran) -> Prediction:
        outputs, judge = found.outputs, self._objective
        loss: float | None = None
        with contextlib.suppress(InputError):
            loss = float(judge.loss(outputs, batch))
        return dataclasses.replace(
            _without_loss(found, batch.size),
            loss=loss,
            accuracy=judge.accuracy(outputs, batch.targets),
            constant_loss=None if loss is None else judge.constant_loss(outputs, batch),
        )

    def _batch_statistics(self, found: Ran) -> Statistics:
        return batch_statistics_of(self._parts.layers, found.records, self.read(), self._own)


def _without_loss(found: Ran, size: int | None) -> Prediction:
    return Prediction(
        outputs=floating(found.outputs, size),
        structure=structure(found.outputs, size),
        random=found.random,
        mutated=found.mutated,
    )
