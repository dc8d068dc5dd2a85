"""What a check can change in a Keras model and around it, and the way back.

Keras 3 leaves gradients, eager random numbers and devices to its backend: all that is a backend's
own is in `TensorFlow`; another backend is another class with the same methods.
"""

from __future__ import annotations

import contextlib
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
from keras.src.backend.common import global_state
from keras.src.layers.layer import CallContext

from pytest_bncheck.types import InputError

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
    from tensorflow.python.eager import context as tf_context

Tensor: TypeAlias = Any
Variable: TypeAlias = Any

_SEED_GENERATOR = "global_seed_generator"
_NAMES = "object_name_uids"
_CALL_CONTEXT = "current_call_ctx"


class TensorFlow:
    """What the adapter needs of TensorFlow beyond Keras."""

    name = "tensorflow"

    def devices(self) -> list[str]:
        """Devices that are there: ``["cpu", "gpu:0"]``."""
        return [self._short(device.name) for device in tf.config.list_logical_devices()]

    def device_of(self, variables: Sequence[Variable]) -> str:
        """Where a model is, or would be built."""
        if variables:
            return self._short(variables[0].value.device)
        return next((name for name in self.devices() if name.startswith("gpu")), "cpu")

    def find_device(self, device: str) -> str:
        """The device that a user asks for: ``"cpu"``, ``"cuda:1"``, ``"auto"``.

        Raises
        ------
        InputError
            If it is not there.
        """
        available = self.devices()
        wanted = device.lower().removeprefix("/").removeprefix("device:").replace("cuda", "gpu")
        if wanted == "auto":
            return next((name for name in available if name.startswith("gpu")), "cpu")
        wanted = {"cpu:0": "cpu", "gpu": "gpu:0"}.get(wanted, wanted)
        if wanted != "cpu" and wanted not in available:
            raise InputError(
                f"device {device!r} is not there; TensorFlow has {', '.join(available)}"
            )
        return wanted

    @staticmethod
    def _short(name: Any) -> str:
        kind, _, index = str(name).lower().rpartition("/device:")[2].partition(":")
        return kind if kind == "cpu" and index == "0" else f"{kind}:{index}"

    def on(self, device: str) -> contextlib.AbstractContextManager[Any]:
        """Run on a device; what lies elsewhere is copied there."""
        return tf.device(device)  # type: ignore[no-any-return]

    def eager(self) -> bool:
        """Whether code runs now, and is not being traced."""
        return bool(tf.executing_eagerly())

    def copy(self, variable: Variable) -> Tensor:
        """The value as it is now; the buffer is shared until one of the two is written."""
        return tf.identity(getattr(variable, "value", variable))

    def own_variables(self, value: object) -> list[Variable]:
        """Variables that Keras does not track: plain ones and those of random generators."""
        if isinstance(value, tf.Variable):
            return [value]
        return [value.state] if isinstance(value, tf.random.Generator) else []

    def step(
        self, model: Any, optimizer: Any, losses: Callable[[], tuple[Tensor, Tensor]]
    ) -> Tensor:
        """One optimizer step on the second of two losses; returns the first."""
        __tracebackhide__ = True
        with tf.GradientTape() as tape:
            shown, total = losses()
            total = optimizer.scale_loss(total)
        weights = model.trainable_weights
        if weights:
            gradients = tape.gradient(total, weights)
            pairs = [(g, w) for g, w in zip(gradients, weights, strict=True) if g is not None]
            if not pairs:
                raise InputError(
                    "the loss does not depend on any trainable weight of the model, so it cannot "
                    "be trained on; loss= must return a value computed from the outputs with "
                    "keras.ops or TensorFlow, not with numpy"
                )
            if not optimizer.built:  # for all weights: a later step may reach others
                optimizer.build(weights)
            optimizer.apply_gradients(pairs)
        return shown

    def random_state(self) -> object:
        """State of the generator that gives each eager random operation its seed, to compare."""
        generator = getattr(tf_context.context(), "_rng", None)
        return None if generator is None else generator.getstate()

    def forget_kernels(self) -> None:
        """Drop operations that remember where their random numbers were."""
        tf_context.context().clear_kernel_cache()

    @contextlib.contextmanager
    def noting_draws(self, note: Callable[[], None]) -> Iterator[None]:
        """Call `note` from inside each eager random operation."""
        kind = type(tf_context.context())
        original = kind._internal_operation_seed

        def noted(context: Any) -> Any:
            note()
            return original(context)

        kind._internal_operation_seed = noted
        try:
            yield
        finally:
            kind._internal_operation_seed = original

    @contextlib.contextmanager
    def nothing_traced(self) -> Iterator[None]:
        """Run ``tf.function`` eagerly: a trace would ignore, or keep, a replaced ``call``."""
        before = tf.config.functions_run_eagerly()
        tf.config.run_functions_eagerly(True)
        try:
            yield
        finally:
            tf.config.run_functions_eagerly(before)


