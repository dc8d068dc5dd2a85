"""What the Keras adapter says of itself: devices, backends, models and terms."""

from __future__ import annotations

import os

import pytest

pytest.importorskip(os.environ["KERAS_BACKEND"])
keras = pytest.importorskip("keras")

from keras_adapter import INDICES, L, X, adapter, deaf, functional, head, images
from pytest_bncheck.adapters.keras.adapter import KerasAdapter
from pytest_bncheck.types import InputError, Recipe

pytestmark = pytest.mark.usefixtures("clean")


def test_noise_is_larger_in_half_precision():
    assert adapter(head(3), (X, INDICES)).noise == 1e-4
    dtype = keras.dtype_policies.DTypePolicy("mixed_bfloat16")
    model = keras.Sequential([keras.Input((4,)), L.Dense(3, dtype=dtype)])
    assert KerasAdapter(model, [(X, INDICES)], Recipe(), None).noise == 1e-4
    model.dtype_policy = dtype
    assert KerasAdapter(model, [(X, INDICES)], Recipe(), None).noise == 5e-2


def test_devices():
    assert KerasAdapter(functional(), [images()], Recipe(), None).device == "cpu"
    for name in ("cpu", "CPU:0"):
        lab = adapter(functional(), steps=1, device=name)
        assert lab.device == "cpu"
        lab.restore()
    with pytest.raises(InputError, match=r"device: 'gpu:7' is not there; this machine has cpu"):
        KerasAdapter(functional(), [images()], Recipe(), "gpu:7")


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "openvino")
    with pytest.raises(InputError, match="openvino backend is not supported; set KERAS_BACKEND to"):
        KerasAdapter(object(), [], Recipe(), None)


def test_accepts_keras_models_only():
    assert KerasAdapter.accepts(deaf())
    assert not KerasAdapter.accepts(L.Dense(3))


def test_dialect():
    dialect = KerasAdapter.dialect
    code = "keras.layers.BatchNormalization(momentum=0.9)"
    assert dialect.set_momentum("BatchNormalization", 0.1) == code
    assert dialect.set_momentum("OwnNorm", 0.25) == "OwnNorm(momentum=0.75)"
    assert dialect.momentum_of(0.01) == 0.99
    compile(dialect.recalibrate, "remedy", "exec")
