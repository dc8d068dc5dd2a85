"""Passes of the Keras adapter: batch statistics, chance, and what they leave alone."""

from __future__ import annotations

import inspect
import os
import random

import numpy as np
import pytest

pytest.importorskip(os.environ["KERAS_BACKEND"])
keras = pytest.importorskip("keras")

from keras_adapter import (
    BACKEND,
    OWN_DRAWS,
    Always,
    L,
    Net,
    Renorm,
    adapter,
    functional,
    host,
    images,
    moments,
    nested,
    output,
    shared,
)
from passes import in_training, with_batch_statistics
from pytest_bncheck.types import Statistics

pytestmark = pytest.mark.usefixtures("clean")


@pytest.mark.device
def test_batch_statistics_are_the_batchs_own():
    model = functional(momentum=0.999)
    lab = adapter(model, steps=3)
    _, batch, calls = with_batch_statistics(lab)
    x = images()[0]
    h = host(model.layers[1](x))
    mean, var = moments(h, (0, 1, 2))
    np.testing.assert_allclose(batch.mean[0], mean, atol=1e-5)
    np.testing.assert_allclose(batch.var[0], var, rtol=1e-5)
    bn = model.get_layer("conv1_bn")
    normal = (h - mean) / np.sqrt(var + bn.epsilon) * bn.gamma.numpy()
    pooled = np.maximum(normal + bn.beta.numpy(), 0).mean((1, 2))
    np.testing.assert_allclose(batch.mean[1], pooled.mean(0), atol=1e-5)
    np.testing.assert_allclose(batch.var[1], pooled.var(0), rtol=1e-4)
    assert calls.training == (1, 1)
    assert calls.inference == (0, 0)
    assert calls.values == (16 * 4 * 4, 16)
    lab.restore()


@pytest.mark.parametrize("sigma", [1e-4, 1.0, 1e3])
@pytest.mark.parametrize("momentum", [1.0, 0.999, 0.0])
def test_batch_statistics_at_any_scale_and_momentum(sigma, momentum):
    x = np.random.default_rng(0).normal(0, sigma, (32, 5)).astype("float32")
    model = keras.Sequential([L.BatchNormalization(momentum=momentum), L.Dense(1)])
    lab = adapter(model, (x, x[:, :1]), steps=1)
    _, batch, _ = with_batch_statistics(lab)
    np.testing.assert_allclose(batch.var[0], x.astype("f8").var(0), rtol=1e-5)
    assert model.layers[0].momentum == momentum
    assert lab.layers()[0].update_rate == pytest.approx(1 - momentum)
    lab.restore()


def test_statistics_that_are_not_finite_do_not_spoil_the_batchs():
    model = functional()
    lab = adapter(model, steps=1)
    now = lab.read()
    lab.write(Statistics(tuple(m * np.nan for m in now.mean), now.var))
    prediction, batch, _ = with_batch_statistics(lab)
    assert np.isfinite(batch.mean[0]).all()
    assert np.isfinite(output(prediction)).all()
    assert np.isnan(lab.read().mean[0]).all()
    lab.restore()


@pytest.mark.parametrize("build", [functional, Net, nested, shared], ids=lambda f: f.__name__)
def test_exact_statistics_repeat_the_training_prediction(build):
    model = build()
    lab = adapter(model, steps=3)
    trained, batch, calls = with_batch_statistics(lab)
    before = lab.read()
    lab.write(batch, exact=True)
    if build is not shared:  # there one pair of statistics stands for two batches
        np.testing.assert_allclose(output(lab.predict(0)), output(trained), atol=1e-4, rtol=1e-4)
    for written, read in zip(batch.mean + batch.var, lab.read().mean + lab.read().var, strict=True):
        np.testing.assert_allclose(written, read, rtol=1e-6)
    lab.write(before)
    assert not np.allclose(output(lab.predict(0)), output(trained), atol=1e-4)
    assert lab.calls.training == tuple(3 * c for c in calls.training)
    lab.restore()


def test_shared_layer_gives_what_its_calls_lead_to():
    model = shared()
    lab = adapter(model)
    _, batch, calls = with_batch_statistics(lab)
    assert calls.training == (2,)
    with lab._subject.backend.nothing_traced():
        for _ in range(60):
            model(images()[0], training=True)
    np.testing.assert_allclose(lab.read().mean[0], batch.mean[0], atol=1e-4)
    np.testing.assert_allclose(lab.read().var[0], batch.var[0], rtol=1e-4)
    lab.restore()


def test_time_distributed_counts_every_step_of_time():
    x = np.random.default_rng(0).normal(size=(8, 3, 5)).astype("float32")
    model = keras.Sequential(
        [keras.Input((3, 5)), L.TimeDistributed(L.BatchNormalization()), L.Flatten(), L.Dense(1)]
    )
    lab = adapter(model, (x, x[:, 0, :1]), steps=2)
    assert lab.calls.training == (6,)
    assert lab.calls.values == (8,)
    _, batch, _ = with_batch_statistics(lab)
    decay = 0.99 ** np.arange(3)[::-1]
    np.testing.assert_allclose(
        batch.mean[0], decay @ x.astype("f8").mean(0) / decay.sum(), atol=1e-6
    )
    lab.restore()


