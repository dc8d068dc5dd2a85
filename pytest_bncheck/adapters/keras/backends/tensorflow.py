"""Keras' TensorFlow backend."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from pytest_bncheck.adapters.keras.backends import tensorflow_internals as internals
from pytest_bncheck.adapters.keras.backends.base import Backend, Loose, Losses, Tensor, Variable
from pytest_bncheck.adapters.keras.state import contents, value_of
from pytest_bncheck.adapters.switches import Switch, remember_all
from pytest_bncheck.adapters.undo import Undo
from pytest_bncheck.types import InputError


class TensorFlow(Backend):
    """See `Backend`."""

    name = "tensorflow"
    walked = (tf.Module, tf.train.ExponentialMovingAverage, tf.train.Checkpoint)
    compilation = "graph"
    steps_to_pay = 20
    _tracing = False

    def devices(self, wish: str = "") -> list[str]:
        return [self._short(device.name) for device in tf.config.list_logical_devices()]

    def device_of(self, variables: Sequence[Variable]) -> str:
        if variables:
            return self._short(variables[0].value.device)
        return next((name for name in self.devices() if name.startswith("gpu")), "cpu")

    @staticmethod
    def _short(name: Any) -> str:
        device, _, index = str(name).lower().rpartition("/device:")[2].partition(":")
        return device if device == "cpu" and index == "0" else f"{device}:{index}"

    def move(self, variables: Sequence[Variable], device: str) -> Callable[[], None]:
        return lambda: None  # operations copy what lies elsewhere

    def replicas_of(self, value: Tensor) -> tuple[Any, ...]:
        if not isinstance(value, tf.distribute.DistributedValues):
            return (value,)
        if tf.distribute.has_strategy():
            raise InputError(
                "model: it has several replicas, and a check of it inside strategy.scope() cannot "
                "be made; only the model has to be made there, leave that block before the check"
            )
        return tuple(value.values)

    def eager(self) -> bool:
        return super().eager() and (self._tracing or bool(tf.executing_eagerly()))

    def copy(self, variable: Variable) -> Tensor:
        # The buffer is shared until one of the two is written.
        return tf.identity(value_of(variable))

    def remember(self, item: object) -> Undo | None:
        if isinstance(item, tf.random.Generator):
            return self.remember(item.state)
        if isinstance(item, _TABLES):
            return _remember_table(item)
        if not isinstance(item, tf.Variable) or tf.is_symbolic_tensor(item):
            return None
        values = item.numpy()

        def undo() -> None:
            if item.numpy().tobytes() != values.tobytes():
                item.assign(values)

        return undo

    def not_put_back(self, item: object) -> str | None:
        return "queues" if isinstance(item, tf.queue.QueueBase) else None

    def flags(self) -> Callable[[], None]:
        return remember_all((*_SWITCHES, *internals.switches()))

    def change(self, variables: Sequence[Variable]) -> Callable[[], bool]:
        before = contents(variables)
        return lambda: contents(variables) != before

    def concrete(self, tensor: Tensor) -> Tensor | None:
        return None if tf.is_symbolic_tensor(tensor) else tensor

    def loose(self, holder: Any, key: Any) -> Variable | None:
        value = holder[key]
        if isinstance(value, tf.Variable):
            return value
        eager = isinstance(value, tf.Tensor) and not tf.is_symbolic_tensor(value)
        numbers = eager and (value.dtype.is_floating or value.dtype.is_integer)
        return Loose(holder, key) if numbers else None

    def untracked_seeds(self, value: object) -> list[Variable]:
        return [value.state] if isinstance(value, tf.random.Generator) else []

    def gradients(
        self, losses: Losses, variables: Sequence[Variable]
    ) -> tuple[Any, list[Tensor | None]]:
        __tracebackhide__ = True
        with tf.GradientTape() as tape:
            first, total = losses()
        return first, tape.gradient(total, list(variables))

    def models_step(self, model: Any, optimizer: Any, data: Any) -> Any:
        __tracebackhide__ = True
        return model.train_step(data)

    def compiled(
        self,
        function: Callable[[Any], Any],
        variables: Sequence[Variable],
        inputs: Any,
        *,
        few_runs: bool = False,
    ) -> Callable[[Any], Any]:
        graph = tf.function(function, jit_compile=False, autograph=False)
        self._tracing = True
        try:
            with _eagerly(False):
                traced = graph.get_concrete_function(inputs)
            internals.forget_gradients(traced.graph)
        finally:
            self._tracing = False

        def run(inputs: Any) -> Any:
            with _eagerly(False):
                return graph(inputs)

        return run

    def nothing_traced(self) -> contextlib.AbstractContextManager[Any]:
        return _eagerly(True)

    def noting_draws(self, note: Callable[[str], None]) -> contextlib.AbstractContextManager[Any]:
        return internals.noting_draws(note)


def _set_filtering(on: bool) -> None:
    debugging: Any = tf.debugging
    change = "enable" if on else "disable"
    getattr(debugging, f"{change}_traceback_filtering")()


_SWITCHES: tuple[Switch, ...] = (
    (
        tf.config.experimental.tensor_float_32_execution_enabled,
        tf.config.experimental.enable_tensor_float_32_execution,
    ),
    (tf.config.get_soft_device_placement, tf.config.set_soft_device_placement),
    (tf.config.optimizer.get_jit, tf.config.optimizer.set_jit),
    (tf.summary.experimental.get_step, tf.summary.experimental.set_step),
    (tf.debugging.is_traceback_filtering_enabled, _set_filtering),
)

_TABLES = (tf.lookup.experimental.MutableHashTable, tf.lookup.experimental.DenseHashTable)


def _remember_table(table: Any) -> Undo:
    """How to put back a table that code fills while it works."""
    keys, values = internals.items_of(table)

    def undo() -> None:
        now, held = internals.items_of(table)
        if now.tobytes() != keys.tobytes() or held.tobytes() != values.tobytes():
            table.remove(now)
            table.insert(keys, values)

    return undo


@contextlib.contextmanager
def _eagerly(on: bool) -> Iterator[None]:
    """Whether every ``tf.function`` runs eagerly, for a while."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(on)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)
