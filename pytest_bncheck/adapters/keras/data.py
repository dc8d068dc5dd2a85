"""Structures of tensors that go into a Keras model and come out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from pytest_bncheck.adapters.batches import axis_of_samples, name_of_output
from pytest_bncheck.adapters.keras.backends.base import tensor_like, to_numpy

if TYPE_CHECKING:
    from pytest_bncheck.types import Array


def rows_of(tensor: Any, rows: Any) -> Any:
    """Some rows, taken on the host: on the device this could be a program to compile."""
    return tensor_like(to_numpy(tensor)[rows], tensor)


def by_sample(change: Callable[[Any], Any], value: Any, size: int | None) -> Any:
    """Apply `change` to every leaf whose leading axis has length `size`."""

    def changed(leaf: Any) -> Any:
        shape = tuple(getattr(leaf, "shape", ()))
        return change(leaf) if shape and shape[0] == size else leaf

    return keras.tree.map_structure(changed, value)


def floating(outputs: Any, sizes: Sequence[int]) -> dict[str, Array]:
    """`batched` outputs in float64."""
    found = _floating(outputs, sizes)
    # On the host: on the device a move of axes could be a program to compile.
    return {path: _rows(to_numpy(leaf), axis).astype(np.float64) for path, leaf, axis in found}


def batched(outputs: Any, sizes: Sequence[int]) -> dict[str, Any]:
    """Every floating output that has an axis, by path; the samples on the leading axis.

    Where none holds the samples, it is flat. A lone tensor is ``output``.
    """
    return {path: _rows(leaf, axis) for path, leaf, axis in _floating(outputs, sizes)}


def without_rows(outputs: Any, sizes: Sequence[int]) -> frozenset[str]:
    """The paths of `batched` whose leading axis is not the batch's in the output itself."""
    return frozenset(
        path
        for path, leaf, axis in _floating(outputs, sizes)
        if axis != 0 or (sizes and leaf.shape[0] != sizes[0])
    )


def _floating(outputs: Any, sizes: Sequence[int]) -> Iterator[tuple[str, Any, int | None]]:
    for where, leaf in _leaves(outputs):
        if (
            keras.ops.is_tensor(leaf)
            and keras.backend.is_float_dtype(leaf.dtype)
            and len(leaf.shape)
        ):
            axis = axis_of_samples(leaf.shape, sizes)
            path = "/".join(map(str, where)) or "output"
            yield name_of_output(path, leaf.shape, axis), leaf, axis


def _rows(leaf: Any, axis: int | None) -> Any:
    """The samples on the leading axis; flat where there is none."""
    if axis is None:
        return leaf.reshape(-1) if isinstance(leaf, np.ndarray) else keras.ops.reshape(leaf, (-1,))
    if axis == 0:
        return leaf
    move = np.moveaxis if isinstance(leaf, np.ndarray) else keras.ops.moveaxis
    return move(leaf, axis, 0)


def _leaves(outputs: Any) -> list[tuple[tuple[Any, ...], Any]]:
    return list(keras.tree.flatten_with_path(outputs))


def structure(outputs: Any, size: int | None) -> str:
    """Containers, types and shapes; the batch's size is B, so that half a batch looks the same."""

    def describe(leaf: Any) -> str:
        if not keras.ops.is_tensor(leaf):
            return type(leaf).__name__
        shape = [str(n) for n in leaf.shape]
        if shape and leaf.shape[0] == size:
            shape[0] = "B"
        return f"{keras.backend.standardize_dtype(leaf.dtype)}[{', '.join(shape)}]"

    return str(keras.tree.map_structure(describe, outputs))


def form_of(inputs: Any) -> str:
    """Containers, shapes and types: inputs of one form need only one program."""

    def form(leaf: Any) -> str:
        shape = getattr(leaf, "shape", None)
        return repr(leaf) if shape is None else f"{leaf.dtype}{list(shape)}"

    return str(keras.tree.map_structure(form, inputs))
