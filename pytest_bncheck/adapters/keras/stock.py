"""Layers of the user's that say they normalise like Keras': a trial, each layer alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from pytest_bncheck.adapters.keras import internals
from pytest_bncheck.adapters.keras.backends.base import Backend
from pytest_bncheck.adapters.keras.layers import KerasLayer, statistics_of
from pytest_bncheck.adapters.keras.places import loose_variables
from pytest_bncheck.adapters.keras.state import (
    attributes_kept,
    host_arrays,
    put_back,
    seed_variables,
)
from pytest_bncheck.adapters.random_state import RandomState

_STARTS = (0.5, 1.5)
_TOLERANCE = 1e-3


def strangers(
    layers: Sequence[KerasLayer], shapes: Mapping[int, tuple[int, ...]], backend: Backend
) -> set[int]:
    """Ids of those whose statistics do not move at their momentum, or that train with them.

    Parameters
    ----------
    shapes
        Shape of what each layer got, by its id. A layer that never ran is taken at its word.
    """
    return {
        id(layer)
        for layer in layers
        if id(layer) in shapes
        and layer.trainable
        and not _runs_code_of_keras(layer)
        and not _moves_as_it_says(layer, shapes[id(layer)], backend)
    }


def _runs_code_of_keras(layer: KerasLayer) -> bool:
    stock = keras.layers.BatchNormalization
    return type(layer).call is stock.call and not getattr(layer, "renorm", False)


def _moves_as_it_says(layer: KerasLayer, shape: tuple[int, ...], backend: Backend) -> bool:
    """Train the layer alone from two starts, which must come nearer by its momentum.

    Twice, since some layers move at every few calls only; the outputs must not mind the starts.
    """
    inner = internals.flat_layers(layer)
    variables = [v for each in inner for v in each.variables]
    variables += [*loose_variables(inner, backend), *seed_variables(inner, backend)]
    inputs = np.random.default_rng(0).normal(1.0, 2.0, shape).astype("float32")
    momentum = float(layer.momentum)

    def trained(start: float, calls: int) -> tuple[np.ndarray[Any, Any], Any]:
        with put_back(variables, backend), attributes_kept([(each, "") for each in inner]):
            for variable in statistics_of(layer):
                variable.assign(keras.ops.full(variable.shape, start, variable.dtype))
            for _ in range(calls):
                outputs = layer(keras.ops.convert_to_tensor(inputs), training=True)
            return np.concatenate(host_arrays(statistics_of(layer))), outputs

    def apart(calls: int) -> tuple[np.ndarray[Any, Any], bool]:
        (low, first), (high, second) = (trained(start, calls) for start in _STARTS)
        one, other = (keras.ops.convert_to_numpy(each) for each in (first, second))
        return high - low, bool(np.allclose(one, other, rtol=1e-4, atol=1e-4))

    random = RandomState.capture()
    try:
        left, same = apart(calls=2)
        layer.momentum = 0.0
        nothing_left, _ = apart(calls=1)
    except Exception:  # it wants more than inputs and a mode
        return False
    finally:
        layer.momentum = momentum
        random.restore()
    allowed = _TOLERANCE * (1.0 - momentum**2) + 1e-5
    moves = bool((np.abs(left - momentum**2) <= allowed).all())
    return same and moves and bool((np.abs(nothing_left) <= 1e-4).all())
