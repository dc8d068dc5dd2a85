"""A batch for a Keras model that comes with none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from pytest_bncheck.adapters.invented import (
    CODES,
    LENGTHS,
    SAMPLES,
    SIDES,
    TOKENS,
    Invented,
    Shape,
    Shapes,
    classes,
    does_not_fit,
    none_found,
    offsets,
)
from pytest_bncheck.adapters.keras.backends.base import to_numpy
from pytest_bncheck.adapters.keras.internals import input_structure
from pytest_bncheck.adapters.keras.loss import only_leaf
from pytest_bncheck.types import InputError

if TYPE_CHECKING:
    from pytest_bncheck.types import Array


def invent(model: Any, shapes: Shapes | None) -> Invented:
    """A batch for the model; see `Adapter.invent`."""
    declared = _declared(model)
    wanted: list[Shapes] = [shapes] if shapes else [declared] if declared else list(_guesses(model))
    tried: list[tuple[Shapes, Exception]] = []
    for each in wanted:
        inputs = _structure(model, [_noise(model, shape) for shape in each])
        try:
            outputs = model(inputs)
        except Exception as error:
            tried.append((each, error))
        else:
            return Invented((inputs, _targets(model, outputs)), each, ran=True)
    if shapes:
        raise does_not_fit(shapes, tried[-1][1]) from None
    raise none_found(tried) from None


# inputs -------------------------------------------------------------------------------------------


def _declared(model: Any) -> Shapes:
    """The inputs that a functional or sequential model declares; axes of any length get one."""
    return tuple(
        Shape(keras.backend.standardize_dtype(tensor.dtype), _filled(tensor.shape))
        for tensor in getattr(model, "inputs", None) or ()
    )


def _filled(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    axes = shape[1:]
    side = SIDES[0] if len(axes) == 3 else TOKENS
    return (SAMPLES, *(side if size is None else size for size in axes))


def _structure(model: Any, inputs: list[Array]) -> Any:
    """Inputs as the model takes them: one, several, or a dict."""
    structure = input_structure(model)
    if structure is not None and len(keras.tree.flatten(structure)) == len(inputs):
        return keras.tree.pack_sequence_as(structure, inputs)
    return inputs[0] if len(inputs) == 1 else inputs


def _guesses(model: Any) -> Iterator[Shapes]:
    """Inputs that the first layer could take whose kind tells."""
    layers = [layer for layer in model.layers if isinstance(layer, keras.Layer)]
    found = next((shapes for layer in layers if (shapes := _taken_by(layer))), [])
    for shape in found:
        yield (shape,)


def _taken_by(layer: Any) -> list[Shape]:
    n, name = SAMPLES, type(layer).__name__
    if isinstance(layer, keras.layers.Embedding):
        return [Shape("int64", (n, TOKENS))]
    if isinstance(layer, keras.layers.Dense):
        return [Shape("float32", (n, TOKENS))]
    if isinstance(layer, (keras.layers.RNN, keras.layers.Bidirectional)):
        return [Shape("float32", (n, TOKENS, TOKENS))]
    if "Conv" in name and "1D" in name:
        return [Shape("float32", (n, length, TOKENS)) for length in LENGTHS]
    if "2D" in name:
        return [Shape("float32", (n, side, side, 3)) for side in SIDES]
    if "3D" in name:
        return [Shape("float32", (n, side, side, side, 1)) for side in (16, 32)]
    inner = [*getattr(layer, "layers", ())]
    return next((shapes for each in inner if (shapes := _taken_by(each))), [])


def _noise(model: Any, shape: Shape) -> Array:
    if shape.is_float:
        noise = np.random.standard_normal(shape.sizes) + offsets(shape.sizes)
        given: Array = noise.astype("float32" if shape.dtype == "bfloat16" else shape.dtype)
        return given
    rows = [each.input_dim for each in _embeddings(model)]
    high = 2 if shape.dtype == "bool" else min([CODES, *rows[:1]])
    codes: Array = np.random.randint(0, high, shape.sizes).astype(shape.dtype)
    return codes


def _embeddings(layer: Any) -> Iterator[Any]:
    for each in getattr(layer, "layers", ()):
        if isinstance(each, keras.layers.Embedding):
            yield each
        yield from _embeddings(each)


# targets ------------------------------------------------------------------------------------------


def _targets(model: Any, outputs: Any) -> Array:
    """As the compiled loss wants them; class indices where the output looks like logits."""
    output = only_leaf(outputs)
    if output is None:
        raise InputError(
            "the model does not return one tensor that targets could be made up for; write a test "
            "with the fixtures bncheck_model and bncheck_batch"
        )
    shape = tuple(to_numpy(output).shape)
    loss = _compiled_loss(model)
    rows = shape[:-1] if len(shape) > 1 else shape
    indices = np.arange(int(np.prod(rows))).reshape(rows) % classes(shape[-1])
    if loss.startswith("sparse") or (not loss and len(shape) == 2 and shape[1] > 1):
        return indices
    if loss.startswith("categorical") and "entropy" in loss:
        one_hot: Array = np.eye(shape[-1])[indices]
        return one_hot
    if loss.startswith("binary"):
        return (np.arange(int(np.prod(shape))) % 2).reshape(shape).astype("float32")
    return np.random.uniform(size=shape).astype("float32")


def _compiled_loss(model: Any) -> str:
    """The name of the compiled loss in small letters; empty if the model has none."""
    loss = getattr(model, "loss", None) if getattr(model, "compiled", False) else None
    if loss is None:
        return ""
    name = loss if isinstance(loss, str) else getattr(loss, "name", None)
    return str(name or getattr(loss, "__name__", type(loss).__name__)).lower()
