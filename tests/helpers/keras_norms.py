"""Normalisation of a user's own in Keras, and of another library inside Keras."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from keras_nets import WIDTH


class RangeNorm(layers.Layer):
    """Keeps the mean and the range under names of its own."""

    def __init__(self, momentum: float = 0.9, **options: Any) -> None:
        super().__init__(**options)
        self.keeps = momentum

    def build(self, shape: Any) -> None:
        self.centre = self.add_weight(shape=(shape[-1],), initializer="zeros", trainable=False)
        self.extent = self.add_weight(shape=(shape[-1],), initializer="ones", trainable=False)

    def call(self, x: Any, training: bool | None = None) -> Any:
        centre, extent = self.centre, self.extent
        if training:
            axes = list(range(len(x.shape) - 1))
            centre, extent = ops.mean(x, axes), ops.max(x, axes) - ops.min(x, axes)
            self.update(self.centre, centre)
            self.update(self.extent, extent)
        return (x - centre) / (extent + 1e-3)

    def update(self, variable: Any, value: Any) -> None:
        variable.assign(self.keeps * variable + (1.0 - self.keeps) * ops.stop_gradient(value))


class OwnDropout(layers.Layer):
    """Dropout by hand, which is no layer of Keras."""

    def __init__(self, rate: float, **options: Any) -> None:
        super().__init__(**options)
        self.rate, self.draws = rate, keras.random.SeedGenerator(0)

    def call(self, x: Any, training: bool | None = None) -> Any:
        return keras.random.dropout(x, self.rate, seed=self.draws) if training else x


class Scheduled(RangeNorm):
    """Forgets less and less: by a tenth at first, and 5 % less at each call."""

    def build(self, shape: Any) -> None:
        super().build(shape)
        self.calls = self.add_weight(shape=(), initializer="zeros", dtype="int32", trainable=False)

    def call(self, x: Any, training: bool | None = None) -> Any:
        result = super().call(x, training)
        if training:
            self.calls.assign_add(1)
        return result

    def update(self, variable: Any, value: Any) -> None:
        rate = 0.1 * 0.95 ** ops.cast(self.calls, "float32")
        variable.assign((1.0 - rate) * variable + rate * ops.stop_gradient(value))


class Debiased(RangeNorm):
    """Averages from 0 which inference divides by ``1 - b^t``, as Adam does."""

    def build(self, shape: Any) -> None:
        self.centre = self.add_weight(shape=(shape[-1],), initializer="zeros", trainable=False)
        self.extent = self.add_weight(shape=(shape[-1],), initializer="zeros", trainable=False)
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x: Any, training: bool | None = None) -> Any:
        if training:
            self.calls.assign_add(1.0)
            return super().call(x, training)
        share = 1.0 - self.keeps**self.calls
        return (x - self.centre / share) / (self.extent / share + 1e-3)


class InList(RangeNorm):
    """Keeps them in variables that Keras does not track."""

    def build(self, shape: Any) -> None:
        values = (ops.zeros((shape[-1],)), ops.ones((shape[-1],)))
        self.kept = Hidden([keras.Variable(value, trainable=False) for value in values])

    @property
    def centre(self) -> Any:
        return self.kept.values[0]

    @property
    def extent(self) -> Any:
        return self.kept.values[1]


class Hidden:
    """An object in which Keras looks for nothing."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values


class Every4(layers.BatchNormalization):
    """Its statistics move at every fourth call."""

    def build(self, shape: Any) -> None:
        super().build(shape)
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x: Any, training: bool | None = None, mask: Any = None) -> Any:
        if not training:
            return super().call(x, training=False)
        mean, variance = ops.moments(x, axes=list(range(len(x.shape) - 1)))
        self.count.assign(self.count + 1.0)
        due = ops.cast(ops.equal(ops.mod(self.count, 4.0), 0.0), "float32")
        rate = due * (1.0 - self.momentum)
        for variable, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            variable.assign(variable + rate * (ops.stop_gradient(value) - variable))
        return (x - mean) / ops.sqrt(variance + self.epsilon) * self.gamma + self.beta


class Centred(layers.BatchNormalization):
    """Does more than the stock layer, and moves its statistics as it says."""

    def call(self, x: Any, training: bool | None = None, mask: Any = None) -> Any:
        return super().call(x, training=training) * 1.5


def wrapped(name: str, momentum: float = 0.9, width: int = WIDTH) -> Any:
    """Batch normalisation of PyTorch inside Keras."""
    import torch

    norm = torch.nn.BatchNorm1d(width, momentum=round(1.0 - momentum, 6))
    return layers.TorchModuleWrapper(norm, name=name, output_shape=(None, width))
