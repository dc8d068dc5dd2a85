"""Small Keras networks, and the adapter of one, for the tests of its parts."""

from __future__ import annotations

import keras
import numpy as np

from keras_nets import Always as Always
from keras_nets import DeafModel
from pytest_bncheck.adapters.keras.adapter import KerasAdapter
from pytest_bncheck.adapters.random_state import seed_everything
from pytest_bncheck.types import Recipe

BACKEND = keras.backend.backend()
host = keras.ops.convert_to_numpy
L = keras.layers


def images(n=16, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(2.0, 3.0, (n, 6, 6, 2)).astype("float32"), np.arange(n) % 3


def functional(momentum=0.9, rate=0.0):
    inputs = keras.Input((6, 6, 2))
    x = L.Conv2D(4, 3, name="conv1")(inputs)
    x = L.BatchNormalization(momentum=momentum, name="conv1_bn")(x)
    x = L.ReLU()(x)
    x = L.Dropout(rate)(x)
    x = L.GlobalAveragePooling2D()(x)
    x = L.BatchNormalization(momentum=momentum, name="pool_bn")(x)
    return keras.Model(inputs, L.Dense(3)(x))


class Net(keras.Model):
    """Subclassed; attributes are not in the order in which they run."""

    def __init__(self):
        super().__init__()
        self.late = L.BatchNormalization(momentum=0.8, name="late")
        self.early = L.BatchNormalization(name="early")
        self.unused = L.BatchNormalization(name="unused")
        self.dense = L.Dense(4)
        self.head = L.Dense(3)
        self.unused.build((None, 4))

    def call(self, x, training=None):
        x = self.early(keras.ops.reshape(x, (-1, 72)), training=training)
        return self.head(self.late(self.dense(x), training=training))


def deaf():
    """Its call takes no mode, so fit never trains its normalization."""
    return DeafModel(keras.Sequential([L.Flatten(), L.BatchNormalization(), L.Dense(3)]))


@keras.saving.register_keras_serializable()
class Doubled(keras.Layer):
    """User code that takes another path in training."""

    def call(self, x, training=False):
        return x * 2.0 if training else x


class Renorm(L.BatchNormalization):
    """A user's own, used as the stock one."""


def nested():
    base = keras.Sequential([L.Conv2D(4, 3), L.BatchNormalization(name="conv1_bn")], name="base")
    return keras.Sequential([base, L.Flatten(), L.Dense(3)])


def shared():
    bn = L.BatchNormalization(momentum=0.7, name="twice")
    inputs = keras.Input((6, 6, 2))
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(bn(bn(inputs) * 3.0 + 1.0))))


labs = []


def adapter(model, batch=None, *, steps=0, device=None, expected=0, **recipe):
    lab = KerasAdapter(model, [images() if batch is None else batch], Recipe(**recipe), device)
    labs.append(lab)
    lab.expected_steps = expected
    lab.save()
    seed_everything(0)
    lab.begin()
    for _ in range(steps):
        lab.train_step(0)
    return lab


def own_draws():
    """A random operation of the backend's own, with no seed, by its name; JAX has none."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return {"tf.random.random_normal(...)": lambda: tf.random.normal(())}
    if BACKEND == "torch":
        import torch

        return {"torch.randn(...)": lambda: torch.randn(())}
    return {}


OWN_DRAWS = own_draws()


def output(prediction):
    return prediction.outputs["output"]


def moments(x, axes):
    x = np.asarray(x, np.float64)
    return x.mean(axes), x.var(axes)


def bits(variables):
    return [host(v.value).tobytes() for v in variables]


def head(units, activation=None):
    return keras.Sequential([keras.Input((4,)), L.Dense(units, activation=activation)])


X = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
INDICES = np.arange(12) % 3
SPARSE = keras.losses.sparse_categorical_crossentropy


def expected_loss(loss, targets, outputs, **kwargs):
    return float(np.mean(host(loss(np.asarray(targets), host(outputs), **kwargs))))
