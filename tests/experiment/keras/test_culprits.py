"""Which layers a failing check of a Keras model names, against planted culprits."""

from __future__ import annotations

from typing import Any

import pytest

keras = pytest.importorskip("keras")

import numpy as np
from keras import layers

from pytest_bncheck import check


def net(momentum: float = 0.7, **options: Any) -> Any:
    """A stem and two residual blocks, 5 normalisation layers."""
    keras.utils.set_random_seed(0)

    def conv(x: Any) -> Any:
        x = layers.Conv2D(12, 3, padding="same", use_bias=False)(x)
        return layers.BatchNormalization(momentum=momentum, **options)(x)

    inputs = keras.Input((14, 14, 3))
    x = layers.ReLU()(conv(inputs))
    for _ in range(2):
        x = layers.ReLU()(layers.Add()([x, conv(layers.ReLU()(conv(x)))]))
    return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))


def norms(model: Any) -> list[Any]:
    return [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]


def noise() -> tuple[Any, Any]:
    images = np.random.default_rng(0).normal(0.5, 1.5, (16, 14, 14, 3))
    return images.astype("float32"), np.arange(16) % 4


def shares(report: Any) -> list[float]:
    return [layer.attribution for layer in report.layers]


def test_the_culprit_is_named_and_not_the_decoy() -> None:
    model = net()
    culprit, decoy = norms(model)[0], norms(model)[2]
    for norm in (culprit, decoy):
        norm.momentum = 0.999
        norm.moving_mean.assign(np.ones(12))
        norm.moving_variance.assign(np.full(12, 9.0))
    decoy.gamma.assign(np.zeros(12))
    decoy.gamma.trainable = False
    report = check(model, noise(), steps=40)
    (finding,) = report.findings
    assert finding.code == "BN101"
    assert finding.layers[0] == culprit.name
    assert f"With only {culprit.name} put right" in finding.cause
    assert shares(report)[2] == pytest.approx(0.0, abs=1e-6)
    assert np.argmax(shares(report)) == 0


def test_shares_add_up_with_and_without_scale_and_offset() -> None:
    both, none = (
        check(net(0.99, scale=affine, center=affine), noise(), steps=40) for affine in (True, False)
    )
    for report in (both, none):
        assert report.verdict == "fail", str(report)
        assert sum(shares(report)) == pytest.approx(1.0, abs=0.25)


def test_one_layer_has_the_whole_difference() -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((8,)), layers.BatchNormalization(), layers.Dense(4)]  # linear behind it
    )
    rows = np.random.default_rng(0).normal(3.0, 2.0, (16, 8)).astype("float32")
    report = check(model, (rows, np.arange(16) % 4), steps=100)
    assert shares(report) == [pytest.approx(1.0, abs=1e-3)]
