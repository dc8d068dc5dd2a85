"""The Keras adapter keeps the contract that other adapters are held to, on every backend."""

from __future__ import annotations

import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytest.importorskip(os.environ["KERAS_BACKEND"])
keras = pytest.importorskip("keras")

from keras_norms import RangeNorm
from pytest_bncheck.testing import check_adapter

L = keras.layers


def net(*layers, built=True):
    inputs = [keras.Input((6, 6, 2))] if built else []
    return keras.Sequential([*inputs, L.Conv2D(4, 3), *layers, L.Flatten(), L.Dense(3)])


def norm(momentum=0.9):
    return L.BatchNormalization(momentum=momentum)


MODELS = {
    "several layers": lambda: net(norm(), L.ReLU(), L.Conv2D(4, 3), norm(0.99)),
    "unbuilt, with dropout": lambda: net(norm(), L.Dropout(0.5), RangeNorm(), built=False),
    "no statistics": lambda: net(L.LayerNormalization()),
}


def images():
    return np.random.normal(2.0, 3.0, (8, 6, 6, 2)).astype("float32"), np.arange(8) % 3


def loss(outputs, labels):
    losses = keras.losses.sparse_categorical_crossentropy(labels, outputs, from_logits=True)
    return keras.ops.mean(losses)


@pytest.mark.parametrize("name", MODELS)
def test_the_contract_is_kept(name):
    # Without a loss the adapter infers one.
    found = check_adapter(MODELS[name], images, loss=loss if name == "several layers" else None)
    assert list(found.skipped) == ["history obeys the recursion"] * (name == "no statistics")
    assert found.silent == {}
