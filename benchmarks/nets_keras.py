"""Small Keras nets of three shapes, their data and optimizers, and the work by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

MOMENTA = (0.995, 0.99, 0.98)
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "adam": lambda params: keras.optimizers.Adam(3e-3),
    "sgd": lambda params: keras.optimizers.SGD(0.05, momentum=0.9),
}


def data(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """16 images of noise, 4 classes."""
    images = np.random.default_rng(seed).normal(0.5, 1.5, (16, 14, 14, 3)).astype("float32")
    return images, np.arange(16) % 4


def build(shape: str, momentum: float, seed: int) -> Any:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((14, 14, 3))
    x = layers.GlobalAveragePooling2D()(SHAPES[shape](inputs, momentum))
    return keras.Model(inputs, layers.Dense(4)(x))


def deep(layers_: int, seed: int) -> Any:
    """A residual net with about so many normalisation layers, at a momentum of 0.99."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((14, 14, 3))
    x = layers.GlobalAveragePooling2D()(_residual(inputs, 0.99, blocks=layers_ // 2))
    return keras.Model(inputs, layers.Dense(4)(x))


def momentum(rate: float) -> float:
    """The framework's momentum for an update rate."""
    return 1.0 - rate


class ByHand:
    """A trained model with frozen weights, as a user would look at it without the plugin."""

    def __init__(self, model: Any, batch: tuple[Any, Any]) -> None:
        self._model, self._images = model, tf.constant(batch[0])
        self._train = tf.function(lambda: model(self._images, training=True))
        self._eval = tf.function(lambda: model(self._images, training=False))

    @contextmanager
    def restored(self) -> Iterator[ByHand]:
        """The model ends as it began."""
        saved = self._model.get_weights()
        try:
            yield self
        finally:
            self._model.set_weights(saved)

    def update(self, times: int) -> None:
        """More updates of the running statistics."""
        for _ in range(times):
            self._train()

    def predict(self, training: bool) -> np.ndarray:
        if not training:
            return self._eval().numpy().astype("float64")
        with self.restored():
            return self._train().numpy().astype("float64")

    def recalibrate(self) -> None:
        self.update(2000)


def _conv(x: Any, width: int, momentum: float) -> Any:
    x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
    return layers.BatchNormalization(momentum=momentum)(x)


def _plain(x: Any, momentum: float) -> Any:
    for width in (12, 12, 16, 16):
        x = layers.ReLU()(_conv(x, width, momentum))
    return x


def _residual(x: Any, momentum: float, blocks: int = 3) -> Any:
    x = layers.ReLU()(_conv(x, 12, momentum))
    for _ in range(blocks):
        branch = _conv(layers.ReLU()(_conv(x, 12, momentum)), 12, momentum)
        x = layers.ReLU()(layers.Add()([x, branch]))
    return x


def _depthwise(x: Any, momentum: float) -> Any:
    x = layers.ReLU(6.0)(_conv(x, 12, momentum))
    for _ in range(2):
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        x = layers.ReLU(6.0)(layers.BatchNormalization(momentum=momentum)(x))
        x = layers.Conv2D(12, 1, use_bias=False)(x)
        x = layers.ReLU(6.0)(layers.BatchNormalization(momentum=momentum)(x))
    return x


SHAPES: dict[str, Callable[[Any, float], Any]] = {
    "plain": _plain,
    "residual": _residual,
    "depthwise": _depthwise,
}
