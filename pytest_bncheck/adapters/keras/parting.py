"""Where two passes of a Keras model part."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras

from pytest_bncheck.adapters.keras.backends.base import Backend, to_numpy
from pytest_bncheck.adapters.keras.calls import is_traced, replaced_calls
from pytest_bncheck.adapters.keras.layers import is_library
from pytest_bncheck.adapters.parting import Recorded, Recorder, parting
from pytest_bncheck.types import Parting

KerasLayer: TypeAlias = Any
Named: TypeAlias = Sequence[tuple[KerasLayer, str]]


def part(
    training: Callable[[], object],
    evaluation: Callable[[], object],
    named: Named,
    backend: Backend,
) -> Parting | None:
    """The place at which the second pass begins to compute something else; None if nowhere."""
    first, second = (_recorded(run, named, backend) for run in (training, evaluation))
    paths = {id(layer): path for layer, path in named}
    return parting(
        first, second, lambda layer: paths.get(id(layer)), call="call", is_library=is_library
    )


def _recorded(run: Callable[[], object], named: Named, backend: Backend) -> Recorded:
    recorder = Recorder()

    def recorded(layer: KerasLayer) -> Callable[..., Any]:
        original = layer.call

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if is_traced(args, backend):
                return original(*args, **kwargs)
            recorder.enter(layer, _sizes(args))
            outputs = original(*args, **kwargs)
            recorder.leave(layer, _sizes(outputs))
            return outputs

        return call

    with replaced_calls([(layer, recorded(layer)) for layer, _ in named]):
        return recorder.run(run, _on_host)


def _on_host(sizes: list[Any]) -> Any:
    return to_numpy(keras.ops.stack(sizes)) if sizes else []


def _sizes(value: Any) -> list[Any]:
    leaves = (leaf for leaf in keras.tree.flatten(value) if keras.ops.is_tensor(leaf))
    return [_size(leaf) for leaf in leaves if _is_floating(leaf)]


def _is_floating(tensor: Any) -> bool:
    return "float" in keras.backend.standardize_dtype(tensor.dtype)


def _size(tensor: Any) -> Any:
    ops = keras.ops
    flat = ops.reshape(ops.cast(ops.stop_gradient(tensor), "float32"), (-1,))
    weights = ops.cos(ops.arange(flat.shape[0], dtype="float32"))
    return ops.stack([ops.norm(flat), ops.sum(flat * weights)])
