"""What a batch means to a Keras model: inputs, targets, sample weights, as ``fit`` takes them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from pytest_bncheck.adapters.arrays import (
    complex_numbers,
    from_numbers,
    is_numbers,
    native,
    refuse_depth,
)
from pytest_bncheck.adapters.batches import like, remix
from pytest_bncheck.adapters.hints import kind, seen
from pytest_bncheck.adapters.keras import internals
from pytest_bncheck.adapters.keras.backends.base import to_numpy
from pytest_bncheck.adapters.keras.data import by_sample, rows_of
from pytest_bncheck.adapters.keras.hints import hints
from pytest_bncheck.adapters.refusals import (
    no_samples,
    not_finite_in,
    one_sample,
    refuse_source,
)
from pytest_bncheck.adapters.targets import KEYS
from pytest_bncheck.types import InputError, Recipe
from pytest_bncheck.wording import plural


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
        self._recipe, self._model, self._given = recipe, model, batch
        refuse_depth(batch)
        self.whole = _tensors(batch, words=_takes_words(model))
        self.inputs, self.targets, self.weights = _parts(batch, self.whole, recipe, model)
        if recipe.forward is None:
            _refuse_inputs(model, self.inputs, batch)
        leaves = keras.tree.flatten(self.whole if self.inputs is None else self.inputs)
        self.size = next((shape[0] for shape in map(_shape, leaves) if shape), None)
        if self.size == 0:
            raise no_samples(self._given)
        if recipe.train_step is None and not has_custom_step(model):
            self._refuse_rows()

    def require_targets(self) -> None:
        """Raise an InputError if there are none, and the model is not trained without any."""
        if self.targets is not None or _trains_without_targets(self._recipe, self._model):
            return
        pair = isinstance(self.whole, (list, tuple)) and len(self.whole) > 1
        if not pair and not isinstance(self.whole, dict):
            raise _unknown(self._given)
        raise hints.no_step(
            f"batch: {kind(self._given)} has no targets under any of the keys "
            f"{', '.join(map(repr, KEYS))} ({seen(self._given)}); add them, or"
        )

    def _refuse_rows(self) -> None:
        """Raise an InputError where no loss of Keras finds as many targets or weights as inputs."""
        if self._recipe.loss is not None or self._recipe.forward is not None:
            return
        losses = keras.tree.flatten(getattr(self._model, "loss", None))
        known = all(each is None or internals.is_library_loss(each) for each in losses)
        if not known or internals.overrides_compute_loss(self._model):
            return
        targets = keras.tree.flatten(self.targets)
        weights = [] if self.weights is None else keras.tree.flatten(self.weights)
        if any(isinstance(leaf, (int, float)) or _shape(leaf) == () for leaf in targets):
            raise one_sample(self._given)
        for name, leaves in (("targets", targets), ("sample weights", weights)):
            for leaf in leaves:
                shape = _shape(leaf)
                if name != "targets" and shape is None:
                    raise InputError(f"batch: its {name} are {kind(leaf)} ({seen(self._given)})")
                if shape and self.size is not None and shape[0] != self.size:
                    raise InputError(
                        f"batch: its inputs have {plural(self.size, 'sample')}, its {name} "
                        f"{shape[0]}; they have to be as many ({seen(self._given)})"
                    )

    @property
    def data(self) -> Any:
        """The batch as ``fit`` passes it to the model's ``train_step``."""
        if not isinstance(self.whole, (list, tuple)):
            return self.whole
        return tuple(part for part in self.whole if part is not None)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of samples that an axis of an output can have: the batch's and the targets'."""
        known = [] if self.size is None else [self.size]
        shape = _shape(self.targets)
        if known and shape:
            known.append(shape[0])
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

    def shares(self, count: int) -> list[Batch]:
        """The parts of the batch that a distribution strategy gives to each of its replicas."""
        size = self.size or 0

        def share(own: np.ndarray[Any, Any]) -> Batch:
            return self.remade(by_sample(lambda leaf: rows_of(leaf, own), self.whole, size))

        return [share(own) for own in np.array_split(np.arange(size), count)]

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


def not_finite(batch: Any) -> str | None:
    """Where a batch holds NaN or infinity, and how many; None if nowhere."""
    for where, leaf in keras.tree.flatten_with_path(batch):
        if keras.ops.is_tensor(leaf) and keras.backend.is_float_dtype(leaf.dtype):
            values = to_numpy(leaf).astype(np.float64)
            count = int((~np.isfinite(values)).sum())
            if count:
                path = "".join(f"[{key!r}]" for key in where)
                return not_finite_in(path, count, values.size)
    return None


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


def _parts(batch: Any, whole: Any, recipe: Recipe, model: Any) -> tuple[Any, Any, Any]:
    """Inputs, targets and sample weights of a batch, each None where it has none.

    Parameters
    ----------
    batch, whole
        As the user gave it, and as tensors.

    Raises
    ------
    InputError
        If only the user can tell.
    """
    if recipe.train_step is not None and recipe.forward is not None:
        known = isinstance(whole, (list, tuple)) and len(whole) in (2, 3)
        return (*whole, None)[:3] if known else _of_dict(whole, recipe, model)
    if isinstance(whole, dict):
        return _of_dict(whole, recipe, model)
    several = isinstance(whole, (list, tuple))
    alone = _trains_without_targets(recipe, model)
    if keras.ops.is_tensor(whole) or (several and alone and _are_inputs(whole, recipe, model)):
        return whole, None, None
    if several and len(whole) in (1, 2, 3):
        return (*whole, None, None)[:3]
    refuse_source(batch)
    raise _unknown(batch)


def _unknown(batch: Any) -> InputError:
    """The error for a batch that is no pair."""
    first = isinstance(batch, (list, tuple)) and batch
    return hints.no_forward_and_step(
        "batch: expected (inputs, targets), with sample weights as a third if there are "
        f"any, or a dict, got {kind(batch)} ({seen(batch)})",
        *(("model(batch[0])",) if first else ()),
    )


def _of_dict(whole: Any, recipe: Recipe, model: Any) -> tuple[Any, Any, Any]:
    if not isinstance(whole, dict):
        return None, None, None
    struct = internals.input_structure(model)
    own = recipe.train_step is not None or has_custom_step(model)
    # A mask may well be an input of a model that no input is known of.
    others = [key for key in KEYS if key in whole and _ignores(model, key)]
    likely = KEYS[:-2] if struct is None and own else (*others, *KEYS[:-2])
    key = next((key for key in likely if key in whole), None)
    inputs = whole
    if others and struct is not None:
        # A functional model takes values by their order, so it must not see others.
        inputs = {name: value for name, value in whole.items() if name != key}
    if len(inputs) == 1 and isinstance(struct, keras.KerasTensor):
        (inputs,) = inputs.values()
    return inputs, None if key is None else whole[key], None


def _trains_without_targets(recipe: Recipe, model: Any) -> bool:
    """Whether inputs alone are enough: for a step of the user's, or as for ``fit``.

    That trains a model that overrides ``compute_loss`` or is compiled without a loss, and whose
    layers add theirs.
    """
    if recipe.train_step is not None:
        return True
    if recipe.loss is not None:
        return False
    if has_custom_step(model) or internals.overrides_compute_loss(model):
        return True
    return bool(model.compiled) and internals.compiled_loss(model) is None


def _are_inputs(whole: Sequence[Any], recipe: Recipe, model: Any) -> bool:
    """Whether all parts of a batch are inputs.

    Raises
    ------
    InputError
        If a third part can be that, or sample weights.
    """
    struct = internals.input_structure(model)
    if struct is not None:
        count = len(keras.tree.flatten(struct))
        return count > 1 and count == len(whole) and all(map(keras.ops.is_tensor, whole))
    if recipe.train_step is not None or not has_custom_step(model) or len(whole) < 3:
        return False
    shapes = [_shape(part) for part in whole]
    if len(whole) > 3 or not all(shapes):
        return len(whole) > 3
    size = shapes[0][0] if shapes[0] else None
    if shapes[2] in ((size,), (size, 1)):  # a weight, or a label, for each sample
        return False
    if internals.compiled_loss(model) is not None:
        raise InputError(
            "batch: its three parts can be (inputs, targets, sample weights) or three inputs, and "
            "the third does not hold one weight for each sample; three inputs are passed as "
            f"((a, b, c),), as fit hands them on ({seen(whole)})"
        )
    return True


def _shape(leaf: Any) -> tuple[int, ...] | None:
    """The shape of a tensor, None of anything else."""
    shape = getattr(leaf, "shape", None)
    return None if shape is None else tuple(shape)


def _ignores(model: Any, key: str) -> bool:
    """Whether a functional model has no input of this name; of others nobody knows."""
    expected = internals.input_structure(model)
    if expected is None:
        return True
    names = {getattr(tensor, "name", None) for tensor in keras.tree.flatten(expected)}
    return key not in names | set(expected if isinstance(expected, dict) else ())


def _refuse_inputs(model: Any, inputs: Any, batch: Any) -> None:
    """Raise an InputError if there is no array, or a functional model has other inputs."""
    leaves = keras.tree.flatten(inputs)
    if not any(map(keras.ops.is_tensor, leaves)):
        raise hints.no_forward(
            f"batch: there is no array in its inputs, {kind(inputs)} ({seen(batch)})"
        )
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
            f"{', '.join(map(repr, names))} ({seen(batch)})",
            call,
        )


def _tensors(value: Any, path: str = "", *, words: bool) -> Any:
    """Arrays as tensors in the same containers; lists of numbers are arrays, the rest stays."""
    if isinstance(value, Mapping):
        return {key: _tensors(item, f"{path}[{key!r}]", words=words) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not (path and is_numbers(value)):
        items = enumerate(value)
        return like(value, [_tensors(item, f"{path}[{k}]", words=words) for k, item in items])
    if isinstance(value, keras.KerasTensor):
        raise InputError(f"batch{path} is a KerasTensor, which holds no numbers")
    if keras.ops.is_tensor(value):
        dtype = keras.backend.standardize_dtype(value.dtype)
        if dtype.startswith("complex"):
            raise complex_numbers(path, dtype)
        return keras.ops.cast(value, keras.backend.floatx()) if dtype == "float64" else value
    if isinstance(value, (list, tuple)):
        return _tensor(from_numbers(value, path))
    if hasattr(value, "__array__"):
        array = value if isinstance(value, np.ndarray) else np.asarray(value)
        if words and array.dtype.kind in "OSU" and _are_words(array):
            return keras.ops.convert_to_tensor(np.array(array))
        return _tensor(native(array, path))
    return value


def _tensor(array: np.ndarray[Any, Any]) -> Any:
    """A tensor that shares no memory with the array; of floatx where that has double precision."""
    wide = array.dtype == np.float64  # as fit does
    return keras.ops.convert_to_tensor(array.astype(keras.backend.floatx()) if wide else array)


def _are_words(array: np.ndarray[Any, Any]) -> bool:
    return array.size > 0 and all(isinstance(item, (str, bytes)) for item in array.flat)


def _takes_words(model: Any) -> bool:
    """Whether words can be inputs: on TensorFlow, unless the model's own are known to be others."""
    struct = keras.tree.flatten(internals.input_structure(model))
    known = [keras.backend.standardize_dtype(each.dtype) for each in struct if each is not None]
    return keras.backend.backend() == "tensorflow" and (not known or "string" in known)
