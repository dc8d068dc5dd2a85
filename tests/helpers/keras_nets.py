"""Small Keras networks of three shapes, into which the tests build their faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from common_nets import CLASSES as CLASSES
from common_nets import SEED as SEED
from common_nets import Batch, blobs, waves
from common_nets import line as line
from common_nets import silent as silent
from common_nets import sole as sole
from pytest_bncheck import check

KINDS = ("functional", "subclassed")
KIND = pytest.mark.parametrize("kind", KINDS)
WIDTH = 12
NORMS = {"functional": ["norm1", "norm2"], "subclassed": ["block1/norm", "block2/norm"]}

Norm = Callable[[str], Any]


def batch_norm(momentum: float = 0.9, **options: Any) -> Norm:
    """The usual normalisation."""
    return lambda name: layers.BatchNormalization(momentum=momentum, name=name, **options)


def fast(rate: float = 1e-2) -> Any:
    """An optimizer that needs few steps."""
    return keras.optimizers.Adam(rate)


class Drawn(keras.initializers.Initializer):
    """Glorot's uniform, drawn by numpy: the same on every backend, since Keras seeds it too."""

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        *space, inwards, outwards = shape
        limit = (6.0 / (np.prod(space) * (inwards + outwards))) ** 0.5
        return keras.ops.cast(np.random.uniform(-limit, limit, shape), dtype or "float32")


def differentiated(losses: Callable[[], Any], model: Any) -> tuple[Any, list[Any]]:
    """A loss and its gradients by a model's weights, as a user writes it on each backend."""
    return _DIFFERENTIATED[keras.backend.backend()](losses, model)


def _with_tensorflow(losses: Callable[[], Any], model: Any) -> tuple[Any, list[Any]]:
    import tensorflow as tf

    with tf.GradientTape() as tape:
        loss = losses()
    return loss, tape.gradient(loss, model.trainable_variables)


def _with_torch(losses: Callable[[], Any], model: Any) -> tuple[Any, list[Any]]:
    model.zero_grad()
    loss = losses()
    loss.backward()
    return loss, [v.value.grad for v in model.trainable_variables]


def _with_jax(losses: Callable[[], Any], model: Any) -> tuple[Any, list[Any]]:
    import jax

    variables, others = model.trainable_variables, model.non_trainable_variables

    def stateless(values: list[Any]) -> Any:
        with keras.StatelessScope(list(zip(variables, values, strict=True))) as scope:
            loss = losses()
        return loss, [scope.get_current_value(v) for v in others]

    by_weights = jax.value_and_grad(stateless, has_aux=True)
    (loss, values), gradients = by_weights([v.value for v in variables])
    for variable, value in zip(others, values, strict=True):
        if value is not None:
            variable.assign(value)
    return loss, gradients


_DIFFERENTIATED = {"tensorflow": _with_tensorflow, "torch": _with_torch, "jax": _with_jax}


def told(layer: Any, x: Any, training: bool | None) -> Any:
    """Call a layer, in this mode if its call takes one."""
    return layer(x, training=training) if layer._call_has_training_arg else layer(x)


class Block(layers.Layer):
    """Convolution, normalisation, ReLU; a user's own layer."""

    def __init__(self, norm: Any, name: str) -> None:
        super().__init__(name=name)
        self.conv, self.norm = _conv(), norm

    def call(self, x: Any, training: bool | None = None) -> Any:
        return keras.ops.relu(told(self.norm, self.conv(x), training))


class Net(keras.Model):
    """Two convolutional blocks; subclassed, with a layer of any kind before the head."""

    def __init__(self, norm: Norm, extra: Any, block: Any = Block) -> None:
        super().__init__()
        self.blocks = [block(norm("norm"), name) for name in ("block1", "block2")]
        self.pool, self.extra = layers.GlobalAveragePooling2D(), extra
        self.head = _dense(CLASSES, name="head")

    def call(self, x: Any, training: bool | None = None) -> Any:
        for block in self.blocks:
            x = told(block, x, training)
        x = self.pool(x)
        if self.extra is not None:
            x = told(self.extra, x, training)
        return self.head(x)


class Deaf(layers.Layer):
    """Normalises, and its call takes no mode."""

    def __init__(self, norm: Any, name: str) -> None:
        super().__init__(name=name)
        self.norm = norm

    def call(self, x: Any) -> Any:
        return keras.ops.relu(self.norm(x))


class DeafModel(keras.Model):
    """A model whose call takes no mode: fit cannot pass it on."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body

    def call(self, x: Any) -> Any:
        return self.body(x)


class Always(layers.Layer):
    """Hard-wires training mode where a functional model cannot overrule it."""

    def __init__(self, inner: Any, name: str) -> None:
        super().__init__(name=name)
        self.inner = inner

    def call(self, x: Any) -> Any:
        return self.inner(x, training=True)


HARD_WIRED = line(__file__, "return self.inner(x, training=True)")


def functional(norm: Norm, extra: Any) -> Any:
    """A functional perceptron with two hidden layers and a layer of any kind before the head."""
    x = inputs = keras.Input((20,))
    for name in ("norm1", "norm2"):
        x = layers.ReLU()(norm(name)(_dense(WIDTH)(x)))
    x = x if extra is None else extra(x)
    return keras.Model(inputs, _dense(CLASSES, name="head")(x))


def _dense(width: int, **options: Any) -> Any:
    return layers.Dense(width, kernel_initializer=Drawn(), **options)


def _conv() -> Any:
    return layers.Conv2D(WIDTH, 3, padding="same", kernel_initializer=Drawn())


def net(kind: str, seed: int = 0, norm: Norm | None = None, extra: Any = None) -> Any:
    """A network of one kind; its normalisation, and what comes before the head, can be replaced."""
    keras.utils.set_random_seed(seed)
    norm = norm or batch_norm()
    return functional(norm, extra) if kind == "functional" else Net(norm, extra)


def data(kind: str, seed: int = 0, samples: int = 32) -> Batch:
    """Blobs, or small images of four patterns, channels last."""
    if kind == "functional":
        return blobs(seed, samples)
    return waves(seed, samples, channels_last=True)


def fit(model: Any, kind: str, seed: int, updates: int) -> None:
    """Each update on the whole data, all in one epoch, whose beginning and end cost most."""
    parts = [np.concatenate([part] * updates) for part in data(kind, seed)]
    model.fit(*parts, batch_size=32, shuffle=False, verbose=0)


def run(model: Any, kind: str, seed: int, *, steps: int = 100, **options: Any) -> Any:
    """The report of a check on the data of a kind."""
    options.setdefault("optimizer", fast())
    return check(model, data(kind, seed), steps=steps, seed=seed, **options)
