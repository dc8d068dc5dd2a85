"""Designs of whole Keras models that look like faults and are none: no finding."""

from __future__ import annotations

import math

import pytest

keras = pytest.importorskip("keras")

from keras_nets import CLASSES, KIND, NORMS, SEED, batch_norm, data, fast, net, run, silent
from pytest_bncheck import check

L = keras.layers


@KIND
@SEED
def test_frozen_layers(kind, seed):
    model = net(kind, seed, batch_norm(trainable=False))
    inputs, labels = data(kind, seed)
    silent(check(model, (inputs - inputs.mean(), labels), steps=100, optimizer=fast(), seed=seed))


class FineTuned(keras.Model):
    """A base in inference mode under a head of its own."""

    def __init__(self, base):
        super().__init__()
        self.base, self.top = base, L.Dense(CLASSES)

    def call(self, x, training=None):
        return self.top(self.base(x, training=False))


@pytest.mark.parametrize("way", ["functional, frozen", "subclassed, frozen", "subclassed"])
@KIND
@SEED
def test_base_called_in_inference_mode(kind, seed, way):
    base = net(kind, seed)
    base.trainable = "frozen" not in way
    inputs, labels = data(kind, seed)
    if way.startswith("functional"):
        given = keras.Input(inputs.shape[1:])
        model = keras.Model(given, L.Dense(CLASSES)(base(given, training=False)))
    else:
        model = FineTuned(base)
    optimizer = fast(5e-2) if "frozen" in way else fast()  # for a head alone, or for all
    silent(check(model, (inputs, labels), steps=100, optimizer=optimizer, seed=seed))


@KIND
@SEED
def test_normalisation_in_a_nested_model(kind, seed):
    inner = net(kind, seed)
    inner.name = "inner"
    model = keras.Sequential([L.Input(data(kind)[0].shape[1:]), inner, L.Dense(CLASSES)])
    report = run(model, kind, seed)
    silent(report)
    assert [layer.name for layer in report.layers] == [f"inner/{n}" for n in NORMS[kind]]


def test_a_loss_that_is_not_finite_never_passes():
    """Also where no layer has running statistics: both modes are equally broken then."""
    model = keras.Sequential([L.Input((20,)), L.Dense(8), L.LayerNormalization(), L.Dense(CLASSES)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(fast(), lambda targets, outputs: loss(targets, outputs) * math.nan)
    report = check(model, data("functional", 0))
    assert [finding.code for finding in report.findings] == ["BN202"], str(report)
