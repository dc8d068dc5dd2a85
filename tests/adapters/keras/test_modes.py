"""In which modes layers train: seen in the steps of a check, or in one that is discarded."""

from __future__ import annotations

import os

import pytest

pytest.importorskip(os.environ["KERAS_BACKEND"])
keras = pytest.importorskip("keras")

from keras_adapter import BACKEND, adapter, bits, host, images
from keras_nets import fast
from keras_steps import Inside, Told
from pytest_bncheck import check
from pytest_bncheck.adapters import random_state
from pytest_bncheck.adapters.base import Mode

L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@keras.saving.register_keras_serializable()
class Sensitive(keras.Layer):
    """User code that takes another path in training."""

    def call(self, x, training=False):
        return x * 3.0 - 2.0 if training else x


def inner(*more, dropout=0.2, momentum=0.9):
    keras.utils.set_random_seed(0)
    middle = [
        L.BatchNormalization(momentum=momentum, name="bn"),
        *more,
        L.Dropout(dropout, name="dropout"),
    ]
    return keras.Sequential(
        [keras.Input((6, 6, 2)), L.Conv2D(4, 3), *middle, L.Flatten(), L.Dense(3)], name="inner"
    )


def compiled(model):
    model(images()[0])
    model.compile(fast(), LOSS)
    return model


@pytest.mark.parametrize("steps", [0, 2])
def test_the_step_shows_what_the_call_does_not(steps):
    """A net told its mode by the model and one told by the step give the same statistics."""
    seen = {}
    for kind in (Inside, Told):
        lab = adapter(compiled(kind(inner(dropout=0.0))), steps=steps, expected=steps)
        passes = [lab.run(0, mode) for mode in (Mode.BATCH_STATISTICS, Mode.TRAINING)]
        seen[kind] = [each.statistics for each in passes]
        before = lab.read()
        assert abs(passes[1].statistics.var[0] - before.var[0]).max() > 0.1
        lab.restore()
    for one, other in zip(seen[Inside], seen[Told], strict=True):
        assert one.mean[0] == pytest.approx(other.mean[0], rel=1e-4)
        assert one.var[0] == pytest.approx(other.var[0], rel=1e-4)


@pytest.mark.parametrize("steps", [0, 2])
def test_dropout_inside_is_on_in_training_mode(steps):
    model = compiled(Inside(keras.Sequential([keras.Input((6, 6, 2)), L.Dropout(0.5), inner()])))
    lab = adapter(model, steps=steps, expected=steps)
    clean = lab.run(0, Mode.BATCH_STATISTICS).statistics
    noisy = lab.run(0, Mode.TRAINING).statistics
    assert (noisy.var[0] > 1.2 * clean.var[0]).all()
    lab.restore()


@pytest.mark.parametrize("steps", [0, 2])
def test_user_code_inside_is_told_on_the_training_path(steps):
    found = {}
    for more in ((), (Sensitive(),)):
        lab = adapter(compiled(Inside(inner(*more))), steps=steps, expected=steps)
        first, path = (lab.run(0, m) for m in (Mode.BATCH_STATISTICS, Mode.TRAINING_PATH))
        found[bool(more)] = abs(
            first.prediction.outputs["output"] - path.prediction.outputs["output"]
        ).max()
        lab.restore()
    assert found[False] < 1e-5
    assert found[True] > 0.1


def left_behind(model):
    """Everything that a discarded step could change."""
    generators = [
        layer.seed_generator for layer in model._flatten_layers() if isinstance(layer, L.Dropout)
    ]
    return (
        bits(model.variables),
        bits(model.optimizer.variables),
        bits(model.metrics_variables),
        bits([each.state for each in generators]),
        int(host(model.optimizer.iterations.value)),
        id(model.optimizer),
        id(model.train_function),
        random_state.fingerprint(),
    )


@pytest.mark.parametrize("kind", [Inside, Told])
def test_a_discarded_step_leaves_everything_as_found(kind):
    model = compiled(kind(inner()))
    model.fit(*images(), batch_size=16, epochs=3, verbose=0)
    before = left_behind(model)
    check(model, images(), steps=0)
    assert left_behind(model) == before
    assert int(host(model.optimizer.iterations.value)) == 3


def test_a_step_that_was_traced_before_is_seen():
    if BACKEND != "tensorflow":
        pytest.skip("tf.function")
    import tensorflow as tf

    class Traced(Inside):
        train_step = tf.function(Inside.train_step)

    model = compiled(Traced(inner(dropout=0.0)))
    model.fit(*images(), batch_size=16, epochs=2, verbose=0)
    lab = adapter(model)
    assert not lab.assumes_modes
    assert lab.run(0, Mode.BATCH_STATISTICS).calls.training == (1,)
    lab.restore()


def test_a_net_that_fit_trains_without_its_mode_is_not_told_to_train():
    class Silent(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = inner()

        def call(self, x):
            return self.inner(x)

    lab = adapter(compiled(Silent()))
    assert not lab.assumes_modes
    assert lab.idle == ["inner/bn", "inner/dropout"]
    assert lab.run(0, Mode.BATCH_STATISTICS).calls.training == (0,)
    lab.restore()


@pytest.mark.parametrize("why", ["not compiled", "raises"])
def test_modes_are_assumed_where_no_step_can_be_made(why):
    class Raising(Inside):
        def train_step(self, *arguments):
            raise RuntimeError("no step here")

    model = Inside(inner(momentum=0.99)) if why == "not compiled" else compiled(Raising(inner()))
    model(images()[0])
    report = check(model, images(), steps=0)
    assert report.modes == "assumed"
    assert report.to_dict()["modes"] == "assumed"
    text = " ".join(str(report).split())
    assert "The modes are assumed" in text
    assert "repeats training mode" not in text
    assert [layer.name for layer in report.layers] == ["inner/bn"]
    # Told to train, the layer sees the batch: its initial 0 and 1 are far from it.
    assert report.layers[0].distortion > 0.1


def test_a_model_that_gives_every_layer_its_mode_needs_no_assumption():
    model = inner(dropout=0.0)
    report = check(model, images(), steps=0)
    assert report.modes == "observed"
    assert "modes" not in report.to_dict()
