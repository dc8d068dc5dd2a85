"""Every way by which the training code of a Keras model can reach what it changes."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from pytest_bncheck import check

X = np.random.default_rng(0).normal(3, 2, (24, 4)).astype("float32")
Y = (X[:, 0] > 3).astype("int64")


def counted() -> Any:
    return keras.Variable(np.zeros(3, "float32"))


class Endless(list):
    """Asked for its own iterator, it would never end."""

    def __iter__(self) -> Any:
        while True:
            yield 0


def test_what_a_step_reaches() -> None:
    layers = keras.layers
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8), layers.Dense(2, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy")
    vars(model.layers[0])["endless"] = Endless([1])  # Keras would copy it
    key, weak, viewed = keras.metrics.Mean(), counted(), counted()
    keys, view, pointer = {key: 1}, {"a": viewed}.values(), weakref.ref(weak)
    seen: list[int] = []
    append, objects = seen.append, keras.saving.get_custom_objects()

    def train_step(model: Any, batch: Any) -> float:
        for variable in (*(metric.total for metric in keys), *view, pointer()):
            variable.assign(variable + 1)
        append(1)
        objects["own"] = Endless
        keras.config.disable_interactive_logging()
        return float(model.train_on_batch(*batch))

    logging = keras.config.is_interactive_logging_enabled()
    assert check(model, (X, Y), steps=2, train_step=train_step).error is None
    values = [keras.ops.convert_to_numpy(each) for each in (key.total, weak, viewed)]
    assert not np.any(np.hstack(values))
    assert (seen, "own" in objects) == ([], False)
    assert keras.config.is_interactive_logging_enabled() == logging
