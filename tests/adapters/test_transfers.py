"""What a check reads from the device: as often for many layers as for few."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest

from passes import in_training, on_training_path, with_batch_statistics
from pytest_bncheck.types import Recipe

X = np.random.default_rng(0).normal(1.0, 2.0, (8, 5)).astype("float32")
Y = np.arange(8) % 3
FEW, MANY = 4, 24


def from_torch(note: Callable[[], None]) -> contextlib.AbstractContextManager[object]:
    import torch
    from torch.overrides import TorchFunctionMode

    reading = {"cpu", "numpy", "item", "tolist", "equal", "allclose"}
    reading |= {"__array__", "__float__", "__int__", "__bool__", "__index__"}

    class Reads(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if getattr(func, "__name__", "") in reading:
                note()
            with torch._C.DisableTorchFunction():
                return func(*args, **(kwargs or {}))

    return Reads()


@contextlib.contextmanager
def from_jax(note: Callable[[], None]) -> Iterator[None]:
    from jax._src.array import ArrayImpl

    names = ("_value", "__array__", "__float__", "__int__", "__bool__", "item", "tolist")
    with pytest.MonkeyPatch.context() as patch:
        inside = False

        def counted(original):
            def read(self, *args, **kwargs):
                nonlocal inside
                outermost, inside = not inside, True
                if outermost:
                    note()
                try:
                    return original(self, *args, **kwargs)
                finally:
                    inside = not outermost

            return read

        for name in names:
            own = getattr(ArrayImpl, name)
            is_property = isinstance(own, property)
            wrapped = counted(own.fget if is_property else own)
            patch.setattr(ArrayImpl, name, property(wrapped) if is_property else wrapped)
        yield


@contextlib.contextmanager
def from_tensorflow(note: Callable[[], None]) -> Iterator[None]:
    from tensorflow.python.framework.ops import _EagerTensorBase

    read = _EagerTensorBase._numpy

    def noted(self):
        if not self.dtype.is_integer:  # those of shapes never leave the host
            note()
        return read(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_EagerTensorBase, "_numpy", noted)
        yield


def pytorch_net(layers):
    from torch import nn

    pairs = [(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.ReLU()) for _ in range(layers)]
    return nn.Sequential(*(part for pair in pairs for part in pair), nn.Linear(5, 3))


def keras_net(layers):
    import keras

    pairs = [(keras.layers.Dense(5), keras.layers.BatchNormalization()) for _ in range(layers)]
    parts = [part for pair in pairs for part in pair]
    net = keras.Sequential([keras.Input((5,)), *parts, keras.layers.Dense(3)])
    net.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return net


def reads(adapter, model, batch, watch, **recipe) -> int:
    """Transfers to the host in one pass through all that a check can ask for."""
    count = 0

    def note() -> None:
        nonlocal count
        count += 1

    with watch(note):
        lab = adapter(model, [batch], Recipe(**recipe), None)
        lab.expected_steps = 3
        lab.save()
        lab.begin()
        for _ in range(3):
            lab.train_step(0)
        assert len(lab.losses) == 3
        train, batch_statistics, _ = with_batch_statistics(lab)
        shown = lab.predict(0)
        lab.predict_half(0)
        in_training(lab)
        on_training_path(lab)
        assert len(lab.history) == 4
        assert lab.layers()
        assert not lab.streams
        lab.write(batch_statistics, exact=True)
        lab.sticky(0)
        lab.predict(0, observe=False)
        direction = {path: shown.outputs[path] - train.outputs[path] for path in shown.outputs}
        assert lab.slopes(0, direction) is not None
        lab.restore()
    return count


def test_pytorch(monkeypatch):
    torch = pytest.importorskip("torch")
    from pytest_bncheck.adapters.torch import state
    from pytest_bncheck.adapters.torch.adapter import TorchAdapter

    monkeypatch.setattr(state, "are_on_cpu", lambda *_: False)  # as on a device

    batch = torch.from_numpy(X), torch.from_numpy(Y)
    sgd = partial(torch.optim.SGD, lr=0.1)  # Adam reads its own counters
    few, many = (
        reads(TorchAdapter, pytorch_net(n), batch, from_torch, optimizer=sgd) for n in (FEW, MANY)
    )
    assert 5 < few == many


def test_keras():
    keras = pytest.importorskip("keras")
    pytest.importorskip(keras.backend.backend())
    from pytest_bncheck.adapters.keras.adapter import KerasAdapter

    watch = {"torch": from_torch, "jax": from_jax, "tensorflow": from_tensorflow}
    own = watch[keras.backend.backend()]
    few, many = (reads(KerasAdapter, keras_net(n), (X, Y), own) for n in (FEW, MANY))
    assert 5 < few == many