def to_host(tensors: Sequence[Tensor]) -> list[np.ndarray[Any, Any]]:
    """Tensors as flat float64 arrays, in one transfer."""
    return split(pack(tensors), [int(np.prod(t.shape)) for t in tensors])


def pack(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors laid end to end in one, in a type that holds each exactly; stays on the device."""
    if not tensors:
        return None
    dtypes = {keras.backend.standardize_dtype(t.dtype) for t in tensors}
    wide = "float64" if "float64" in dtypes else "float32"
    return keras.ops.concatenate(
        [keras.ops.reshape(keras.ops.cast(t, wide), (-1,)) for t in tensors]
    )


def split(packed: Tensor, sizes: Sequence[int]) -> list[np.ndarray[Any, Any]]:
    """The arrays that `pack` laid end to end."""
    if packed is None:
        return []
    host = keras.ops.convert_to_numpy(packed).astype(np.float64)
    return np.split(host, np.cumsum(sizes)[:-1])


# random state ---------------------------------------------------------------------------------


def fingerprint(backend: TensorFlow, seeds: Iterable[Variable]) -> tuple[object, ...]:
    """Something that differs once a random number was drawn."""
    state: Any = np.random.get_state()
    fields = state if isinstance(state, tuple) else (repr(state),)
    generator = global_state.get_global_attribute(_SEED_GENERATOR)
    states = [*seeds, *([] if generator is None else [generator.state])]
    return (
        random.getstate(),
        *(f.tobytes() if isinstance(f, np.ndarray) else f for f in fields),
        backend.random_state(),
        *contents(states),
    )


def contents(variables: Iterable[Variable]) -> list[bytes]:
    """The variables bit by bit, so that NaN equals itself."""
    return [np.asarray(v).tobytes() for v in variables]


# attributes and variables ---------------------------------------------------------------------


class _Attributes:
    """Attributes of one object and the contents of the containers among them."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._values = dict(vars(owner))
        self._containers: dict[int, tuple[Any, list[Any]]] = {}
        for value in self._values.values():
            self._remember(value)

    def _remember(self, value: Any) -> None:
        if id(value) not in self._containers and _container(value):
            items = _items(value)
            self._containers[id(value)] = value, items
            for item in items:
                self._remember(item[1] if _container(value) is not list else item)

    def restore(self) -> None:
        # The methods of the plain types, and vars() instead of setattr: those of Keras would
        # register a variable or a layer twice, or refuse because the layer is built.
        now: dict[str, Any] = self._owner.__dict__
        for name in now.keys() - self._values.keys():
            del now[name]
        now.update(self._values)
        for value, items in self._containers.values():
            current = _items(value)
            if len(current) != len(items) or any(
                a is not b
                for pair in zip(current, items, strict=True)
                for a, b in (zip(*pair, strict=True) if _container(value) is not list else [pair])
            ):
                _refill(value, items)


def _container(value: Any) -> type | None:
    return next((t for t in (OrderedDict, dict, list, set) if issubclass(type(value), t)), None)


def _items(value: Any) -> list[Any]:
    """Elements of a list; pairs of a dictionary; each element of a set twice, as a pair."""
    kind = _container(value)
    if kind is list:
        return list(value)
    return [(v, v) for v in value] if kind is set else list(dict.items(value))


def _refill(value: Any, items: list[Any]) -> None:
    kind: Any = _container(value)
    kind.clear(value)
    if kind is list:
        list.extend(value, items)
    else:
        kind.update(value, [i[0] for i in items] if kind is set else items)


class Snapshot:
    """Everything of a model, and of Keras, that a check can change.

    Parameters
    ----------
    model
        A built model.
    backend
        The backend's own part.
    """

    def __init__(self, model: Any, backend: TensorFlow) -> None:
        layers = model._flatten_layers()
        optimizer = getattr(model, "optimizer", None)
        owners = [
            *layers,
            *(getattr(model, name, None) for name in ("_compile_loss", "_compile_metrics")),
            optimizer,
            getattr(optimizer, "inner_optimizer", None),
        ]
        owners = [owner for owner in owners if owner is not None]
        owners += [o._tracker for o in owners if hasattr(o, "_tracker")]
        self._attributes = [_Attributes(owner) for owner in owners]

        seeds, untracked = seed_variables(layers, backend), untracked_variables(layers, backend)
        seed_ids = {id(v) for v in seeds}
        weights = [v for v in model.variables if id(v) not in seed_ids]
        others = [*model.metrics_variables, *getattr(optimizer, "variables", ())]
        self._weights = [(v, backend.copy(v)) for v in (*weights, *untracked)]
        self._rest = [(v, backend.copy(v)) for v in (*seeds, *others)]
        self._trainable = [(v, v.trainable) for v in weights]
        self._names = dict(global_state.get_global_attribute(_NAMES) or {})
        self._context = global_state.get_global_attribute(_CALL_CONTEXT)

    def restore(self, *, keep_weights: bool = False) -> None:
        """Put everything back, the model's weights unless they are to be kept."""
        # An exception inside a model's call can leave the call open.
        global_state.set_global_attribute(_CALL_CONTEXT, self._context)
        for attributes in self._attributes:
            attributes.restore()
        for variable, value in ([] if keep_weights else self._weights) + self._rest:
            variable.assign(value)
        for variable, trainable in self._trainable:
            variable.trainable = trainable
        names = global_state.get_global_attribute(_NAMES)
        if names is not None:
            names.clear()
            names.update(self._names)


def seed_variables(layers: Iterable[Any], backend: TensorFlow) -> list[Variable]:
    """States of the random generators that layers own."""
    found: dict[int, Variable] = {}
    for layer in layers:
        for generator in layer._seed_generators:
            found[id(generator.state)] = generator.state
        for value in vars(layer).values():
            if not hasattr(value, "trainable"):
                found.update((id(v), v) for v in backend.own_variables(value))
    return list(found.values())


def untracked_variables(layers: Iterable[Any], backend: TensorFlow) -> list[Variable]:
    """Variables of the backend that layers hold without Keras knowing."""
    found: dict[int, Variable] = {}
    for layer in layers:
        for value in vars(layer).values():
            if hasattr(value, "trainable"):
                found.update((id(v), v) for v in backend.own_variables(value))
    return list(found.values())


# changes for the time of a pass ---------------------------------------------------------------


@contextlib.contextmanager
def put_back(variables: Sequence[Variable], backend: TensorFlow) -> Iterator[None]:
    """Variables end as they began."""
    values = [backend.copy(v) for v in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


@contextlib.contextmanager
def in_mode(model: Any, training: bool | None) -> Iterator[None]:
    """Code that calls the model without a mode calls it in this one, as if from a layer's call."""
    if training is None:
        yield
        return
    before = global_state.get_global_attribute(_CALL_CONTEXT)
    context = CallContext(entry_layer=None)
    context.training = training
    global_state.set_global_attribute(_CALL_CONTEXT, context)
    model._clear_losses()  # only the outermost call does, and that is ours now
    try:
        yield
    finally:
        global_state.set_global_attribute(_CALL_CONTEXT, before)
