"""Inputs that Keras cannot use are refused as those of PyTorch are, on every backend."""

from __future__ import annotations

import os
from typing import Any

import pytest

pytest.importorskip(os.environ["KERAS_BACKEND"])
keras = pytest.importorskip("keras")

from bad_inputs import CHECKS, KERAS
from bad_inputs_page import ARRAYS, X, Y, cell, compare, outcome, written

L = keras.layers
FIRST = keras.backend.backend() == "tensorflow"
"""The page shows what this backend gives; others say the same of what the plugin refuses."""

OTHERWISE = {
    "a layer",  # is a module of PyTorch on that backend
    "labels with one axis too many",  # JAX has no integers of 64 bits
    "a loss without a gradient",  # on JAX the gradient is zero; elsewhere the backend is named
}
"""What other backends cannot or need not refuse with the same words."""


@pytest.mark.parametrize("group", ["keras checks", "keras"])
def test_checks(group: str) -> None:
    rows = {"keras checks": CHECKS, "keras": KERAS}[group]
    errors = [outcome(row.given, names()) for row in rows]
    if FIRST:
        compare(group, rows, errors)
        return
    said = {what: error for what, (_, error) in written(group).items()}
    others = {
        row.what: error
        for row, error in zip(rows, errors, strict=True)
        if row.what not in OTHERWISE
        and "pytest-bncheck: raised in" not in said[row.what]  # the framework's own words
        and cell(error) != said[row.what]
    }
    assert not others, others


def test_both_frameworks_refuse_with_the_same_words() -> None:
    """What is refused before any model or loss of a framework is asked."""
    torchs, kerass = written("checks"), written("keras checks")
    same = [what for what in torchs if torchs[what][1] == kerass[what][1]]
    assert len(same) >= 50, sorted(set(torchs) - set(same))


def net(outputs: int = 3) -> Any:
    keras.utils.set_random_seed(0)
    layers = [L.Dense(8, name="first"), L.BatchNormalization(name="norm"), L.ReLU()]
    return keras.Sequential([keras.Input((4,), name="image"), *layers, L.Dense(outputs)])


def compiled(loss: Any = "sparse_categorical_crossentropy") -> Any:
    model = net()
    model.compile("adam", loss)
    return model


def frozen() -> Any:
    model = net()
    model.trainable = False
    return model


def two_inputs() -> Any:
    both = [keras.Input((4,), name=name) for name in ("left", "right")]
    return keras.Model(both, L.Dense(3)(both[0] + both[1]))


def two_outputs() -> Any:
    x = keras.Input((4,))
    return keras.Model(x, {"a": L.Dense(3)(x), "b": L.Dense(1)(x)})


class Own(keras.Model):
    """Has a training step of its own, which no row reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def call(self, x: Any, training: Any = None) -> Any:
        return self.net(x, training=training)

    def train_step(self, *args: Any) -> Any:
        raise AssertionError


def own_step(loss: Any = None, *, compiled: bool = True) -> Any:
    model = Own()
    if compiled:
        model.compile("adam", loss)
    return model


class Samples(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return X[6 * index :][:6], Y[6 * index :][:6]


def foreign() -> Any:
    return type("Adam", (), {"__module__": "torch.optim"})()


def names() -> dict[str, Any]:
    """What the calls in the table use."""
    made = (net, compiled, frozen, two_inputs, two_outputs, own_step, foreign)
    known = {function.__name__: function for function in made}
    return {**ARRAYS, **known, "keras": keras, "data_set": Samples, "samples": Samples}
