"""How a prediction reacts to the normalised output of every layer: one forward, one backward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from pytest_bncheck.adapters._keras_backend import Backend, Tensor, to_numpy
from pytest_bncheck.adapters._keras_calls import KerasLayer, Replacement, replaced_calls
from pytest_bncheck.adapters._keras_layers import is_stock

if TYPE_CHECKING:
    from pytest_bncheck.types import Array, Slope


def slopes(
    layers: Sequence[KerasLayer],
    forward: Callable[[], Mapping[str, Tensor]],
    direction: Mapping[str, Array],
    backend: Backend,
) -> list[Slope | None] | None:
    """γ·∂/∂γ and γ·∂/∂β of ⟨outputs, direction⟩ for each layer; see `Adapter.slopes`.

    Each layer's output gets a factor of 1 and a term of 0 for every channel. With y = γ·x̂ + β the
    derivatives by them are those by γ and β where the layer has these, and stand for them where it
    has not.
    """
    stock = [layer for layer in layers if is_stock(layer)]
    knobs = [(_knob(layer, "ones"), _knob(layer, "zeros")) for layer in stock]

    def inner_product() -> tuple[Tensor, Tensor]:
        outputs = forward()
        along = [
            keras.ops.sum(outputs[path] * keras.ops.cast(value, outputs[path].dtype))
            for path, value in direction.items()
        ]
        total = sum(along[1:], along[0])
        return total, total

    turned = [_turned(layer, *pair) for layer, pair in zip(stock, knobs, strict=True)]
    with replaced_calls(turned):
        _, found = backend.gradients(inner_product, [knob for pair in knobs for knob in pair])
    if all(gradient is None for gradient in found):
        return None
    pairs = iter(zip(found[0::2], found[1::2], strict=True))
    return [_slope(layer, *next(pairs)) if is_stock(layer) else None for layer in layers]


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


def _slope(layer: KerasLayer, by_factor: Tensor | None, by_term: Tensor | None) -> Slope:
    """From derivatives by the whole output to those by its normalised part."""
    size = layer.moving_mean.shape[0]
    whole, shift = (
        np.zeros(size) if g is None else to_numpy(g).astype(np.float64)
        for g in (by_factor, by_term)
    )
    gamma = _values(layer.gamma) if layer.scale else np.ones(size)
    beta = _values(layer.beta) if layer.center else np.zeros(size)
    return whole - beta * shift, gamma * shift


def _values(variable: Any) -> Array:
    values: Array = np.asarray(variable).astype(np.float64)
    return values
