"""Keras: whatever happens in a check, model, compiled state and generators are as before."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
if keras.backend.backend() != "tensorflow":
    pytest.skip("Keras runs on another backend", allow_module_level=True)

from keras.src.backend.common import global_state  # noqa: E402
from tensorflow.python.eager import context as eager  # noqa: E402
from tensorflow.python.framework import config as tf_config  # noqa: E402

from pytest_bncheck import check  # noqa: E402

STEPS = 3
KEPT = ("train_function", "test_function", "predict_function", "stop_training", "optimizer", "loss",
        "built", "compiled", "trainable", "dtype_policy", "jit_compile", "run_eagerly")  # fmt: skip


class Happening(keras.Layer):
    """Something happens in one of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.event: Callable[[], Any] = lambda: None

    def call(self, x: Any) -> Any:
        self.event()
        return x


def batch() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.normal(3.0, 2.0, (16, 6)).astype("float32"), np.arange(16) % 3


@pytest.fixture(scope="module")
def used() -> Any:
    """A functional net with dropout that was compiled, fitted for a step and used to predict."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(8, activation="relu")(inputs)
    x = keras.layers.BatchNormalization(momentum=0.5)(x)
    x = keras.layers.Dropout(0.2)(Happening()(x))
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    model.fit(*batch(), verbose=0)
    model.predict(batch()[0], verbose=0)
    return model


def state(model: Any) -> dict[str, Any]:
    """Every value that a check could leave changed, as something that can be compared."""
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    generator = global_state.get_global_attribute("global_seed_generator")
    own = eager.context()
    return {
        **{name: getattr(model, name) for name in KEPT},
        "variables": [(id(v), v.path, v.trainable, np.asarray(v).tobytes()) for v in variables],
        "losses": list(model.losses),
        "layers": [(id(x), x.trainable, x.built, vars(x).get("call")) for x in model.layers],
        "python": random.getstate(),
        "numpy": repr(np.random.get_state(legacy=False)),
        "seed": global_state.get_global_attribute("global_random_seed"),
        "generator": generator and (id(generator), np.asarray(generator.state).tobytes()),
        "eager": (tf.executing_eagerly(), tf.config.functions_run_eagerly()),
        "tensorflow": (own._seed, getattr(own, "_rng", None) and own._rng.getstate()),
        "deterministic": tf_config.is_op_determinism_enabled(),
        "floats": (keras.config.floatx(), keras.config.epsilon(), keras.config.dtype_policy().name),
        "format": keras.config.image_data_format(),
        "device": own.device_name,
    }


def throw(error: BaseException) -> Callable[[], Any]:
    def event() -> None:
        raise error

    return event


EVENTS = {
    "an error": throw(ZeroDivisionError("no")),
    "Ctrl-C": throw(KeyboardInterrupt()),
    "no memory": throw(tf.errors.ResourceExhaustedError(None, None, "OOM (simulated)")),
    "a timeout": throw(pytest.fail.Exception("Timeout", pytrace=False)),
}


@pytest.mark.parametrize("calls", [0, 1, STEPS, STEPS + 2])
@pytest.mark.parametrize("place", ["forward", "loss"])
@pytest.mark.parametrize("event", EVENTS)
def test_events(used, event, place, calls):
    left = [calls]

    def happen() -> None:
        left[0] -= 1
        if left[0] < 0:
            EVENTS[event]()

    def loss(outputs: Any, targets: Any) -> Any:
        if place == "loss":
            happen()
        return keras.losses.sparse_categorical_crossentropy(targets, outputs, from_logits=True)

    layer = next(layer for layer in used.layers if isinstance(layer, Happening))
    layer.event = happen if place == "forward" else lambda: None
    before = state(used)
    expected = (ZeroDivisionError, KeyboardInterrupt, tf.errors.OpError, pytest.fail.Exception)
    with pytest.raises(expected):
        check(used, batch(), steps=STEPS, loss=loss)
    layer.event = lambda: None
    assert_same(before, state(used))


@pytest.mark.parametrize(
    ("momentum", "factor", "verdict"),
    [(0.8, 1.0, "pass"), (0.999, 1.0, "fail"), (0.8, np.nan, "warn")],
)
def test_a_check_that_ends(used, momentum, factor, verdict):
    """Passed, failed with its diagnosis, and without a verdict since the loss is NaN."""

    def loss(outputs: Any, targets: Any) -> Any:
        found = keras.losses.sparse_categorical_crossentropy(targets, outputs, from_logits=True)
        return factor * keras.ops.mean(found)

    norm = next(x for x in used.layers if isinstance(x, keras.layers.BatchNormalization))
    norm.momentum = momentum
    norm.moving_mean.assign(keras.ops.zeros(8))
    before = state(used)
    optimizer = keras.optimizers.Adam(3e-3)
    assert check(used, batch(), steps=150, loss=loss, optimizer=optimizer).verdict == verdict
    assert_same(before, state(used))


def assert_same(before: dict[str, Any], now: dict[str, Any]) -> None:
    """One line for each thing that changed, not the bytes of all variables."""
    assert not [name for name in before if before[name] != now[name]]
