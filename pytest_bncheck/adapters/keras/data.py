"""What goes into a Keras model and comes out of it: batches, and structures of outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from pytest_bncheck.adapters.batches import axis_of_samples, name_of_output, remix
from pytest_bncheck.adapters.hints import kind
from pytest_bncheck.adapters.keras import internals
from pytest_bncheck.adapters.keras.backends.base import tensor_like, to_numpy
from pytest_bncheck.adapters.keras.hints import hints
from pytest_bncheck.types import InputError, Recipe

if TYPE_CHECKING:
    from pytest_bncheck.types import Array

_TARGET_KEYS = ("labels", "targets", "target", "y")


class Batch:
    """One of the user's batches, as tensors.

    Attributes
    ----------
    whole
        The batch as the user's functions get it.
    inputs, targets, weights
        For the model, for the loss, and for the samples in the loss; None where the batch has none.
    size
        Number of samples; None without an array with samples.
    """

    def __init__(self, batch: Any, recipe: Recipe, model: Any) -> None:
        self._recipe, self._model = recipe, model
        parts = isinstance(batch, tuple) and len(batch) in (2, 3) and not hasattr(batch, "_fields")
        self.whole = tuple(map(_tensors, batch)) if parts else _tensors(batch)
        self.inputs: Any = None
        self.targets: Any = None
        self.weights: Any = None
        if isinstance(self.whole, dict):
            key = next((key for key in _TARGET_KEYS if key in self.whole), None)
            self.inputs, self.targets = self.whole, None if key is None else self.whole[key]
            if key is not None and _ignores(model, key):
                # A functional model takes values by their order, so it must not see others.
                self.inputs = {k: v for k, v in self.whole.items() if k != key}
        elif isinstance(self.whole, (list, tuple)) and len(self.whole) in (2, 3):
            self.inputs, self.targets, self.weights = (*self.whole, None)[:3]
        elif recipe.forward is None or recipe.train_step is None:
            known = ("model(batch[0])",) if isinstance(batch, (list, tuple)) and batch else ()
            raise hints.no_forward_and_step(
                "batch: expected (inputs, targets), with sample weights as a third if there are "
                f"any, or a dict, got {kind(batch)}",
                *known,
            )
        if self.targets is None and recipe.train_step is None and not has_custom_step(model):
            raise hints.no_step(
                f"batch: {kind(batch)} has no targets under any of the keys "
                f"{', '.join(map(repr, _TARGET_KEYS))}; add them, or"
            )
        if recipe.forward is None:
            _refuse_inputs(model, self.inputs)
        leaves = keras.tree.flatten(self.whole if self.inputs is None else self.inputs)
        shapes = [leaf.shape for leaf in leaves if getattr(leaf, "shape", ())]
        self.size = int(shapes[0][0]) if shapes else None
        if self.size == 0:
            raise InputError(
                f"the batch is empty: its first array has shape {tuple(shapes[0])}; "
                "at least one sample is needed"
            )
        own = recipe.loss or recipe.forward or recipe.train_step or has_custom_step(model)
        for what, part in (("targets", self.targets), ("sample weights", self.weights)):
            rows = tuple(getattr(part, "shape", ()))[:1]
            if not own and self.size and rows and rows[0] != self.size:
                raise InputError(  # as `fit` does
                    f"batch: {self.size} samples but {rows[0]} {what}; each sample needs one"
                )

    @property
    def data(self) -> tuple[Any, ...]:
        """The batch as ``fit`` passes it to the model's ``train_step``."""
        parts = self.inputs, self.targets, self.weights
        return tuple(part for part in parts if part is not None)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of samples that an axis of an output can have: the batch's and the targets'."""
        known = [] if self.size is None else [self.size]
        shape = getattr(self.targets, "shape", ())
        if known and shape:
            known.append(int(shape[0]))
        return tuple(dict.fromkeys(known))

    def with_inputs(self, inputs: Any) -> Batch:
        """The same batch with other inputs."""
        other = copy.copy(self)
        other.inputs = inputs
        return other

    def half(self) -> Batch:
        """The first half of the samples, of which there are two or more."""
        size = self.size or 0
        return self.remade(by_sample(lambda leaf: leaf[: size // 2], self.whole, size))

    def first_half_again(self) -> Batch:
        """A full-size batch that repeats the first half.

        The program that was compiled for the whole batch can run it.
        """
        size = self.size or 0
        rows = np.resize(np.arange(size // 2), size)
        return self.with_inputs(by_sample(lambda leaf: rows_of(leaf, rows), self.inputs, size))

    def remade(self, whole: Any) -> Batch:
        """Another batch for the same model."""
        return Batch(whole, self._recipe, self._model)


def rows_of(tensor: Any, rows: Any) -> Any:
    """Some rows, taken on the host: on the device this could be a program to compile."""
    return tensor_like(to_numpy(tensor)[rows], tensor)


def by_sample(change: Callable[[Any], Any], value: Any, size: int | None) -> Any:
    """Apply `change` to every leaf whose leading axis has length `size`."""

    def changed(leaf: Any) -> Any:
        shape = getattr(leaf, "shape", ())
        return change(leaf) if shape and shape[0] == size else leaf

    return keras.tree.map_structure(changed, value)


def has_custom_step(model: Any) -> bool:
    """Whether the model overrides ``train_step``."""
    return "train_step" in vars(model) or type(model).train_step is not keras.Model.train_step


def remixed(batches: Sequence[Batch]) -> list[Batch]:
    """Batches with their samples mixed; see `remix`."""
    leaves = [keras.tree.flatten(batch.whole) for batch in batches]
    if not all(keras.ops.is_tensor(leaf) and leaf.shape for each in leaves for leaf in each):
        return []
    mixed = remix(
        leaves,
        [batch.size or 0 for batch in batches],
        keras.ops.concatenate,
        lambda leaf, rows: keras.ops.take(leaf, rows, axis=0),
    )
    first = batches[0]
    return [first.remade(keras.tree.pack_sequence_as(first.whole, new)) for new, _ in mixed]


def _ignores(model: Any, key: str) -> bool:
    """Whether a functional model has no input of this name."""
    expected = internals.input_structure(model)
    names = {getattr(tensor, "name", None) for tensor in keras.tree.flatten(expected)}
    return expected is not None and key not in names | set(
        expected if isinstance(expected, dict) else ()
    )


def _refuse_inputs(model: Any, inputs: Any) -> None:
    """Raise an InputError if there is no array, or a functional model has other inputs."""
    leaves = keras.tree.flatten(inputs)
    if not any(map(keras.ops.is_tensor, leaves)):
        raise hints.no_forward(f"batch: there is no array in its inputs, {kind(inputs)}")
    struct = internals.input_structure(model)
    if struct is None:
        return
    names = [str(tensor.name) for tensor in keras.tree.flatten(struct)]
    if isinstance(inputs, dict):
        known = {*names, *(struct if isinstance(struct, dict) else ())}
        fits, given = len(known & set(inputs)) >= len(names), ", ".join(map(repr, inputs))
        call = ", ".join(f'"{name}": ...' for name in names)
        call = f"model({{{call}}})"
    else:
        fits, given = len(leaves) == len(names), f"{len(leaves)} of them"
        call = f"model([{', '.join('...' for _ in names)}])"
    if not fits:
        raise hints.no_forward(
            f"batch: its inputs ({given}) do not fit those of the model: "
            f"{', '.join(map(repr, names))}",
            call,
        )


def _tensors(value: Any) -> Any:
    """Arrays as tensors in the same containers; lists of numbers are arrays, the rest stays."""
    if isinstance(value, dict):
        return {key: _tensors(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not _is_numbers(value):
        items = [_tensors(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if keras.ops.is_tensor(value):
        narrow = keras.backend.standardize_dtype(value.dtype) == "float64"
        return keras.ops.cast(value, keras.backend.floatx()) if narrow else value
    if hasattr(value, "__array__") or (isinstance(value, (list, tuple)) and value):
        array = _array(value)
        wide = array.dtype.kind == "f" and array.dtype.itemsize >= 8
        dtype = keras.backend.floatx() if wide else array.dtype.newbyteorder("=")  # as fit does
        # A copy: on a CPU a tensor can share the memory of the user's array.
        return keras.ops.convert_to_tensor(np.array(array, dtype=dtype))
    return value


def _array(value: Any) -> np.ndarray[Any, Any]:
    """An array, or a list of numbers, that can become a tensor."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(f"batch: {kind(value)} cannot become an array: {error}") from None
    if array.dtype.kind not in "fiubcSU" and array.dtype.name != "bfloat16":
        raise InputError(f"batch: an array of dtype {array.dtype} cannot become a tensor of Keras")
    return array


def _is_numbers(value: Any) -> bool:
    """Whether a list holds nothing but numbers, however nested, that make one array."""
    if isinstance(value, (list, tuple)):
        if not value or not all(map(_is_numbers, value)):
            return False
        return len({np.shape(item) for item in value}) == 1
    return isinstance(value, (bool, int, float, np.number))


def not_finite(batch: Any) -> str | None:
    """Where a batch holds NaN or infinity, and how many; None if nowhere."""
    for path, leaf in _paths(batch):
        if keras.ops.is_tensor(leaf) and "float" in keras.backend.standardize_dtype(leaf.dtype):
            values = np.asarray(to_numpy(leaf), dtype=np.float64)
            count = int((~np.isfinite(values)).sum())
            if count:
                return f"batch{path} holds NaN or infinity in {count} of {values.size} places"
    return None


def _paths(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _paths(item, f"{path}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _paths(item, f"{path}[{index}]")
    else:
        yield path, value


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
        if keras.ops.is_tensor(leaf) and keras.backend.is_float_dtype(leaf.dtype) and leaf.shape:
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
