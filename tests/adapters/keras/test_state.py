"""Whatever a check does to a Keras model, it is put back."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest

pytest.importorskip(os.environ["KERAS_BACKEND"])
keras = pytest.importorskip("keras")

from keras.src.backend.common import global_state

from keras_adapter import OWN_DRAWS, L, adapter, bits, functional, images
from passes import in_training, on_training_path, with_batch_statistics
from pytest_bncheck.adapters.keras.adapter import KerasAdapter
from pytest_bncheck.adapters.random_state import fingerprint, seeded
from pytest_bncheck.types import Recipe

pytestmark = pytest.mark.usefixtures("clean")


def state_of(model):
    from keras.src.backend.common import global_state

    layers = model._flatten_layers()
    return {
        "variables": bits(model.variables),
        "trainable": [layer.trainable for layer in layers],
        "calls": ["call" in vars(layer) for layer in layers],
        "attributes": [sorted(vars(layer)) for layer in layers],
        "losses": [len(layer._losses) for layer in layers],
        "python": random.getstate(),
        "numpy": [np.asarray(part).tolist() for part in np.random.get_state()],
        "generators": fingerprint(),
        "names": dict(global_state.get_global_attribute("object_name_uids")),
        "generator": id(global_state.get_global_attribute("global_seed_generator")),
    }


@pytest.mark.device
def test_everything_is_as_found():
    model = functional(rate=0.5)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True), metrics=["accuracy"])
    x, y = images()
    model.train_on_batch(x, y)
    keras.random.normal((2,))
    optimizer, before = model.optimizer, state_of(model)
    moments_before = bits(optimizer.variables + model.metrics_variables)
    functions = model.train_function, model.predict_function
    with seeded(0):
        lab = adapter(model, steps=2)
        assert state_of(model) != before
        with_batch_statistics(lab)
        in_training(lab)
        on_training_path(lab)
        lab.predict(0)
        lab.restore()
    assert state_of(model) == before
    assert model.optimizer is optimizer
    assert bits(optimizer.variables + model.metrics_variables) == moments_before
    assert (model.train_function, model.predict_function) == functions
    np.testing.assert_array_equal(x, images()[0])


def test_random_numbers_go_on_as_if_nothing_had_been():
    def draws():
        return (
            random.random(),
            np.random.rand(),
            *(float(draw()) for draw in OWN_DRAWS.values()),
            float(keras.random.normal(())),
        )

    def seed():
        keras.utils.set_random_seed(5)
        global_state.set_global_attribute("global_seed_generator", None)  # Keras 3.7 keeps it

    seed()
    draws()
    expected = draws()
    # Building a model draws from Python's generator, so it is built before.
    model = functional(rate=0.5)
    seed()
    draws()
    with seeded(0):
        adapter(model, steps=1).restore()
    assert draws() == expected


def test_the_same_seed_gives_the_same_training():
    model = functional(rate=0.5)
    losses = []
    for _ in range(2):
        lab = adapter(model, steps=3)
        losses.append(lab.losses)
        lab.restore()
    assert losses[0] == losses[1]


class Late(keras.Layer):
    """Draws the seed of its weights as late as it can."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 3), initializer="random_normal")

    def call(self, x):
        return x @ self.kernel


def test_seeding_before_saving_builds_the_same_weights():
    found = []
    for noise in range(2):
        keras.utils.set_random_seed(noise)
        model = keras.Sequential([L.Flatten(), Late()])
        before = random.getstate()
        with seeded(0):
            lab = KerasAdapter(model, [images()], Recipe(), None)
            lab.save()
            found.append(model.get_weights()[0])
            lab.restore()
        assert random.getstate() == before
    np.testing.assert_array_equal(*found)


@pytest.mark.device
def test_weights_can_be_kept():
    model = functional(rate=0.5)
    before = state_of(model)
    with seeded(0):
        lab = adapter(model, steps=2)
        trained = model.get_weights()
        lab.restore(keep_weights=True)
    after = state_of(model)
    assert all((a == b).all() for a, b in zip(trained, model.get_weights(), strict=True))
    assert before.pop("variables") != after.pop("variables")
    assert before == after


class Fragile(keras.Model):
    def __init__(self):
        super().__init__()
        self.bn, self.flatten, self.head = L.BatchNormalization(), L.Flatten(), L.Dense(3)
        self.calls, self.breaks = [], False

    def call(self, x, training=None):
        self.calls.append(training)
        x = self.bn(x, training=training)
        if self.breaks:
            raise ZeroDivisionError("the user's own")
        return self.head(self.flatten(x))


STEP = {"a step": lambda lab: lab.train_step(0)}
PASSES = {
    "batch statistics": with_batch_statistics,
    "training path": on_training_path,
    "eval mode": lambda lab: lab.predict(0),
}


def run_until(break_in, model, lab):
    for name, make in {**STEP, **PASSES}.items():
        model.breaks = name == break_in
        make(lab)


@pytest.mark.parametrize("break_in", STEP | PASSES)
def test_everything_is_as_found_after_an_exception(break_in):
    model = Fragile()
    model(images()[0])
    model.calls.clear()
    before = state_of(model)
    with seeded(0):
        lab = adapter(model, steps=1)
        with pytest.raises(ZeroDivisionError, match="the user's own"):
            run_until(break_in, model, lab)
        lab.restore()
    assert state_of(model) == before
    assert model.calls == []
    assert not model.breaks


def test_an_exception_while_building_leaves_nothing_behind():
    model = Fragile()
    model.breaks = True
    lab = KerasAdapter(model, [images()], Recipe(), None)
    with pytest.raises(ZeroDivisionError):
        lab.save()
    assert not any("call" in vars(layer) for layer in model._flatten_layers())


def test_unbuilt_models_are_built():
    model = keras.Sequential([L.Conv2D(4, 3), L.BatchNormalization(), L.Flatten(), L.Dense(3)])
    assert not model.built
    lab = adapter(model, steps=2)
    assert lab.calls.training == (2,)
    lab.restore()
    np.testing.assert_array_equal(model.layers[1].moving_mean.numpy(), 0.0)
