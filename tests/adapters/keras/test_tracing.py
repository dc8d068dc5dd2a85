"""Paths that depend on the mode, calls that draw, and what sticks."""

from __future__ import annotations

import os

import numpy as np
import pytest

pytest.importorskip(os.environ["KERAS_BACKEND"])
keras = pytest.importorskip("keras")

from keras_adapter import BACKEND, OWN_DRAWS, Always, Doubled, L, adapter, bits, functional, output
from passes import on_training_path, with_batch_statistics

pytestmark = pytest.mark.usefixtures("clean")


def test_training_path_shows_user_code_that_knows_the_mode():
    inputs = keras.Input((6, 6, 2))
    x = L.Dropout(0.5)(L.BatchNormalization()(inputs))
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(Doubled()(x))))
    lab = adapter(model, steps=2)
    trained, _, _ = with_batch_statistics(lab)
    path = on_training_path(lab)
    assert not path.random
    assert not path.mutated
    assert np.abs(output(path) - output(trained)).max() > 0.1
    lab.restore()


def test_training_path_is_the_same_with_layers_of_keras():
    inputs = keras.Input((6, 8))
    x = L.Dense(8)(L.BatchNormalization()(inputs))
    x = L.MultiHeadAttention(2, 4, dropout=0.5)(x, x)
    x = L.LSTM(4, dropout=0.5, recurrent_dropout=0.5)(L.GaussianNoise(1.0)(x))
    model = keras.Model(inputs, L.Dense(2)(L.Dropout(0.5)(x)))
    rng = np.random.default_rng(0)
    lab = adapter(model, (rng.normal(size=(8, 6, 8)), np.arange(8) % 2), steps=2)
    trained, _, _ = with_batch_statistics(lab)
    path = on_training_path(lab)
    assert not path.random
    assert not path.mutated
    np.testing.assert_array_equal(output(path), output(trained))
    lab.restore()


def test_training_path_runs_spectral_normalization_as_training_does():
    norm = L.SpectralNormalization(L.Dense(3), name="norm")
    model = keras.Sequential([keras.Input((8,)), norm])
    lab = adapter(model, (np.ones((8, 8), "float32"), np.arange(8) % 3), steps=2)
    kernel = bits(model.variables)
    assert on_training_path(lab).mutated == ("norm.vector_u",)
    assert bits(model.variables) == kernel
    lab.restore()


def test_training_path_leaves_frozen_layers_alone():
    model = functional()
    model.get_layer("conv1_bn").trainable = False
    lab = adapter(model, steps=3)
    trained, _, _ = with_batch_statistics(lab)
    np.testing.assert_array_equal(output(on_training_path(lab)), output(trained))
    lab.restore()


def test_calls_that_train_in_eval_mode_are_named():
    always = Always(L.BatchNormalization(name="bn"), name="always")
    model = keras.Sequential(
        [L.Flatten(), always, Always(L.Dropout(0.5, name="drop"), name="also"), L.Dense(3)]
    )
    lab = adapter(model, steps=1)
    assert lab.predict(0).in_training == ()  # the mode is an argument, not a layer's state
    found = lab.trace(0)
    assert [(t.kind, t.module) for t in found] == [
        ("batch statistics", "always/bn"), ("random", "also/drop"),
    ]  # fmt: skip
    assert found[0].call == "keras.layers.BatchNormalization(...)(x, training=True)"
    assert found[1].call == "keras.layers.Dropout(0.5)(x, training=True)"
    assert all("return self.inner(x, training=True)" in t.source for t in found)
    assert found[0].source.startswith("keras_nets.py:")
    lab.restore()


@pytest.mark.parametrize(
    ("call", "draw"),
    [
        # Keras refuses to train with it on JAX.
        *[("keras.random.dropout(...)", lambda x: keras.random.dropout(x, 0.5))][
            BACKEND == "jax" :
        ],
        *((name, lambda x, draw=draw: x + draw()) for name, draw in OWN_DRAWS.items()),
        ("random numbers of Python or numpy", lambda x: x * np.random.rand()),
    ],
)
def test_trace_finds_the_line_that_draws(call, draw):
    class Noisy(keras.Layer):
        def call(self, x):
            return draw(x)

    inner = keras.Sequential([Noisy(name="noisy")], name="inner")
    lab = adapter(keras.Sequential([L.Flatten(), inner, L.Dropout(0.5), L.Dense(3)]), steps=1)
    (found,) = lab.trace(0)
    assert (found.kind, found.module, found.call) == ("random", "inner/noisy", call)
    file = "keras_adapter.py" if call in OWN_DRAWS else "test_tracing.py"
    assert found.source.startswith(f"{file}:")
    assert keras.random.SeedGenerator.next.__module__.startswith("keras.")
    lab.restore()


def test_nothing_trains_in_the_eval_mode_of_keras_own_layers():
    model = keras.Sequential(
        [L.BatchNormalization(), L.LSTM(4, dropout=0.5, recurrent_dropout=0.5), L.Dropout(0.5),
         L.Dense(2)]
    )  # fmt: skip
    x = np.random.default_rng(0).normal(size=(8, 6, 3))
    lab = adapter(model, (x, np.arange(8) % 2), steps=1)
    assert lab.stochastic
    assert lab.idle == []
    prediction = lab.predict(0)
    assert (prediction.random, prediction.mutated, prediction.in_training) == (False, (), ())
    assert lab.trace(0) == []
    assert lab.sticky(0) == []
    lab.restore()


def test_idle_layers():
    class Forgetful(keras.Model):
        def __init__(self):
            super().__init__()
            self.bn, self.drop = L.BatchNormalization(name="bn"), L.Dropout(0.5, name="drop")
            self.heard, self.zero = L.Dropout(0.5, name="heard"), L.Dropout(0.0, name="zero")
            self.frozen = L.BatchNormalization(name="frozen", trainable=False)
            self.flatten, self.head = L.Flatten(), L.Dense(3)

        def call(self, x, training=None):
            x = self.frozen(self.bn(self.flatten(x), training=False), training=training)
            x = self.zero(self.drop(x, training=False), training=False)
            return self.head(self.heard(x, training=training))

    # The mode gets to the model: what it tells its layers then is its design.
    lab = adapter(Forgetful(), steps=2)
    assert lab.idle == []
    assert [layer.name for layer in lab.layers() if layer.frozen] == ["bn", "frozen"]

    def train_step(model, batch):
        return keras.ops.mean(model(batch[0]))

    lab = adapter(Forgetful(), steps=2, train_step=train_step)
    assert lab.idle == ["bn", "drop", "heard"]
    assert [layer.name for layer in lab.layers() if layer.frozen] == ["frozen"]
    lab.restore()


@pytest.mark.parametrize(("matters", "found"), [(True, ["sticky.scale"]), (False, [])])
def test_attributes_that_stick(matters, found):
    class Sticky(keras.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.scale, self.count = 2.0, 0

        def call(self, x, training=False):
            self.count += 1
            if not training:
                self.scale = 1.0
            return x * self.scale if matters else x

    inputs = keras.Input((6, 6, 2))
    sticky = Sticky(name="sticky")
    x = L.Dropout(0.5)(sticky(inputs))
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(x)))
    sticky.scale = 2.0
    lab = adapter(model, steps=2)
    lab.predict(0)
    variables = bits(model.variables)
    count = sticky.count
    assert lab.sticky(0) == found
    assert bits(model.variables) == variables
    assert (sticky.count, sticky.scale) == (count, 1.0)
    lab.restore()
    assert sticky.scale == 2.0
