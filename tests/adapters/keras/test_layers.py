"""Layers with moving statistics: their order, paths and modes."""

from __future__ import annotations

import os

import numpy as np
import pytest

pytest.importorskip(os.environ["KERAS_BACKEND"])
keras = pytest.importorskip("keras")

from keras_adapter import INDICES, L, Net, X, adapter, deaf, functional, nested, output
from passes import with_batch_statistics

pytestmark = pytest.mark.usefixtures("clean")


def test_layers_are_in_the_order_of_their_calls():
    lab = adapter(Net(), steps=1)
    assert [layer.name for layer in lab.layers()] == ["early", "late", "unused"]
    assert [layer.momentum for layer in lab.layers()] == [0.99, 0.8, 0.99]
    assert lab.calls.training == (1, 1, 0)
    assert lab.calls.values == (16, 16, None)
    assert [len(m) for m in lab.history[1].mean] == [72, 4, 4]
    lab.restore()


def test_nested_layers_have_paths():
    lab = adapter(nested())
    assert [layer.name for layer in lab.layers()] == ["base/conv1_bn"]
    lab.restore()


def test_frozen_layers_stay_in_inference_mode():
    model = functional()
    model.get_layer("conv1_bn").trainable = False
    lab = adapter(model, steps=2)
    assert [layer.frozen for layer in lab.layers()] == [True, False]
    assert lab.calls.training == (0, 2)
    assert lab.calls.inference == (2, 0)
    _, batch, calls = with_batch_statistics(lab)
    assert calls.training == (0, 1)
    np.testing.assert_array_equal(batch.mean[0], lab.read().mean[0])
    np.testing.assert_array_equal(lab.history[0].mean[0], lab.history[2].mean[0])
    lab.restore()
    assert not model.get_layer("conv1_bn").trainable


def test_model_without_training_argument_never_updates():
    lab = adapter(deaf(), steps=2)
    assert lab.calls.training == (0,)
    assert lab.calls.inference == (2,)
    np.testing.assert_array_equal(lab.history[2].mean[0], 0.0)
    trained, _, calls = with_batch_statistics(lab)
    assert calls.training == (0,)
    np.testing.assert_array_equal(output(trained), output(lab.predict(0)))
    lab.restore()


def test_without_steps_all_trainable_layers_use_batch_statistics():
    lab = adapter(functional())
    assert with_batch_statistics(lab)[2].training == (1, 1)
    assert lab.losses == []
    lab.restore()


def test_frozen_parameters():
    def build(*frozen):
        model = keras.Sequential(
            [keras.Input((4,)), L.Dense(4, name="first"), L.BatchNormalization(name="bn"),
             L.Dense(3, name="last")]
        )  # fmt: skip
        for name in frozen:
            for variable in model.get_layer(name).trainable_variables:
                variable.trainable = False
        return model

    for frozen, expected in (((), False), (("bn",), False), (("first", "bn"), True)):
        lab = adapter(build(*frozen), (X, INDICES))
        assert lab.layers()[0].frozen_parameters is expected
        lab.restore()
