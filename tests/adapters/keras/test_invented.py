"""A batch for a Keras model that comes with none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

keras = pytest.importorskip("keras")
import numpy as np
from keras import layers

from pytest_bncheck import InputError
from pytest_bncheck.adapters.invented import parse
from pytest_bncheck.adapters.keras.invented import invent


def dense(*shape: int | None) -> Any:
    return keras.Sequential([keras.Input(shape), layers.Dense(3)])


class Own(keras.Model):
    def __init__(self, first: Any) -> None:
        super().__init__()
        self.first, self.flat, self.out = first, layers.Flatten(), layers.Dense(3)

    def call(self, inputs: Any) -> Any:
        return self.out(self.flat(self.first(inputs)))


def several() -> Any:
    a, b = keras.Input((4,), name="a"), keras.Input((None,), dtype="int32", name="b")
    words = layers.GlobalAveragePooling1D()(layers.Embedding(5, 4)(b))
    return keras.Model({"a": a, "b": b}, layers.Dense(1)(layers.Add()([a, words])))


@pytest.mark.parametrize(
    ("make", "shape", "targets"),
    [
        (lambda: dense(6), "8x6", (8,)),
        (lambda: dense(None, 6), "8x16x6", (8, 16, 3)),
        (lambda: Own(layers.Dense(4)), "8x16", (8,)),
        (lambda: Own(layers.Conv2D(2, 3)), "8x64x64x3", (8,)),
        (lambda: Own(layers.Embedding(9, 4)), "int64:8x16", (8,)),
        (lambda: Own(layers.LSTM(4)), "8x16x16", (8,)),
    ],
)
def test_what_it_declares_or_its_first_layer_takes(
    make: Callable[[], Any], shape: str, targets: tuple[int, ...]
) -> None:
    made = invent(make(), None)
    inputs, wanted = made.batch
    assert (made.shapes, inputs.shape) == (parse(shape), parse(shape)[0].sizes)
    assert wanted.shape == targets


def test_several_inputs_by_name() -> None:
    inputs, targets = invent(several(), None).batch
    assert {name: value.shape for name, value in inputs.items()} == {"a": (8, 4), "b": (8, 16)}
    assert inputs["b"].max() < 5
    assert targets.shape == (8, 1)
    assert invent(several(), parse("3x4,int32:3x2")).batch[0]["b"].shape == (3, 2)


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        ("sparse_categorical_crossentropy", (8,)),
        (keras.losses.CategoricalCrossentropy(from_logits=True), (8, 3)),
        ("binary_crossentropy", (8, 3)),
        ("mse", (8, 3)),
    ],
)
def test_targets_are_those_of_the_compiled_loss(loss: Any, targets: tuple[int, ...]) -> None:
    model = dense(6)
    model.compile(loss=loss)
    made = np.asarray(invent(model, None).batch[1])
    assert made.shape == targets
    assert (made.dtype.kind == "i") == (len(targets) == 1)


def test_inputs_that_cannot_be_found_or_do_not_fit() -> None:
    with pytest.raises(InputError, match="no input was found that it takes"):
        invent(keras.Model(), None)
    with pytest.raises(InputError, match="--bncheck-input 8x5: the model does not take it"):
        invent(dense(6), parse("8x5"))
