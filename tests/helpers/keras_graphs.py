"""What Keras adds to the kinds of `random_graphs`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from pytest_bncheck.adapters.keras.backends.base import own_backend, to_numpy
from pytest_bncheck.adapters.keras.state import Reach, value_of
from random_graphs import PLAIN, Kind


def bits_of(variables):
    return [to_numpy(value_of(v)).tobytes() for v in variables]


def _train(optimizer):
    optimizer.apply([keras.ops.ones((2,))], [optimizer.of])


def _optimizer():
    optimizer = keras.optimizers.Adam()
    optimizer.of = keras.Variable([1.0, 2.0])
    optimizer.build([optimizer.of])
    return optimizer


KINDS = {
    **PLAIN,
    "variable": Kind(
        lambda: keras.Variable([0.0, -0.0, float("nan")]),
        lambda v: bits_of([v]),
        lambda v: v.assign([1.0, 2.0, 3.0]),
    ),
    "optimizer": Kind(_optimizer, lambda o: bits_of([*o.variables, o.of]), _train),
    "metric": Kind(
        lambda: keras.metrics.Mean(),
        lambda m: bits_of(m.variables),
        lambda m: m.update_state([1.0]),
    ),
    "model": Kind(
        lambda: keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()]),
        lambda m: (bits_of(m.variables), m.trainable),
        lambda m: (m.variables[0].assign([5.0, 5.0]), setattr(m, "trainable", False)),
    ),
    "seeds": Kind(
        lambda: keras.random.SeedGenerator(1),
        lambda g: bits_of([g.state]),
        lambda g: keras.random.normal((1,), seed=g),
    ),
}


def remembered(root: Any) -> Callable[[], None]:
    """Remember a graph; returns the way back."""
    reach = Reach(own_backend(), [])
    reach.walk([root])
    return reach.undo_all
