"""Compiled steps are those made eagerly."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest

pytest.importorskip(os.environ["KERAS_BACKEND"])
keras = pytest.importorskip("keras")

from keras_adapter import BACKEND, L, Net, adapter, functional, output, shared
from passes import with_batch_statistics

pytestmark = pytest.mark.usefixtures("clean")


COMPILED = {"tensorflow": "graph", "jax": "jit"}
needs_compilation = pytest.mark.skipif(BACKEND not in COMPILED, reason="its steps are eager")


@needs_compilation
@pytest.mark.parametrize("build", [functional, Net, shared], ids=lambda f: f.__name__)
def test_compiled_steps_are_those_made_eagerly(build):
    found = []
    model = build()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    functions = model.train_function, model.optimizer
    for expected, execution in ((0, "eager"), (50, COMPILED[BACKEND])):
        lab = adapter(model, steps=4, expected=expected)
        assert lab.execution == execution
        found.append((lab.losses, lab.history, lab.calls, model.get_weights(), lab.idle))
        prediction, _, _ = with_batch_statistics(lab)
        assert np.isfinite(output(prediction)).all()
        lab.restore()
    eager, compiled = found
    np.testing.assert_allclose(compiled[0], eager[0], rtol=1e-4)
    for a, b in zip(compiled[1], eager[1], strict=True):
        for x, y in zip(a.mean + a.var, b.mean + b.var, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-4, rtol=1e-3)
    assert compiled[2] == eager[2]
    assert compiled[4] == eager[4] == []
    assert (model.train_function, model.optimizer) == functions


@needs_compilation
def test_dropout_goes_on_in_compiled_steps():
    lab = adapter(functional(rate=0.5), steps=3, expected=50)
    assert lab.execution == COMPILED[BACKEND]
    assert lab.stochastic
    lab.restore()
    plain = adapter(functional(), steps=3, expected=50)
    assert not plain.stochastic
    plain.restore()


@needs_compilation
def test_few_steps_are_not_compiled_where_eager_ones_are_quick():
    lab = adapter(functional(), steps=1, expected=5)
    assert lab.execution == ("jit" if BACKEND == "jax" else "eager")
    lab.restore()


@needs_compilation
@pytest.mark.parametrize("why", ["python", "numpy", "attribute", "loss"])
def test_what_a_trace_would_miss_is_run_eagerly(why):
    class Own(keras.Layer):
        count = 0

        def call(self, x):
            if why == "attribute":
                self.count += 1
            draws = {"python": random.random, "numpy": np.random.rand}
            return x * draws[why]() if why in draws else x

    loss = {}
    if why == "loss":
        loss["loss"] = lambda o, t: keras.ops.mean(o) * float(keras.ops.max(o) > -1e9)
    model = keras.Sequential([L.Flatten(), Own(), L.Dense(3)])
    lab = adapter(model, steps=2, expected=50, **loss)
    assert lab.execution == "eager"
    assert lab.stochastic == (why in ("python", "numpy"))
    lab.restore()