@pytest.mark.filterwarnings("ignore:.*mask:UserWarning", "ignore:.*0-D tensors:UserWarning")
def test_mask_leaves_fewer_values():
    x = np.random.default_rng(0).normal(size=(4, 5, 3)).astype("float32")
    x[:, 3:] = 0.0
    model = keras.Sequential([L.Masking(), L.BatchNormalization(), L.Flatten(), L.Dense(1)])
    lab = adapter(model, (x, x[:, 0, :1]))
    _, batch, calls = with_batch_statistics(lab)
    assert calls.values == (12,)
    np.testing.assert_allclose(batch.mean[0], x[:, :3].mean((0, 1)), atol=1e-5)
    lab.restore()


def test_a_layer_that_trains_with_its_statistics_is_not_known_by_its_name():
    if "renorm" not in inspect.signature(L.BatchNormalization).parameters:
        pytest.skip("this Keras has no batch renormalisation of its own")
    x = np.random.default_rng(0).normal(3, 2, (32, 4)).astype("float32")
    model = keras.Sequential([L.BatchNormalization(renorm=True), L.Dense(1)])
    lab = adapter(model, (x, x[:, :1]), steps=2)
    assert not lab.layers()
    assert {"moving_mean", "moving_variance"} <= {
        state.name.rpartition(".")[2] for state in lab.states()
    }
    lab.restore()


def test_a_subclass_is_known_by_what_it_does():
    x = np.random.default_rng(0).normal(3, 2, (32, 4)).astype("float32")
    bn = Renorm()
    lab = adapter(keras.Sequential([bn, L.Dense(1)]), (x, x[:, :1]), steps=2)
    before = [v.numpy() for v in bn.variables]
    _, batch, _ = with_batch_statistics(lab)
    assert not lab.layers()[0].stock
    np.testing.assert_allclose(batch.mean[0], x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(batch.var[0], x.var(0), rtol=1e-3)
    assert all((v.numpy() == old).all() for v, old in zip(bn.variables, before, strict=True))
    lab.restore()


def test_batch_statistics_pass_has_dropout_off_and_the_training_pass_on():
    lab = adapter(functional(rate=0.5), steps=2)
    assert lab.stochastic
    first, quiet, _ = with_batch_statistics(lab)
    again, _, _ = with_batch_statistics(lab)
    np.testing.assert_array_equal(output(first), output(again))
    assert not first.random
    noisy = in_training(lab)
    np.testing.assert_allclose(noisy.mean[0], quiet.mean[0], atol=1e-6)
    assert np.abs(noisy.var[1] - quiet.var[1]).max() > 1e-3
    lab.restore()


def test_without_dropout_both_passes_agree_and_nothing_is_stochastic():
    lab = adapter(functional(), steps=2)
    assert not lab.stochastic
    before = lab.read()
    np.testing.assert_array_equal(in_training(lab).var[1], with_batch_statistics(lab)[1].var[1])
    np.testing.assert_array_equal(lab.read().mean[0], before.mean[0])
    lab.restore()


@pytest.mark.parametrize("draw", [*OWN_DRAWS.values(), random.random, np.random.rand])
def test_every_source_of_chance_is_seen(draw):
    class Noisy(keras.Layer):
        def call(self, x):
            return x + draw()

    lab = adapter(keras.Sequential([L.Flatten(), Noisy(), L.Dense(3)]), steps=1)
    assert lab.stochastic
    assert lab.predict(0).random
    lab.restore()


class Counting(keras.Layer):
    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")

    def call(self, x):
        self.count.assign_add(1.0)
        return x


class Dropping(keras.Layer):
    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(7)

    def call(self, x):
        return keras.random.dropout(x, 0.5, seed=self.seeds)


def test_predict_notes_chance_and_change():
    for layer, flags in (
        (Counting(name="counting"), (False, ("counting.count",))),
        (Dropping(), (True, ())),
        (Always(L.BatchNormalization(name="bn"), name="always"),
         (False, ("always/bn.moving_mean", "always/bn.moving_variance"))),
    ):  # fmt: skip
        lab = adapter(keras.Sequential([L.Flatten(), layer, L.Dense(3)]), steps=1)
        prediction = lab.predict(0)
        assert (prediction.random, prediction.mutated) == flags
        lab.restore()


@pytest.mark.device
def test_half_a_batch():
    lab = adapter(functional(), steps=2)
    whole, half = lab.predict(0), lab.predict_half(0)
    np.testing.assert_allclose(output(half), output(whole)[:8], atol=1e-5)
    assert half.structure == whole.structure
    assert half.loss is None  # nothing asks for it, and on JAX it would be a program
    lab.restore()
    lab = adapter(functional(), images(n=1))
    assert lab.predict_half(0) is None
    lab.restore()

    class OneSize(keras.Layer):
        def call(self, x):
            return keras.ops.reshape(x, (16, 72))

    lab = adapter(keras.Sequential([OneSize(), L.Dense(3)]), steps=1)
    whole, half = lab.predict(0), lab.predict_half(0)
    if BACKEND == "jax":  # the half over again takes the place of the other half
        np.testing.assert_allclose(output(half), output(whole)[:8], atol=1e-5)
    else:
        assert half is None
    lab.restore()
