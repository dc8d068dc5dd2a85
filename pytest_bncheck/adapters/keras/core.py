"""Keras 3, on TensorFlow, PyTorch or JAX: models of any kind, run by direct calls.

Nothing goes through the model's compiled functions: they would keep, or ignore, what a check
changes for the time of a pass. How a layer with running statistics is called is seen, and changed,
by another ``call`` on the instance, which works wherever the layer is nested.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import keras

from pytest_bncheck.adapters.base import (
    Adapter,
    Mode,
    Pass,
    Replicated,
    Sampling,
    Sloping,
    Streaming,
    Watching,
)
from pytest_bncheck.adapters.devices import pick, rounding
from pytest_bncheck.adapters.keras import internals
from pytest_bncheck.adapters.keras.backends.base import own_backend
from pytest_bncheck.adapters.keras.batch import Batch, has_custom_step, not_finite
from pytest_bncheck.adapters.keras.calls import Order, replaced_calls, without_idle_draws
from pytest_bncheck.adapters.keras.data import batched, floating, structure, without_rows
from pytest_bncheck.adapters.keras.layers import DIALECT, Layers
from pytest_bncheck.adapters.keras.loss import Criterion
from pytest_bncheck.adapters.keras.passes import Passes
from pytest_bncheck.adapters.keras.records import (
    Outcome,
    batch_statistics_of,
    calls_of,
    streams_of,
)
from pytest_bncheck.adapters.keras.slopes import Slopes
from pytest_bncheck.adapters.keras.state import Snapshot, besides_building, put_back
from pytest_bncheck.adapters.keras.step import check_optimizer
from pytest_bncheck.adapters.keras.stock import strangers
from pytest_bncheck.adapters.keras.subject import Subject
from pytest_bncheck.adapters.keras.tracing import Tracer
from pytest_bncheck.adapters.keras.training import Training
from pytest_bncheck.adapters.random_state import RandomState
from pytest_bncheck.adapters.states import Adopted
from pytest_bncheck.adapters.undo import run_all
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


class KerasCore(Adapter, Watching, Sampling, Streaming, Replicated, Sloping):
    """What every check asks of a Keras model under test; see `Adapter`."""

    framework = "keras"
    dialect = DIALECT

    def __init__(
        self, model: Any, batches: Sequence[Any], recipe: Recipe, device: str | None
    ) -> None:
        backend = own_backend()
        internals.require(model)
        self.backend = backend.name
        self._subject = Subject(model, recipe, backend)
        home = backend.device_of(model.variables)
        self.device = home if device is None else pick(device, backend.devices(device))
        self._moves = self.device != home
        usual = self.device == home == backend.device_of(())  # where new tensors are anyway
        self._device = None if usual else self.device
        with self._on_device():
            self._batches = [Batch(batch, recipe, model) for batch in batches]
        self.batch_size = self._batches[0].size
        self.noise = rounding(model.compute_dtype, self.device)
        check_optimizer(recipe.optimizer)
        self._criterion = Criterion(self._subject)
        self._snapshot: Snapshot | None = None
        self._cleanup = contextlib.ExitStack()
        self._described: list[Layer] | None = None
        self._order: Order | None = None
        self._known: dict[tuple[int, Mode], Pass] = {}  # passes that would repeat another
        self._look_for_layers()

    @classmethod
    def accepts(cls, model: object) -> bool:
        """Whether `model` is a Keras 3 model."""
        return isinstance(model, keras.Model)

    def _on_device(self) -> contextlib.AbstractContextManager[Any]:
        device, backend = self._device, self._subject.backend
        return contextlib.nullcontext() if device is None else backend.on(device)

    @contextlib.contextmanager
    def _without_gradients(self) -> Iterator[None]:
        with self._on_device(), self._subject.backend.without_gradients():
            yield

    def _look_for_layers(self) -> None:
        """Look for layers: unbuilt ones have no running statistics yet."""
        subject, order = self._subject, self._order
        places = {} if order is None else order.places
        self._layers = Layers(subject.model, subject.backend, places)
        if order is not None:
            strange = strangers(self._layers.tracking, order.shapes, subject.backend)
            if strange:
                self._layers = Layers(subject.model, subject.backend, places, strange)
        self._passes = Passes(subject, self._layers)
        self._slopes = Slopes(subject, self._layers)
        self._training = Training(subject, self._layers, self._criterion)
        self._known.clear()
        self._adopted = Adopted()

    # before -----------------------------------------------------------------------------------

    def save(self) -> None:
        __tracebackhide__ = True
        subject = self._subject
        functions = vars(subject.recipe).values()
        for batch in self._batches if self.expected_steps else ():
            batch.require_targets()
        try:
            self._cleanup.enter_context(subject.backend.nothing_traced())
            if not all(layer.built for layer in internals.flat_layers(subject.model)):
                with besides_building(subject.model, subject.backend, functions):
                    self._watch_order()
            self._snapshot = Snapshot(subject.model, subject.backend, functions)
            self._snapshot.name_what_is_left()
            if self._moves:
                back = subject.backend.move(self._snapshot.variables, self.device)
                self._cleanup.callback(back)
            if subject.recipe.train_step is None and not has_custom_step(subject.model):
                self._cleanup.callback(subject.backend.lay_out(self._layers.kernels))
        except BaseException:
            self.restore()
            raise

    def restore(self, *, keep_weights: bool = False) -> None:
        snapshot, self._snapshot = self._snapshot, None
        with contextlib.nullcontext() if self._moves else self._on_device():
            back = snapshot and [partial(snapshot.restore, keep_weights=keep_weights)]
            run_all([self._cleanup.close, *(back or ())])

    def _watch_order(self) -> None:
        """One pass in eval mode, which builds what is not built and shows the layers' order."""
        __tracebackhide__ = True
        subject, batch = self._subject, self._batches[0]
        order = Order(subject.model, subject.backend)
        quiet = without_idle_draws(self._layers.recurrent, subject.backend)
        with order.watch(), replaced_calls(quiet), subject.backend.without_gradients():
            outputs = subject.forward(batch, training=False)
        self._criterion.last_layer = order.last
        self._criterion.learn_from(outputs, batch)
        self._order = order
        self._look_for_layers()

    def _rehearse_order(self) -> bool:
        """The same without arithmetic; False if the backend or the user's code needs values."""
        subject, batch = self._subject, self._batches[0]
        if subject.recipe.forward is not None:
            return False
        order = Order(subject.model, subject.backend)

        def look(inputs: Any) -> None:
            outputs = subject.forward(batch.with_inputs(inputs), training=False)
            self._criterion.last_layer = order.last
            if subject.backend.compilation is not None:
                self._criterion.learn_from(outputs, batch)

        with order.watch():
            if not subject.backend.rehearsed(look, batch.inputs):
                return False
        self._order = order
        self._look_for_layers()
        return True

    # training ---------------------------------------------------------------------------------

    def begin(self) -> None:
        __tracebackhide__ = True
        with self._on_device():
            if self._order is None:
                # An eval pass before training must not change the training.
                random = RandomState.capture()
                before = None if self._moves else self._snapshot  # of values on another device
                before = before or Snapshot(self._subject.model, self._subject.backend)
                if not self._rehearse_order():
                    self._watch_order()
                before.undo_so_far()
                random.restore()
            self._described = self._layers.describe()
            self._training.begin(self.expected_steps // len(self._batches))
            if not self.expected_steps:
                self._training.observe(self._batches[0])
                self.assumes_modes = self._training.assumed

    def train_step(self, index: int) -> None:
        __tracebackhide__ = True
        self.step(index)

    def step(self, index: int) -> Tensor:
        __tracebackhide__ = True
        training = self._training
        with self._on_device():
            training.make_step(self._batches[index])
            if len(training.losses) == self.expected_steps and training.execution != "eager":
                self._passes.prepare(self._batches[0])
        self.stochastic = training.stochastic
        return training.losses[-1]

    def resume(self) -> None:
        self._known.clear()
        self._passes.resume()

    @property
    def ends(self) -> str | None:
        return self._training.ends

    def finish(self) -> None:
        with self._without_gradients():
            self._training.finish()
        self._known.clear()

    @property
    def execution(self) -> str:
        """How the training steps ran: ``eager``, ``graph`` (TensorFlow) or ``jit`` (JAX)."""
        return self._training.execution

    @property
    def _losses(self) -> list[Any]:
        return self._training.losses

    def fetched(self, losses: Sequence[Any]) -> list[float]:
        return [float(each) for each in self._subject.backend.fetch(losses)]

    @property
    def history(self) -> list[Statistics]:
        return self._adopted.history(self._training.history)

    @property
    def calls(self) -> Calls:
        return self._adopted.calls(calls_of(self._training.records))

    @property
    def streams(self) -> Mapping[str, Streams]:
        if not self._training.losses:
            return {}
        records, around = self._training.records, self._training.history[-2:]
        streams = streams_of(self.layers()[: len(records)], records, around, self._subject.backend)
        in_time = self._layers.in_time()
        return {name: each for name, each in streams.items() if name not in in_time}

    def agree(self, value: bool) -> bool:
        return value

    # looking ----------------------------------------------------------------------------------

    @property
    def idle(self) -> list[str]:
        training = self._training
        # If the mode reached the model, a mode that a layer was given is the user's design.
        watch = training.seen.watch
        reached = bool(watch.model.training)
        idle = {
            id(layer)
            for k, layer in enumerate(self._layers.tracking)
            if training.only_infers(k, with_mode=False if reached else None) and layer.trainable
        }
        if not reached:
            only_infer = watch.layers.inference - watch.layers.training
            idle |= only_infer & set(map(id, self._layers.dropouts))
        return [path for layer, path in self._layers.named if id(layer) in idle]

    def not_finite(self, index: int) -> str | None:
        return not_finite(self._batches[index].whole)

    def layers(self) -> list[Layer]:
        described = self._described or self._layers.describe()
        adopted = self._adopted.layers(self.dialect.momentum_of)
        if not self._training.seen.watch.model.training:
            return [*described, *adopted]
        known = [
            dataclasses.replace(
                layer, frozen=layer.frozen or self._training.only_infers(k, with_mode=True)
            )
            for k, layer in enumerate(described)
        ]
        return [*known, *adopted]

    def read(self, *, exact: bool = False) -> Statistics:
        known, names = self._layers.read(), self._adopted.names
        return self._adopted.after(known, self._layers.states.read() if names else {})

    def write(self, statistics: Statistics, *, exact: bool = False) -> None:
        # Keras stores the biased variance, so both conventions are the same.
        known, states = self._adopted.apart(statistics)
        with self._on_device():
            self._layers.write(known)
            self._layers.states.write(states)

    # passes -----------------------------------------------------------------------------------

    def predict_again(self, index: int) -> Prediction:
        __tracebackhide__ = True
        batch = self._batches[index]
        with self._without_gradients(), self._passes.kept():
            self._passes.go_on(batch, Mode.EVAL, observe=False)
            return self._prediction(batch, self._passes.go_on(batch, Mode.EVAL))

    def run(self, index: int, mode: Mode, *, observe: bool = True) -> Pass:
        __tracebackhide__ = True
        known = self._known.pop((index, mode), None)
        if known is not None:
            return known
        batch = self._batches[index]
        with self._without_gradients():
            if mode is Mode.BATCH_STATISTICS:
                return self._with_batch_statistics(index)
            outcome = self._passes.run(batch, mode, self._training.modes(), observe=observe)
            if mode is Mode.TRAINING:
                return Pass(None, self._batch_statistics(outcome))
            return Pass(self._prediction(batch, outcome), calls=calls_of(outcome.records))

    def _with_batch_statistics(self, index: int) -> Pass:
        __tracebackhide__ = True
        layers, batch = self._layers, self._batches[index]
        found = self._pass_from_step(batch) or self._normalised(batch)
        if layers.same_on_path and self._subject.recipe.forward is None:
            # No user code can behave differently on the training path: it gives the same.
            self._known[index, Mode.TRAINING_PATH] = Pass(found.prediction)
            if layers.only_normalises and self._training.losses:
                # Nor does anything else in the model depend on the mode.
                self._known[index, Mode.TRAINING] = Pass(None, found.statistics)
        return found

    def _normalised(self, batch: Batch) -> Pass:
        """A pass in eval mode with batch statistics."""
        __tracebackhide__ = True
        modes = self._training.modes()
        outcome = self._passes.run(batch, Mode.BATCH_STATISTICS, modes)
        prediction = self._prediction(batch, outcome)
        return Pass(prediction, self._batch_statistics(outcome), calls_of(outcome.records))

    def _pass_from_step(self, batch: Batch) -> Pass | None:
        """The same pass by a compiled training step, None where a step does not include it."""
        programs = self._training.programs
        found = None if programs is None else programs.pass_from_step(batch)
        if found is None:
            return None
        outcome, statistics = found
        return Pass(self._prediction(batch, outcome), statistics, calls_of(outcome.records))

    def predict_half(self, index: int) -> Prediction | None:
        batch = self._batches[index]
        if batch.size is None or batch.size < 2:
            return None
        with self._without_gradients(), self._variables_kept():
            try:
                outcome = self._passes.run_half(batch)
            except Exception:  # whatever a model made for one size says to another
                return None
            half = batch.size // 2
            return _without_loss(outcome, half, [half, *(n // 2 for n in batch.sizes[1:])])

    def trace(self, index: int) -> list[Trace]:
        tracer = Tracer(self._layers, self._subject.backend)
        with self._without_gradients(), self._variables_kept():
            forward = self._subject.forward
            return tracer.run(lambda: forward(self._batches[index], training=False))

    def draws(self, index: int) -> list[Trace]:
        tracer = Tracer(self._layers, self._subject.backend)
        found = tracer.run(lambda: self.run(index, Mode.TRAINING))
        return [trace for trace in found if trace.kind == "random"]

    def sticky(self, index: int) -> list[str]:
        attributes, seeds = self._passes.attributes, self._layers.seeds

        def outputs() -> Mapping[str, Array]:
            with self._variables_kept(), put_back(seeds, self._subject.backend):
                return floating(self._subject.forward(self._batches[index], training=True), ())

        with self._without_gradients():
            return [] if attributes is None else attributes.sticky(outputs, self.noise)

    def slopes(self, index: int, direction: Mapping[str, Array]) -> list[Slope | None] | None:
        __tracebackhide__ = True
        batch, compile_it = self._batches[index], self._passes.programs.pays

        def forward(inputs: Any) -> dict[str, Tensor]:
            outputs = self._subject.forward(batch.with_inputs(inputs), training=False)
            return batched(outputs, batch.sizes)

        with self._on_device(), self._variables_kept():
            slopes = self._slopes.along(direction, forward, batch.inputs, compile_it=compile_it)
        more = len(self._adopted.layers(self.dialect.momentum_of))
        return None if slopes is None else [*slopes, *[None] * more]

    def _variables_kept(self) -> contextlib.AbstractContextManager[None]:
        return put_back(self._layers.variables, self._subject.backend)

    def _prediction(self, batch: Batch, outcome: Outcome) -> Prediction:
        outputs, criterion = outcome.outputs, self._criterion
        loss: float | None = None
        with contextlib.suppress(InputError):
            loss = float(criterion.loss(outputs, batch))
            criterion.decide(loss, outputs, batch.targets, own_step=self._training.is_users)
        return dataclasses.replace(
            _without_loss(outcome, batch.size, batch.sizes),
            loss=loss,
            accuracy=criterion.accuracy(outputs, batch.targets),
            constant_loss=None if loss is None else criterion.constant_loss(outputs, batch),
        )

    def _batch_statistics(self, outcome: Outcome) -> Statistics:
        layers, backend = self._layers, self._subject.backend
        return batch_statistics_of(layers.tracking, outcome.records, layers.read(), backend)


def _without_loss(outcome: Outcome, size: int | None, sizes: Sequence[int]) -> Prediction:
    return Prediction(
        outputs=floating(outcome.outputs, sizes),
        without_rows=without_rows(outcome.outputs, sizes),
        structure=structure(outcome.outputs, size),
        random=outcome.random,
        mutated=outcome.mutated,
        rewritten=outcome.rewritten,
    )
