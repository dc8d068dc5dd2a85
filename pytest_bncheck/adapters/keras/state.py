"""What a check can change in a Keras model and around it, and how it is put back."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np

from pytest_bncheck.adapters import random_state
from pytest_bncheck.adapters.attributes import PlainAttributes
from pytest_bncheck.adapters.containers import container_type, holds, members_of, refill
from pytest_bncheck.adapters.graph import Graph
from pytest_bncheck.adapters.keras import internals
from pytest_bncheck.adapters.keras.backends.base import (
    Backend,
    Tensor,
    Variable,
    to_numpy,
    wide_type,
)
from pytest_bncheck.adapters.keras.places import loose_variables
from pytest_bncheck.adapters.switches import remember_all
from pytest_bncheck.adapters.undo import Ending, Undo, run_all

RESOLUTION = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
"""Spacing of the floating-point numbers around 1, by their type."""

_FAR = 10_007
"""Between two draws: more than the numbers that a pass draws."""


def value_of(variable: Variable) -> Tensor:
    """The tensor in a variable of Keras; a variable of TensorFlow serves as its own value."""
    value = getattr(variable, "value", variable)
    return variable if callable(value) else value


def host_arrays(variables: Iterable[Variable]) -> list[np.ndarray[Any, Any]]:
    """The variables' values as flat arrays of the same dtypes, in one transfer per dtype."""
    tensors = list(map(value_of, variables))
    by_dtype: dict[str, list[int]] = {}
    for k, tensor in enumerate(tensors):
        by_dtype.setdefault(str(tensor.dtype), []).append(k)
    arrays: dict[int, np.ndarray[Any, Any]] = {}
    for positions in by_dtype.values():
        flat = [keras.ops.reshape(tensors[k], (-1,)) for k in positions]
        host = to_numpy(keras.ops.concatenate(flat))
        ends = np.cumsum([part.shape[0] for part in flat])[:-1]
        arrays.update(zip(positions, np.split(host, ends), strict=True))
    return [arrays[k] for k in range(len(tensors))]


def write_values(
    variables: Sequence[Variable], arrays: Sequence[np.ndarray[Any, Any]], backend: Backend
) -> None:
    """Set variables to flat arrays, in one transfer."""
    if not variables:
        return
    dtype = wide_type(variables)
    shaped = [
        np.reshape(array, variable.shape).astype(dtype)
        for array, variable in zip(arrays, variables, strict=True)
    ]
    for variable, tensor in zip(variables, backend.from_host(shaped), strict=True):
        variable.assign(keras.ops.cast(tensor, variable.dtype))


# random state ---------------------------------------------------------------------------------


def fingerprint(seeds: Iterable[Variable]) -> tuple[object, ...]:
    """Something that differs once a random number was drawn, also from one of these `seeds`."""
    return random_state.fingerprint(), *contents(seeds)


def shift_seeds(seeds: Iterable[Variable], draw: int) -> None:
    """Let generators of Keras draw other numbers, which depend on their states and on `draw`."""
    for seed in seeds:
        if draw and isinstance(seed, keras.Variable):
            values = np.array(to_numpy(value_of(seed)))
            values[..., -1] += draw * _FAR
            seed.assign(keras.ops.cast(values, seed.dtype))


def contents(variables: Iterable[Variable]) -> list[bytes]:
    """The bits of each variable, in which NaN equals itself."""
    return [array.tobytes() for array in host_arrays(variables)]


# attributes and variables ---------------------------------------------------------------------


