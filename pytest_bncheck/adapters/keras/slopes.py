"""How a prediction reacts to the normalised output of every layer: one forward, one backward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import keras
import numpy as np

from pytest_bncheck.adapters.keras.backends.base import Tensor, Variable, split
from pytest_bncheck.adapters.keras.calls import KerasLayer, Replacement, replaced_calls
from pytest_bncheck.adapters.keras.compilation import Function, compiled
from pytest_bncheck.adapters.keras.data import form_of
from pytest_bncheck.adapters.keras.layers import Layers, affine_of, is_stock
from pytest_bncheck.adapters.keras.state import value_of
from pytest_bncheck.adapters.keras.subject import Subject

if TYPE_CHECKING:
    from pytest_bncheck.types import Array, Slope

Forward: TypeAlias = Callable[[Any], Mapping[str, Tensor]]


class Slopes:
    """γ·∂/∂γ and γ·∂/∂β of ⟨outputs, direction⟩ for each layer; see `Adapter.slopes`.

    Each layer's output is multiplied by 1 and increased by 0, per channel. With y = γ·x̂ + β the
    derivatives by this factor and term lead to those by γ and β, also where a layer has none.
    """

    def __init__(self, subject: Subject, layers: Layers) -> None:
        self._subject, self._layers = subject, layers
        self._stock = [layer for layer in layers.tracking if is_stock(layer)]
        self._scaling: list[Variable] = []
        self._compiled: dict[str, Function | None] = {}

    def along(
        self, direction: Mapping[str, Array], forward: Forward, inputs: Any, *, compile_it: bool
    ) -> list[Slope | None] | None:
        """The slopes.

        Parameters
        ----------
        forward
            From inputs to outputs by path; the same function for all inputs of one form.
        compile_it
            Whether a program is quicker.
        """
        backend = self._subject.backend
        if not self._stock:
            return None
        if not self._scaling:
            self._scaling = [
                _per_channel(layer, value) for layer in self._stock for value in ("ones", "zeros")
            ]

        def gradients(
            arguments: tuple[Any, Mapping[str, Tensor]],
        ) -> tuple[list[Tensor | None], Tensor]:
            def inner_product() -> tuple[Tensor, Tensor]:
                outputs = forward(arguments[0])
                parts = [
                    keras.ops.sum(outputs[path] * keras.ops.cast(value, outputs[path].dtype))
                    for path, value in arguments[1].items()
                ]
                total = sum(parts[1:], parts[0])
                return total, total

            triples = zip(self._stock, self._scaling[0::2], self._scaling[1::2], strict=True)
            with replaced_calls([_scaled(*each) for each in triples]):
                derivatives = backend.gradients(inner_product, self._scaling)[1]
            present = _present([*derivatives, *self._affine()])
            return derivatives, backend.pack(present) if present else None

        run: Function | None = None
        arguments = inputs, dict(direction)
        if compile_it:
            form = form_of(arguments)
            if form not in self._compiled:
                variables = [*self._subject.model.variables, *self._scaling]
                self._compiled[form] = compiled(
                    gradients, variables, arguments, self._layers, backend, few_runs=True
                )
            run = self._compiled[form]
        with backend.held_constant(self._subject.model.trainable_variables):
            derivatives, packed = (run or gradients)(arguments)
        return self._by_layer(derivatives, packed) if _present(derivatives) else None

    def _affine(self) -> list[Tensor | None]:
        """γ and β of the first layer, of the second, ..."""
        variables = [variable for layer in self._stock for variable in affine_of(layer)]
        return [None if v is None else value_of(v) for v in variables]

    def _by_layer(self, gradients: list[Tensor | None], packed: Tensor) -> list[Slope | None]:
        """From derivatives by the outputs y to those by γ and β."""
        tensors = [*gradients, *self._affine()]
        host = iter(split(packed, _present(tensors)))
        values = [None if t is None else next(host) for t in tensors]
        by_output, affine = values[: len(gradients)], values[len(gradients) :]
        columns = by_output[0::2], by_output[1::2], affine[0::2], affine[1::2]
        slopes = iter(map(_slope, self._stock, *columns))
        return [next(slopes) if is_stock(layer) else None for layer in self._layers.tracking]


def _present(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def _per_channel(layer: KerasLayer, value: str) -> Any:
    mean = layer.moving_mean
    return keras.Variable(value, shape=mean.shape, dtype=mean.dtype, name=value)  # no counter moves


def _scaled(layer: KerasLayer, factor: Any, term: Any) -> Replacement:
    original = layer.call

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        outputs = original(*args, **kwargs)
        shape = [1] * len(outputs.shape)
        shape[layer.axis] = -1
        scale, shift = (
            keras.ops.cast(keras.ops.reshape(each, shape), outputs.dtype) for each in (factor, term)
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
