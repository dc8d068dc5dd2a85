"""BN201 names the layer whose code differs between the modes, and the line that asks for them."""

from __future__ import annotations

import inspect
import os

import numpy as np
import pytest

pytest.importorskip(os.environ["KERAS_BACKEND"])
keras = pytest.importorskip("keras")

from keras_adapter import L
from pytest_bncheck import check

pytestmark = pytest.mark.usefixtures("clean")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 8)).astype("float32")
Y = RNG.integers(0, 4, 16)


@keras.saving.register_keras_serializable("parting")
class Scaled(L.Layer):
    def call(
        self,
        x,
        training=None,
    ):
        h = keras.ops.relu(x)
        return 3.0 * h + 1.0 if training else h


@keras.saving.register_keras_serializable("parting")
class Between(L.Layer):
    """Changes what a layer gets, and passes the mode on."""

    def __init__(self):
        super().__init__()
        self.drop, self.inner = L.Dropout(0.0), L.Dense(16)

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x, training=False):
        x = self.drop(x, training=training)
        scale = 4.0 if training else -1.0
        return self.inner(x * scale)


@keras.saving.register_keras_serializable("parting")
class Written(keras.Model):
    """A model whose own code differs."""

    def __init__(self):
        super().__init__()
        self.first, self.last = L.Dense(16), L.Dense(4)

    def call(self, x, training=False):
        h = keras.ops.relu(self.first(x))
        return self.last(-h if training else h)


def inside(layer, norm):
    return keras.Sequential([keras.Input((8,)), L.Dense(16), norm, layer, L.Dense(4)])


CASES = {
    "layer": (lambda: inside(Scaled(name="odd"), L.ReLU()), Scaled, "odd", "if training else h"),
    "layer behind batch normalisation": (
        lambda: inside(Scaled(name="odd"), L.BatchNormalization(momentum=0.5)),
        Scaled,
        "odd",
        "if training else h",
    ),
    "what a layer gets": (lambda: inside(Between(), L.ReLU()), Between, "between", "scale = 4.0"),
    "model": (Written, Written, "the model itself", "-h if training"),
}


@pytest.mark.parametrize("case", CASES)
def test_layer_and_line(case):
    make, kind, name, asking = CASES[case]
    keras.utils.set_random_seed(1)
    model = make()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    report = check(model, (X, Y), steps=30)
    (finding,) = (each for each in report.findings if each.code == "BN201")
    lines, first = inspect.getsourcelines(kind)
    (number,) = (first + k for k, line in enumerate(lines) if asking in line)
    place = f"({kind.__name__}): test_parting.py:{number}: {lines[number - first].strip()}"
    assert finding.cause == f"The modes part in {name} {place}"