class Attributes:
    """Attributes of one object and the contents of the containers among them."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._values = dict(vars(owner))
        self._containers: dict[int, tuple[Any, list[Any]]] = {}
        for value in self._values.values():
            self._remember(value)

    def _remember(self, value: Any) -> None:
        for held in _holders(value):
            if id(held) not in self._containers:
                items = members_of(held)
                self._containers[id(held)] = held, items
                for item in items:
                    self._remember(item[-1])

    def changed(self) -> set[str]:
        """Names of the attributes that are now, or contain, other objects than before."""
        now: dict[str, Any] = vars(self._owner)
        names = now.keys() ^ self._values.keys()
        names |= {name for name, value in self._values.items() if now.get(name) is not value}
        return names | {name for name, value in self._values.items() if self._holds_others(value)}

    def _holds_others(self, value: Any) -> bool:
        for held in _holders(value)[:1]:
            kept = self._containers.get(id(held))
            return kept is not None and not holds(held, kept[1])
        return False

    def restore(self) -> None:
        """Give the object its attributes back, and their containers the same contents."""
        # The methods of the plain types, and vars() instead of setattr: those of Keras would
        # register a variable or a layer twice, or refuse because the layer is built.
        now: dict[str, Any] = self._owner.__dict__
        for name in now.keys() - self._values.keys():
            del now[name]
        now.update(self._values)
        for value, items in self._containers.values():
            refill(value, items)


def _holders(value: Any) -> list[Any]:
    """The plain containers that a container consists of, first the one of its elements."""
    tracked = internals.tracked_containers(value)
    return [held for held in ([value] if tracked is None else tracked) if container_type(held)]


class Snapshot:
    """Everything of a model, and of Keras, that a check can change.

    Parameters
    ----------
    model
        A built model.
    backend
        The backend that Keras runs on.
    functions
        The user's functions, for the optimizers that they close over.

    Attributes
    ----------
    variables
        The variables that `restore` puts back.
    """

    def __init__(self, model: Any, backend: Backend, functions: Iterable[Any] = ()) -> None:
        layers = internals.flat_layers(model)
        optimizers = _optimizers(layers, functions)
        owners = [*layers, *optimizers, *internals.compiled_parts(model)]
        owners += internals.trackers(owners)
        self._attributes = [Attributes(owner) for owner in owners]

        seeds, untracked = seed_variables(layers, backend), loose_variables(layers, backend)
        seed_ids = {id(v) for v in seeds}
        weights = [v for v in model.variables if id(v) not in seed_ids]
        others = [*model.metrics_variables, *(v for o in optimizers for v in o.variables)]
        self._weights = [(v, backend.copy(v)) for v in (*weights, *untracked)]
        self._rest = [(v, backend.copy(v)) for v in (*seeds, *others)]
        self.variables = [variable for variable, _ in (*self._weights, *self._rest)]
        self._trainable = [(v, v.trainable) for v in weights]
        self._keep = backend.keep(layers, weights)
        self._reach = Reach(backend, self.variables)
        self._reach.walk([*functions, model, *optimizers])
        self._flags = backend.flags(), internals.remember_globals(), _flags()

    def name_what_is_left(self) -> None:
        """Warn in one line of what cannot be put back."""
        self._reach.name_what_is_left()

    def undo_so_far(self) -> None:
        """Put everything back; more can be done, and undone."""
        self._put_back(self._reach.undo_so_far)

    def restore(self, *, keep_weights: bool = False) -> None:
        """Put everything back for good, the model's weights only without `keep_weights`."""
        self._put_back(self._reach.undo_all, keep_weights=keep_weights)

    def _put_back(self, undo_reach: Undo, *, keep_weights: bool = False) -> None:
        values = ([] if keep_weights else self._weights) + self._rest
        undo: list[Undo] = [*self._flags]  # first: what follows computes
        undo += [attributes.restore for attributes in self._attributes]
        undo += [partial(variable.assign, value) for variable, value in values]
        undo += [partial(setattr, v, "trainable", trainable) for v, trainable in self._trainable]
        run_all([*undo, self._keep, undo_reach])


class Reach(Graph):
    """What the user's functions and a model's layers refer to, at any depth.

    Parameters
    ----------
    backend
        The backend that Keras runs on.
    apart
        Variables that are put back otherwise.
    """

    walked = (
        keras.Layer,
        keras.optimizers.Optimizer,
        keras.optimizers.schedules.LearningRateSchedule,
        keras.losses.Loss,
        keras.metrics.Metric,
        keras.random.SeedGenerator,
        keras.callbacks.Callback,
        keras.regularizers.Regularizer,
        keras.constraints.Constraint,
        keras.initializers.Initializer,
        keras.dtype_policies.DTypePolicy,
        keras.dtype_policies.DTypePolicyMap,
        keras.layers.InputSpec,
        keras.utils.Progbar,
    )

    def __init__(self, backend: Backend, apart: Iterable[Variable]) -> None:
        super().__init__()
        self._backend = backend
        for variable in apart:
            for item in (variable, value_of(variable)):
                self._seen[id(item)] = item

    def remember(self, item: Any) -> Undo | None:
        if isinstance(item, keras.Variable):
            return self._remember_variable(item)
        return self._backend.remember(item)

    def not_put_back(self, item: Any) -> str | None:
        return super().not_put_back(item) or self._backend.not_put_back(item)

    def children(self, item: Any) -> Iterator[tuple[str, Any]]:
        tracked = internals.tracked_containers(item)
        if tracked is None:
            yield from super().children(item)
        yield from (("", held) for held in tracked or () if held is not None)

    def _remember_variable(self, variable: Variable) -> Undo | None:
        if not internals.has_value(variable):
            return None
        value = self._backend.copy(variable)
        changed = self._backend.change([variable])

        def undo() -> None:
            if changed():
                variable.assign(value)

        return undo

    def _is_open(self, item: Any) -> bool:
        return super()._is_open(item) or (
            isinstance(item, self._backend.walked) and not isinstance(item, type)
        )


