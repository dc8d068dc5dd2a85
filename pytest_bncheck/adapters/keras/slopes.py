"""How a prediction reacts to the normalised output of every layer: one forward, one backward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import keras
import numpy as np

from pytest_bncheck.adapters.keras.backends.base import Backend, Tensor, Variable, split
from pytest_bncheck.adapters.keras.calls import KerasLayer, Replacement, replaced_calls
from pytest_bncheck.adapters.keras.compilation import Function, compiled
from pytest_bncheck.adapters.keras.data import form_of
from pytest_bncheck.adapters.keras.layers import Inventory, affine_of, is_stock
from pytest_bncheck.adapters.keras.state import value_of

if TYPE_CHECKING:
    from pytest_bncheck.types import Array, Slope

Forward: TypeAlias = Callable[[Any], Mapping[str, Tensor]]


class Slopes:
    """γ·∂/∂γ and γ·∂/∂β of ⟨outputs, direction⟩ for each layer; see `Adapter.slopes`.

    Each layer's output gets a factor of 1 and a term of 0 for every channel. With y = γ·x̂ + β the
    derivatives by them are those by γ and β where the layer has these, and stand for them where it
    has not.

    Parameters
    ----------
    model, parts, backend
        The user's model and what is known about it.
    """

    def __init__(self, model: Any, parts: Inventory, backend: Backend) -> None:
        self._model, self._parts, self._backend = model, parts, backend
        self._stock = [layer for layer in parts.layers if is_stock(layer)]
        self._knobs: list[Variable] = []
        self._compiled: dict[str, Function | None] = {}

    def along(
        self, direction: Mapping[str, Array], forward: Forward, inputs: Any, *, compile_it: bool
    ) -> list[Slope | None] | None:
        """The slopes.

        Parameters
        ----------
        forward
            From inputs to outputs by their paths, the same for all inputs of one form.
        compile_it
            Whether that is quicker.
        """
        if not self._knobs:
            self._knobs = [_knob(k, value) for k in self._stock for value in ("ones", "zeros")]

        def gradients(
            given: tuple[Any, Mapping[str, Tensor]],
        ) -> tuple[list[Tensor | None], Tensor]:
            def inner_product() -> tuple[Tensor, Tensor]:
                outputs = forward(given[0])
                parts = [
                    keras.ops.sum(outputs[path] * keras.ops.cast(value, outputs[path].dtype))
                    for path, value in given[1].items()
                ]
                total = sum(parts[1:], parts[0])
                return total, total

            pairs = zip(self._stock, self._knobs[0::2], self._knobs[1::2], strict=True)
            with replaced_calls([_turned(*each) for each in pairs]):
                found = self._backend.gradients(inner_product, self._knobs)[1]
            there = _there([*found, *self._affine()])
            return found, self._backend.pack(there) if there else None

        run: Function | None = None
        given = inputs, dict(direction)
        if compile_it:
            form = form_of(given)
            if form not in self._compiled:
                variables = [*self._model.variables, *self._knobs]
                parts, own = self._parts, self._backend
                self._compiled[form] = compiled(gradients, variables, given, parts, own, once=True)
            run = self._compiled[form]
        found, packed = (run or gradients)(given)
        return None if not _there(found) else self._by_layer(found, packed)

    def _affine(self) -> list[Tensor | None]:
        """Gamma and beta of the first layer, of the second, ..."""
        variables = [variable for layer in self._stock for variable in affine_of(layer)]
        return [None if v is None else value_of(v) for v in variables]

    def _by_layer(self, gradients: list[Tensor | None], packed: Tensor) -> list[Slope | None]:
        """From derivatives by the whole outputs to those by their normalised parts."""
        tensors = [*gradients, *self._affine()]
        host = iter(split(packed, _there(tensors)))
        values = [None if t is None else next(host) for t in tensors]
        found, affine = values[: len(gradients)], values[len(gradients) :]
        columns = found[0::2], found[1::2], affine[0::2], affine[1::2]
        slopes = iter(map(_slope, self._stock, *columns))
        return [next(slopes) if is_stock(layer) else None for layer in self._parts.layers]


def _there(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def _knob(layer: KerasLayer, value: str) -> Any:
    mean = layer.moving_mean
    return keras.Variable(value, shape=mean.shape, dtype=mean.dtype, name=value)  # no counter moves


def _turned(layer: KerasLayer, factor: Any, term: Any) -> Replacement:
    original = layer.call

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        outputs = original(*args, **kwargs)
        shape = [1] * len(outputs.shape)
        shape[layer.axis] = -1
        scale, shift = (
            keras.ops.cast(keras.ops.reshape(knob, shape), outputs.dtype) for knob in (factor, term)
        )
        return outputs * scale + shift

    return layer, call


def _slope(
    layer: KerasLayer,
    whole: Array | None,
    shift: Array | None,
    gamma: Array | None,
    beta: Array | None,
) -> Slope:
    size = layer.moving_mean.shape[0]
    whole, shift, beta = (np.zeros(size) if g is None else g for g in (whole, shift, beta))
    return whole - beta * shift, shift if gamma is None else gamma * shift
