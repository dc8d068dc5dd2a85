"""What the Keras adapter meets on the PyTorch backend alone."""

from __future__ import annotations

import numpy as np
import pytest

keras = pytest.importorskip("keras")
if keras.backend.backend() != "torch":
    pytest.skip("Keras runs on another backend", allow_module_level=True)
import torch

from passes import with_batch_statistics
from pytest_bncheck.adapters.keras.adapter import KerasAdapter
from pytest_bncheck.types import Recipe

X = np.random.default_rng(0).normal(2.0, 3.0, (16, 4)).astype("float32")
Y = np.arange(16) % 3


def trained(model, batch=(X, Y), **recipe):
    lab = KerasAdapter(model, [batch], Recipe(**recipe), None)
    lab.save()
    lab.begin()
    lab.train_step(0)
    return lab


def test_gradients_stay_the_users():
    model = keras.Sequential([keras.layers.BatchNormalization(), keras.layers.Dense(3)])
    model(X).sum().backward()
    before = {v.path: v.value.grad.clone() for v in model.trainable_variables}
    lab = trained(model)
    lab.predict(0)
    assert all(torch.equal(v.value.grad, before[v.path]) for v in model.trainable_variables)
    lab.restore()
    lab = trained(model, train_step=lambda m, b: backward(m, b))
    lab.restore()
    assert all(torch.equal(v.value.grad, before[v.path]) for v in model.trainable_variables)


def backward(model, batch):
    loss = model(batch[0], training=True).square().mean()
    model.zero_grad()
    loss.backward()
    return loss


def test_passes_make_no_graph():
    seen = []

    class Looking(keras.Layer):
        def call(self, x):
            seen.append(x.requires_grad)
            return x

    lab = trained(keras.Sequential([keras.layers.Dense(3), Looking()]))
    assert seen[-1]
    lab.predict(0)
    with_batch_statistics(lab)
    assert seen[-2:] == [False, False]
    lab.restore()


def test_torch_modules_and_plain_tensors_are_put_back():
    class Own(keras.Layer):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.BatchNorm1d(4)
            self.count = torch.zeros(())
            self.noise = torch.Generator().manual_seed(3)

        def call(self, x, training=False):
            self.count += 1
            return self.inner(x, training=training) + torch.randn(4, generator=self.noise)

    own = Own()
    model = keras.Sequential([own, keras.layers.Dense(3)])
    model(X)
    state = {k: v.clone() for k, v in own.inner.state_dict().items()}
    count, noise = own.count.clone(), own.noise.get_state()
    lab = trained(model)
    assert lab.stochastic
    assert not torch.equal(own.inner.module.running_mean, state["module.running_mean"])
    lab.restore()
    assert all(torch.equal(v, state[k]) for k, v in own.inner.state_dict().items())
    assert torch.equal(own.count, count)
    assert torch.equal(own.noise.get_state(), noise)


def test_variance_by_cancellation_is_what_training_stores():
    """Keras computes E[x²] - E[x]² here: far from zero even a negative variance comes out."""
    x = (X + 1e4).astype("float32")
    model = keras.Sequential([keras.layers.BatchNormalization(momentum=0.0), keras.layers.Dense(3)])
    lab = trained(model, (x, Y))
    _, batch, _ = with_batch_statistics(lab)
    np.testing.assert_array_equal(batch.var[0], lab.read().var[0])
    assert np.abs(batch.var[0] - x.astype("f8").var(0)).max() > 0.5
    lab.restore()


def test_compiled_functions_run_eagerly():
    calls = []

    class Compiled(keras.Model):
        def __init__(self):
            super().__init__()
            self.bn, self.head = keras.layers.BatchNormalization(), keras.layers.Dense(3)

        @torch.compile(backend="eager")
        def call(self, x, training=None):
            calls.append(1)
            return self.head(self.bn(x, training=training))

    lab = trained(Compiled())
    assert lab.calls.training == (1,)
    lab.restore()
