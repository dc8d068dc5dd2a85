"""Batches, targets and outputs of a Keras model in every form."""

from __future__ import annotations

import os

import numpy as np
import pytest

pytest.importorskip(os.environ["KERAS_BACKEND"])
keras = pytest.importorskip("keras")

from keras_adapter import INDICES, L, X, adapter, functional, head, host, images
from passes import on_training_path
from pytest_bncheck.adapters.keras.adapter import KerasAdapter
from pytest_bncheck.types import InputError, Recipe

pytestmark = pytest.mark.usefixtures("clean")


def test_outputs_of_any_structure():
    inputs = keras.Input((6, 6, 2))
    flat = L.Flatten()(inputs)
    model = keras.Model(inputs, {"a": L.Dense(3)(flat), "b": [L.Dense(2)(flat), flat]})
    lab = adapter(model, loss=lambda outputs, targets: keras.ops.square(outputs["a"]))
    prediction = lab.predict(0)
    assert {k: v.shape for k, v in prediction.outputs.items()} == {
        "a": (16, 3), "b/0": (16, 2), "b/1": (16, 72),
    }  # fmt: skip
    assert prediction.structure.count("float32[B, ") == 3
    assert prediction.accuracy is None
    assert prediction.loss == pytest.approx((prediction.outputs["a"] ** 2).mean(), rel=1e-5)
    lab.restore()


def test_outputs_whose_samples_lie_along_another_axis():
    """Time first, and several rows for each sample."""
    inputs = keras.Input((6, 4))
    times = keras.ops.transpose(L.Dense(3)(inputs), (1, 0, 2))
    pairs = keras.ops.concatenate([inputs[:, 0], inputs[:, 1]], axis=0)
    model = keras.Model(inputs, {"times": times, "pairs": pairs})
    x = np.random.default_rng(0).normal(size=(5, 6, 4)).astype("float32")
    loss = lambda outputs, targets: keras.ops.mean(outputs["times"] ** 2)  # noqa: E731
    lab = adapter(model, (x, np.arange(5) % 2), loss=loss)
    prediction = lab.predict(0)
    shapes = {name: values.shape for name, values in prediction.outputs.items()}
    assert shapes == {"times": (5, 6, 3), "pairs (*, 4)": (40,)}
    assert prediction.without_rows == {"times", "pairs (*, 4)"}
    lab.restore()


@pytest.mark.parametrize("named", [True, False])
def test_a_forward_that_asks_for_the_mode_is_told(named):
    told = []

    def third(model, batch, mode):
        told.append(mode)
        return model(batch[0], training=mode)

    def keyword(model, batch, *, training):
        return third(model, batch, training)

    lab = adapter(functional(rate=0.5), steps=1, forward=keyword if named else third)
    assert told[-1] is True
    lab.predict(0)
    assert told[-1] is False
    on_training_path(lab)
    assert told[-1] is True
    lab.restore()


def test_batches_of_every_kind():
    x, y = images()
    two = [keras.Input((6, 6, 2), name="p"), keras.Input((6, 6, 2), name="q")]
    model = keras.Model(two, L.Dense(3)(L.Flatten()(two[0] + two[1])))
    by_name = keras.Model({"p": two[0], "q": two[1]}, model.output)
    for net, inputs in (
        (model, [x, x]),
        (model, (x, keras.ops.convert_to_tensor(x))),
        (by_name, {"p": x, "q": x}),
    ):
        lab = adapter(net, (inputs, y), steps=1)
        assert lab.batch_size == 16
        lab.restore()
    wide = x.astype("float64")
    lab = adapter(functional(), [wide, y])
    assert lab.predict(0).structure == "float32[B, 3]"
    lab.restore()


@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
@pytest.mark.parametrize("key", ["labels", "targets", "y"])
def test_a_dictionary_holds_its_targets(key):
    x, y = images()
    inputs = keras.Input((6, 6, 2), name="p")
    model = keras.Model({"p": inputs}, L.Dense(3)(L.Flatten()(inputs)))
    lab = adapter(model, {"p": x, key: y}, steps=1)
    assert lab.predict(0).accuracy is not None
    lab.restore()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"p": images()[0]}, "a dict with 'p' has no targets"),
        ((X, X, X, X), r"got a tuple of 4 .*; override bncheck_forward and bncheck_train_step"),
        (X, "got a ndarray"),
        ((X[:0], INDICES[:0]), r"it holds no sample .* \(batch\[0\]: float32 \(0, 4\)"),
    ],
)
def test_batches_that_cannot_be_used(batch, message):
    with pytest.raises(InputError, match=message):
        adapter(head(3), batch, expected=1)


def test_the_users_arrays_are_not_changed():
    x, y = images()
    lab = KerasAdapter(functional(), [(x, y)], Recipe(), None)
    x[:] = 0.0
    assert host(lab._batches[0].inputs).any()
