"""The hook that finds the adapter, and a model to check."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from model import Net


@pytest.hookimpl(optionalhook=True)  # the run may be without the plugin
def pytest_bncheck_adapters(model):
    if isinstance(model, nnx.Module):
        from nnx_adapter import NNXAdapter

        return NNXAdapter
    return None


@pytest.fixture
def bncheck_model():
    return Net(momentum=0.9)


@pytest.fixture
def bncheck_batch():
    """Four clouds of points, away from the origin."""
    rng = np.random.default_rng(0)
    labels = np.arange(32) % 4
    inputs = rng.normal(0.0, 3.0, (4, 8))[labels] + rng.normal(5.0, 1.0, (32, 8))
    return jnp.asarray(inputs, jnp.float32), jnp.asarray(labels)
