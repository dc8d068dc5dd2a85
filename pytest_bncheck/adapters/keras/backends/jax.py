"""Keras' JAX backend: variables are changed outside of what JAX differentiates or compiles."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import keras
import numpy as np

from pytest_bncheck.adapters.keras.backends import jax_internals as internals
from pytest_bncheck.adapters.keras.backends.base import (
    Backend,
    Loose,
    Losses,
    Tensor,
    Variable,
    wide_type,
)
from pytest_bncheck.adapters.keras.internals import (
    clear_losses,
    get_keras_mask,
    get_stateless_scope,
    global_generator,
    set_keras_mask,
    uncast_value,
)
from pytest_bncheck.adapters.undo import Undo

T = TypeVar("T")


class Jax(Backend):
    """See `Backend`."""

    name = "jax"

    compilation = "jit"
    compiles_passes = True  # eager operations are compiled too, one by one
    steps_to_pay = 1
    drops_trainable = True

    def devices(self, wish: str = "") -> list[str]:
        return list(_devices())

    def device_of(self, variables: Sequence[Variable]) -> str:
        if variables:
            return _name(min(variables[0].value.devices(), key=lambda device: device.id))
        return _name(internals.default_device() or jax.local_devices()[0])

    def on(self, device: str) -> contextlib.AbstractContextManager[Any]:
        return jax.default_device(_devices()[device])  # type: ignore[no-any-return]

    def move(self, variables: Sequence[Variable], device: str) -> Callable[[], None]:
        homes = [(v, v.value) for v in variables]
        target = _devices()[device]
        for variable, value in homes:
            variable.assign(jax.device_put(value, target))

        def back() -> None:
            for variable, value in homes:
                variable.assign(jax.device_put(variable.value, value.sharding))

        return back

    def copy(self, variable: Variable) -> Tensor:
        value = variable.value
        if internals.is_traced(value):
            return value
        # Arrays do not change, but the user's step can donate them. The method copy() of arrays
        # would compile a program for each shape.
        sharding = value.sharding if internals.is_committed(value) else None
        return jax.device_put(value, sharding, may_alias=False)

    def change(self, variables: Sequence[Variable]) -> Callable[[], bool]:
        before = list(map(_current, variables))
        return lambda: any(a is not b for a, b in zip(before, map(_current, variables)))  # noqa: B905

    def loose(self, holder: Any, key: Any) -> Variable | None:
        value = holder[key]
        concrete = isinstance(value, jax.Array) and not internals.is_traced(value)
        # A key of JAX's random numbers is an array too, and none of numbers.
        return Loose(holder, key) if concrete and jnp.issubdtype(value.dtype, jnp.number) else None

    def remember(self, item: object) -> Undo | None:
        if not internals.is_ref(item):
            return None
        ref: Any = item
        before = ref[...]
        return lambda: ref.__setitem__(..., before)

    def flags(self) -> Callable[[], None]:
        return internals.remember_settings()

    def call(self, model: Any, inputs: Any, **mode: bool) -> Any:
        __tracebackhide__ = True
        if not model.built:
            return model(inputs, **mode)
        # Without what __call__ adds: a layer gets a mode from its caller, or none.
        clear_losses(model)
        return model.call(inputs, **mode)

    def gradients(
        self, losses: Losses, variables: Sequence[Variable]
    ) -> tuple[Any, list[Tensor | None]]:
        __tracebackhide__ = True
        updated: list[Variable] = []
        trained = set(map(id, variables))
        depends = True

        def compute(values: list[Tensor]) -> tuple[Tensor, tuple[Any, list[Any], list[Tensor]]]:
            __tracebackhide__ = True
            nonlocal depends
            with _Scope(variables, values) as scope:
                first, total = losses()
            depends = internals.is_traced(total)
            # The training step of Keras drops what a forward assigns to trained variables.
            updated.extend(v for key, v in scope.updated.items() if key not in trained)
            values = [scope.get_current_value(v) for v in updated]
            return total if depends else 0.0, (first, _masks_of(first), values)

        differentiated = jax.value_and_grad(compute, has_aux=True)
        (_, (first, masks, values)), gradients = differentiated([v.value for v in variables])
        _mask(first, masks)
        for variable, value in zip(updated, values, strict=True):
            variable.assign(value)
        return first, gradients if depends else [None] * len(variables)

    def concrete(self, tensor: Tensor) -> Tensor | None:
        return internals.concrete(tensor) if internals.is_traced(tensor) else tensor

    @contextlib.contextmanager
    def building(self, optimizer: Any) -> Iterator[None]:
        # Zeros from the host: made on the device, each shape of them is a program to compile.
        original = optimizer.add_variable

        def add_variable(shape: Any, initializer: Any = "zeros", *others: Any, **named: Any) -> Any:
            spread = named.get("layout") is not None  # over several devices, which Keras does
            quick = _zeros if initializer == "zeros" and not spread else initializer
            return original(shape, quick, *others, **named)

        optimizer.__dict__["add_variable"] = add_variable
        try:
            yield
        finally:
            del optimizer.__dict__["add_variable"]

    def apply(
        self, optimizer: Any, gradients: Sequence[Tensor | None], variables: Sequence[Variable]
    ) -> None:
        # apply() itself would leave tracers behind where it scales the loss.
        slots = optimizer.variables
        weights, state = optimizer.stateless_apply(
            [v.value for v in slots], list(gradients), [v.value for v in variables]
        )
        for variable, value in zip([*variables, *slots], [*weights, *state], strict=True):
            variable.assign(value)

    def models_step(self, model: Any, optimizer: Any, data: Any) -> Any:
        __tracebackhide__ = True
        groups = (
            model.trainable_variables,
            model.non_trainable_variables,
            optimizer.variables,
            model.metrics_variables,
        )
        logs, state = model.train_step(tuple([v.value for v in group] for group in groups), data)
        for group, values in zip(groups, state, strict=True):
            for variable, value in zip(group, values, strict=True):
                variable.assign(value)
        return logs

    def rehearsed(self, function: Callable[[Any], Any], inputs: Any) -> bool:
        def look(inputs: Any) -> None:
            function(inputs)

        quiet, failures = _caught(look, None)
        try:
            # Variables that are made on the way get their values when the scope ends.
            with _Scope((), ()):
                jax.eval_shape(quiet, inputs)
        except Exception:  # the user's code may need values
            return False
        return not failures

    def compiled(
        self,
        function: Callable[[Any], Any],
        variables: Sequence[Variable],
        inputs: Any,
        *,
        few_runs: bool = False,
    ) -> Callable[[Any], Any]:
        if internals.jit_is_off():  # somebody is looking for a fault
            return function
        known = {id(variable) for variable in variables}
        updated: list[Variable] = []

        def pure(values: list[Tensor], inputs: Any) -> tuple[Any, list[Any], list[Tensor]]:
            with _Scope(variables, values) as scope:
                result = function(inputs)
            generator = global_generator()
            if generator is not None and id(generator.state) in scope.updated:
                raise ValueError("a program would draw the same numbers each time")
            updated.extend(v for key, v in scope.updated.items() if key in known)
            return result, _masks_of(result), [scope.get_current_value(v) for v in updated]

        nothing: tuple[Any, list[Any], list[Tensor]] = None, [], []
        quiet, failures = _caught(pure, nothing)
        lowered = jax.jit(quiet).lower([v.value for v in variables], inputs)
        if failures:
            raise failures.pop()
        on_cpu = jax.default_backend() == "cpu"
        program = lowered.compile(internals.QUICK_TO_COMPILE if few_runs and on_cpu else None)

        def run(inputs: Any) -> Any:
            result, masks, values = program([v.value for v in variables], inputs)
            _mask(result, masks)
            for variable, value in zip(updated, values, strict=True):
                variable.assign(value)
            return result

        return run

    def jitted(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        program: Callable[..., Tensor] = jax.jit(function)
        return program

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        return _packed(list(tensors), wide_type(tensors))

    def fetch(self, tensors: Sequence[Any]) -> Sequence[Any]:
        # At once, and without a program to compile for each number of tensors.
        arrays: list[Any] = jax.device_get(list(tensors))
        return arrays

    def from_host(self, arrays: Sequence[np.ndarray[Any, Any]]) -> list[Tensor]:
        tensors: list[Tensor] = jax.device_put(list(arrays))
        return tensors

    def users_step(self) -> contextlib.AbstractContextManager[Any]:
        eagerly: contextlib.AbstractContextManager[Any] = jax.disable_jit()
        return eagerly


class _Scope(keras.StatelessScope):  # type: ignore[misc]
    """Other values for variables, besides those from a scope around this one.

    Attributes
    ----------
    updated
        The variables that were assigned to, by their ids.
    """

    def __init__(self, variables: Sequence[Variable], values: Sequence[Tensor]) -> None:
        super().__init__(collect_losses=True)
        around = get_stateless_scope()
        if around is not None:
            self.state_mapping.update(around.state_mapping)
        self.state_mapping.update((id(v), x) for v, x in zip(variables, values, strict=True))
        self.updated: dict[int, Variable] = {}

    def add_update(self, update: tuple[Variable, Tensor]) -> None:
        self.updated[id(update[0])] = update[0]
        super().add_update(update)


def _caught(function: Callable[..., T], instead: T) -> tuple[Callable[..., T], list[Exception]]:
    """`function` for a trace, which returns `instead` where it raises, and what it raised.

    An exception that leaves a trace would leak the arrays of the trace.
    """
    failures: list[Exception] = []

    def quiet(*args: Any) -> T:
        try:
            return function(*args)
        except Exception as error:
            failures.append(error)
            return instead

    return quiet, failures


def _zeros(shape: Any, dtype: Any = None) -> Tensor:
    return jax.device_put(np.zeros(shape, jnp.dtype(dtype)))


def _masks_of(result: Any) -> list[Tensor | None]:
    """The masks that Keras attached to arrays: JAX returns other arrays, without them."""
    return [get_keras_mask(leaf) for leaf in keras.tree.flatten(result)]


def _mask(result: Any, masks: Sequence[Tensor | None]) -> None:
    for leaf, mask in zip(keras.tree.flatten(result), masks, strict=True):
        if mask is not None:
            set_keras_mask(leaf, mask)


@partial(jax.jit, static_argnums=1)
def _packed(tensors: list[Tensor], wide: str) -> Tensor:
    """Compiled as a whole: otherwise each shape would need a program."""
    return jnp.concatenate([tensor.astype(wide).ravel() for tensor in tensors])


def _current(variable: Variable) -> Tensor:
    """The value itself, without a cast."""
    scope = get_stateless_scope()
    value = None if scope is None else scope.get_current_value(variable)
    return uncast_value(variable) if value is None else value


def _devices() -> dict[str, Any]:
    """The devices of this process, by name."""
    return {_name(d): d for d in (*jax.local_devices(backend="cpu"), *jax.local_devices())}


def _name(device: Any) -> str:
    name = "gpu" if device.platform in ("cuda", "rocm") else str(device.platform)
    return name if name == "cpu" and device.id == 0 else f"{name}:{device.id}"
