"""Padded sequences: a pitfall that one batch cannot show, and must not be an alarm either."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from common_nets import SEED
from pytest_bncheck import check

CLASSES, REAL, PADDED = 4, 10, 40
LAYERS = pytest.mark.parametrize("layers", [1, 2])


def sequences(seed: int) -> tuple[Any, Any]:
    """Ten real steps of three channels, then zeros; channels last."""
    rng = np.random.default_rng(seed)
    labels = np.arange(32) % CLASSES
    inputs = np.zeros((32, PADDED, 3), "float32")
    centres = rng.normal(0.0, 4.0, (CLASSES, 1, 3))
    inputs[:, :REAL] = centres[labels] + rng.normal(0.0, 1.0, (32, REAL, 3)) + 2.0
    return inputs, labels


@LAYERS
@SEED
def test_padded_sequences_in_torch(layers: int, seed: int) -> None:
    torch = pytest.importorskip("torch")
    nn = torch.nn
    torch.manual_seed(seed)
    body = []
    for k in range(layers):
        body += [nn.Conv1d(3 if k == 0 else 16, 16, 3, padding=1), nn.BatchNorm1d(16), nn.ReLU()]
    model = nn.Sequential(*body, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, CLASSES))
    inputs, labels = sequences(seed)
    report = check(model, (inputs.transpose(0, 2, 1), labels), steps=200, seed=seed)
    assert not [f.code for f in report.findings if f.severity == "error"], str(report)
    assert report.predictions.eval.accuracy == 1.0


@pytest.mark.parametrize("masked", [True, False])
@LAYERS
@SEED
def test_padded_sequences_in_keras(layers: int, seed: int, masked: bool) -> None:
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(seed)
    body = [keras.layers.Masking()] if masked else []
    for _ in range(layers):
        body += [keras.layers.Dense(16), keras.layers.BatchNormalization(momentum=0.9)]
        body += [keras.layers.ReLU()]
    head = [keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(CLASSES)]
    model = keras.Sequential([keras.layers.Input((PADDED, 3)), *body, *head])
    report = check(
        model, sequences(seed), steps=200, seed=seed, optimizer=keras.optimizers.Adam(5e-3)
    )
    assert not [f.code for f in report.findings if f.severity == "error"], str(report)
    assert report.predictions.eval.accuracy == 1.0
    (first, *_) = report.layers
    assert first.values_per_channel == 32 * (REAL if masked else PADDED)
