"""What the Keras adapter meets on the JAX backend alone."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
keras = pytest.importorskip("keras")
if keras.backend.backend() != "jax":
    pytest.skip("Keras runs on another backend", allow_module_level=True)
import jax

from passes import with_batch_statistics
from pytest_bncheck import check
from pytest_bncheck.adapters.keras.adapter import KerasAdapter
from pytest_bncheck.adapters.keras.backends.jax import Jax
from pytest_bncheck.adapters.keras.compilation import CompiledSteps
from pytest_bncheck.types import InputError, Recipe

X = np.random.default_rng(0).normal(2.0, 3.0, (16, 4)).astype("float32")
Y = np.arange(16) % 3


def build():
    return keras.Sequential(
        [keras.Input((4,)), keras.layers.BatchNormalization(), keras.layers.Dense(3)]
    )


def prepared(model, steps=0, **recipe):
    lab = KerasAdapter(model, [(X, Y)], Recipe(**recipe), None)
    lab.expected_steps = steps
    lab.save()
    lab.begin()
    return lab


def test_a_step_of_the_users_may_give_its_arrays_away():
    """``train_on_batch`` donates the arrays of variables to its compiled function."""
    model = build()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    before = model.get_weights()
    lab = prepared(model, train_step=lambda m, b: m.train_on_batch(*b))
    lab.train_step(0)
    lab.train_step(0)
    assert lab.calls.training == (2,)
    lab.restore()
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))


def test_no_tracer_is_left_behind():
    class Penalised(keras.Layer):
        def call(self, x):
            self.add_loss(1e-3 * keras.ops.sum(x**2))
            return x

    model = keras.Sequential([*build().layers, Penalised()])
    lab = prepared(model)
    lab.train_step(0)
    lab.predict(0)
    assert not any(isinstance(v.value, jax.core.Tracer) for v in model.variables)
    assert not any(isinstance(x, jax.core.Tracer) for x in model.losses)
    lab.restore()


def test_where_nothing_is_to_be_compiled():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 4)).astype("f4")
    layers = [keras.Input((4,)), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
    model = keras.Sequential(layers)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with jax.disable_jit():
        report = check(model, (x, (x[:, 0] > 0).astype("i4")), steps=3)
    assert report.steps == 3


def test_devices_have_names():
    model = build()
    assert KerasAdapter(model, [(X, Y)], Recipe(), None).device == "cpu"
    with pytest.raises(InputError, match="device: 'cuda:1' is not there; this machine has cpu"):
        KerasAdapter(model, [(X, Y)], Recipe(), "cuda:1")


def test_one_more_step_is_the_pass_with_batch_statistics(monkeypatch):
    """Also where a layer is called twice or is frozen; and it changes nothing."""
    shared = keras.layers.BatchNormalization(momentum=0.9)
    inputs = keras.Input((4,))
    x = keras.layers.Dense(4, activation="relu")(shared(inputs))
    x = keras.layers.BatchNormalization(trainable=False)(shared(x))
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    lab = prepared(model, steps=3)
    for _ in range(3):
        lab.train_step(0)
    variables = [*model.variables, *model.optimizer.variables]
    before = [np.array(v) for v in variables]
    by_step, statistics, calls = with_batch_statistics(lab)
    assert lab._training.programs.pass_from_step(lab._batches[0]) is not None
    assert all((np.array(v) == b).all() for v, b in zip(variables, before, strict=True))
    monkeypatch.setattr(CompiledSteps, "pass_from_step", lambda self, batch: None)
    by_pass, expected, calls_in_pass = with_batch_statistics(lab)
    np.testing.assert_allclose(by_step.outputs["output"], by_pass.outputs["output"], atol=1e-6)
    assert by_step.loss == pytest.approx(by_pass.loss, rel=1e-6)
    for found, other in ((statistics.mean, expected.mean), (statistics.var, expected.var)):
        for a, b in zip(found, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert calls == calls_in_pass
    assert calls.training == (2, 0)


def test_no_step_stands_for_a_pass_where_it_stores_nothing():
    """With momentum 1 running statistics do not show those of the batch."""
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.BatchNormalization(momentum=1.0), keras.layers.Dense(3)]
    )
    lab = prepared(model, steps=1)
    lab.train_step(0)
    assert lab.execution == "jit"
    assert lab._training.programs.pass_from_step(lab._batches[0]) is None
    statistics = with_batch_statistics(lab)[1]
    np.testing.assert_allclose(statistics.mean[0], X.mean(axis=0), rtol=1e-4)


@pytest.mark.parametrize("name", ["adam", "adagrad", "ftrl", "sgd", "muon"])
def test_an_optimizer_begins_as_keras_makes_it(name):
    """With zeros from the host and with other initial values, in the types of the weights."""
    weights = [keras.Variable(np.ones((3, 4)), dtype=dtype) for dtype in ("float32", "bfloat16")]

    def made(building):
        optimizer = keras.optimizers.get(name)
        with building(optimizer):
            optimizer.build(weights)
        assert "add_variable" not in vars(optimizer)
        return [(v.dtype, v.shape, np.asarray(v).tolist()) for v in optimizer.variables]

    assert made(Jax().building) == made(contextlib.nullcontext)


def test_zeros_for_an_optimizer_compile_nothing(caplog):
    weights = [keras.Variable(np.ones((7, 11 + k)), dtype="float32") for k in range(3)]
    with jax.log_compiles(), Jax().building(optimizer := keras.optimizers.get("adam")):
        optimizer.build(weights)
    assert len(optimizer.variables) > 6
    assert "broadcast" not in caplog.text
    with jax.log_compiles():
        keras.ops.zeros((7, 11, 13))  # what the log would say
    assert "broadcast" in caplog.text
