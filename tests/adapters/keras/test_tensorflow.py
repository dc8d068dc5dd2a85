"""What the Keras adapter meets on the TensorFlow backend alone."""

from __future__ import annotations

import numpy as np
import pytest

keras = pytest.importorskip("keras")
if keras.backend.backend() != "tensorflow":
    pytest.skip("Keras runs on another backend", allow_module_level=True)
import tensorflow as tf

from pytest_bncheck.adapters.keras.adapter import KerasAdapter
from pytest_bncheck.types import Recipe

X = np.random.default_rng(0).normal(2.0, 3.0, (16, 4)).astype("float32")
Y = np.arange(16) % 3


def test_compiled_functions_do_not_keep_what_a_check_changed():
    class Compiled(keras.Model):
        def __init__(self):
            super().__init__()
            self.bn, self.head = keras.layers.BatchNormalization(), keras.layers.Dense(3)

        @tf.function
        def call(self, x, training=None):
            return self.head(self.bn(x, training=training))

    model = Compiled()
    expected = model(X, training=False).numpy()
    lab = KerasAdapter(model, [(X, Y)], Recipe(), None)
    lab.save()
    assert tf.config.functions_run_eagerly()
    lab.begin()
    lab.train_step(0)
    lab.train_step(0)
    assert lab.calls.training == (2,)
    lab.restore()
    assert not tf.config.functions_run_eagerly()
    np.testing.assert_array_equal(model(X, training=False).numpy(), expected)


def test_functions_are_traced_again_after_an_exception_while_building():
    class Broken(keras.Model):
        def call(self, x):
            if not isinstance(x, keras.KerasTensor) and tf.executing_eagerly():
                raise ZeroDivisionError
            return x

    lab = KerasAdapter(Broken(), [(X, Y)], Recipe(), None)
    with pytest.raises(ZeroDivisionError):
        lab.save()
    assert not tf.config.functions_run_eagerly()


def test_plain_variables_are_buffers():
    class Counting(keras.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.count = tf.Variable(0.0)

        def call(self, x):
            self.count.assign_add(1.0)
            return x

    counting = Counting(name="counting")
    model = keras.Sequential([counting, keras.layers.Dense(3)])
    lab = KerasAdapter(model, [(X, Y)], Recipe(), None)
    lab.save()
    lab.begin()
    before = float(counting.count)
    assert lab.predict(0).mutated == ("counting.count",)
    assert float(counting.count) == before
    lab.restore()