class _BesidesUnbuilt(Reach):
    """All but the layers that a first pass has yet to build."""

    def _is_open(self, item: Any) -> bool:
        waits = isinstance(item, keras.Layer) and not item.built
        return not waits and super()._is_open(item)


@contextlib.contextmanager
def besides_building(model: Any, backend: Backend, functions: Iterable[Any]) -> Iterator[None]:
    """Put back what a pass changes that also builds layers.

    Of these only plain attributes: what else is new in them is the building.
    """
    layers = internals.flat_layers(model)
    waiting = [(layer, "") for layer in layers if not layer.built]
    held = [attribute for layer, _ in waiting for attribute in vars(layer).items()]
    # What is None may be what gets built.
    names = {name for name, value in held if value is None or name.startswith("_")} | {"built"}
    plain = PlainAttributes(waiting, without=names - {"_trainable"})
    reach = _BesidesUnbuilt(backend, ())
    reach.walk([*functions, *(layer for layer in layers if layer.built)])
    ending = Ending(lambda: run_all([plain.put_back, reach.undo_all]))
    with ending, ending:
        yield


def _flags() -> Callable[[], None]:
    """Remember the settings of Keras for the whole process; returns the way back."""
    floatx, epsilon = keras.config.floatx(), keras.config.epsilon()
    data_format = keras.config.image_data_format()
    filtered = keras.config.is_traceback_filtering_enabled()
    logging = keras.config.is_interactive_logging_enabled()
    put_limits_back = remember_all(
        (getattr(keras.config, name), getattr(keras.config, f"set_{name}"))
        for name in ("max_epochs", "max_steps_per_epoch")
        if hasattr(keras.config, name)  # of newer versions
    )
    objects: dict[str, Any] = keras.saving.get_custom_objects()
    registered = members_of(objects)

    def back() -> None:
        switch = (
            keras.config.enable_traceback_filtering
            if filtered
            else keras.config.disable_traceback_filtering
        )
        switch()
        refill(objects, registered)
        if keras.config.is_interactive_logging_enabled() != logging:
            change = "enable" if logging else "disable"
            getattr(keras.config, f"{change}_interactive_logging")()
        keras.config.set_floatx(floatx)
        keras.config.set_epsilon(epsilon)
        keras.config.set_image_data_format(data_format)
        put_limits_back()

    return back


def _optimizers(layers: Iterable[Any], functions: Iterable[Any]) -> list[Any]:
    """Optimizers among the layers' attributes and the variables that functions close over."""
    values = [value for layer in layers for value in vars(layer).values()]
    for function in functions:
        cells = getattr(inspect.unwrap(function), "__closure__", None) if function else None
        for cell in cells or ():
            with contextlib.suppress(ValueError):  # not assigned yet
                values.append(cell.cell_contents)
    found: dict[int, Any] = {}
    for value in values:
        for optimizer in (value, getattr(value, "inner_optimizer", None)):
            if isinstance(optimizer, keras.optimizers.Optimizer):
                found[id(optimizer)] = optimizer
    return list(found.values())


def seed_variables(layers: Iterable[Any], backend: Backend) -> list[Variable]:
    """States of the random generators that layers own."""
    found: dict[int, Variable] = {}
    for layer in layers:
        states = [generator.state for generator in internals.seed_generators(layer)]
        states += [v for value in vars(layer).values() for v in backend.untracked_seeds(value)]
        found.update((id(v), v) for v in states)
    return list(found.values())


# changes for the time of a pass ---------------------------------------------------------------


@contextlib.contextmanager
def put_back(variables: Sequence[Variable], backend: Backend) -> Iterator[None]:
    """Give variables their values back at the end of a ``with`` block."""
    values = [backend.copy(v) for v in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


@contextlib.contextmanager
def attributes_kept(named: Iterable[tuple[Any, str]]) -> Iterator[None]:
    """Give layers their attributes back at the end of a ``with`` block, as `Attributes` does."""
    before = [Attributes(layer) for layer, _ in named]
    try:
        yield
    finally:
        for attributes in before:
            attributes.restore()


@contextlib.contextmanager
def in_mode(model: Any, training: bool | None) -> Iterator[None]:
    """Let code that calls the model without a mode call it in this one."""
    if training is None:
        yield
        return
    with internals.inside_call(training):
        internals.clear_losses(model)  # Keras does so in the outermost call, which is `inside_call`
        yield
