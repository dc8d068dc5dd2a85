"""Keras: a check lets go of everything at its end, whichever way it ends."""

from __future__ import annotations

import contextlib
import gc
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from pytest_bncheck import InputError, check

X = np.random.default_rng(0).normal(8.0, 1.0, (24, 4)).astype("float32")
Y = np.arange(24) % 3


def net() -> Any:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((4,)), layers.BatchNormalization(), layers.Dropout(0.1), layers.Dense(3)]
    )


def raises(outputs: Any, targets: Any) -> Any:
    raise ZeroDivisionError


# TensorFlow compiles from 20 steps on.
ENDS: dict[str, dict[str, Any]] = {
    "pass": {"momentum": 0.6, "steps": 10},
    "pass of compiled steps": {"momentum": 0.6, "steps": 25},
    "fail": {"momentum": 0.999, "steps": 10},
    "an error": {"momentum": 0.6, "loss": raises},
    "a refusal": {"momentum": 0.6, "loss": lambda outputs, targets: None},
}


def make(model: Any, momentum: float, **options: Any) -> None:
    """One check; its report and its error are dropped."""
    model.layers[0].momentum = momentum
    with contextlib.suppress(ZeroDivisionError, InputError):
        check(model, (X, Y), **options)


def alive() -> int:
    """How many objects there are; on JAX arrays, since it keeps some of the programs it made."""
    if keras.backend.backend() == "jax":
        return len(sys.modules["jax"].live_arrays())
    return len(gc.get_objects())


@pytest.fixture
def _frozen() -> Iterator[None]:
    """What is there already is neither collected nor counted, which takes its time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_frozen")
@pytest.mark.parametrize("end", ENDS)
def test_many_checks_leave_nothing(end: str) -> None:
    model, counts = net(), []
    for _ in range(3):
        for _ in range(2):
            make(model, **ENDS[end])
        gc.collect()
        counts.append(alive())
    assert counts[2] - counts[1] <= 2


@pytest.mark.parametrize("end", ENDS)
def test_the_model_is_let_go(end: str) -> None:
    model = net()
    make(model, **ENDS[end])
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
