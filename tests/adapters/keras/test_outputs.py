"""What a model's own step is given, and outputs of eval mode that are of another kind."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

pytest.importorskip(os.environ["KERAS_BACKEND"])
keras = pytest.importorskip("keras")

from pytest_bncheck import InputError, check
from pytest_bncheck.adapters.keras.batch import Batch
from pytest_bncheck.types import Recipe

L, ops = keras.layers, keras.ops
X = (3 + np.random.default_rng(0).normal(size=(32, 8))).astype("float32")
Y = (X[:, 0] > 3).astype("int64")


class Net(keras.Model):
    """Returns what `form` makes of its logits in eval mode, and logits in training mode."""

    def __init__(self, form: Any, *, always: bool = False) -> None:
        super().__init__()
        keras.utils.set_random_seed(0)
        layers = [L.Dense(16), L.BatchNormalization(), L.ReLU(), L.Dense(2)]
        self.net = keras.Sequential([keras.Input((8,)), *layers])
        self.form, self.always = form, always

    def call(self, x: Any, training: Any = None) -> Any:
        logits = self.net(x, training=training)
        return self.form(logits) if self.always or not training else logits


DECIDED = {
    "class indices": lambda z: ops.argmax(z, axis=1),
    "the best": lambda z: ops.top_k(z, 1),
    "boxes": lambda z: [{"box": z[:1], "score": z[0, 0]}, {"box": z[1:4], "score": z[1, 0]}],
    "another number of columns": lambda z: z[:, :1],
}


@pytest.mark.parametrize(
    ("form", "steps"), [("class indices", 4), *((form, 0) for form in DECIDED)]
)
def test_eval_mode_may_return_what_the_inferred_loss_cannot_take(form: str, steps: int) -> None:
    adam = keras.optimizers.Adam(0.1)
    report = check(Net(DECIDED[form]), (X, Y), optimizer=adam, steps=steps)
    codes = [finding.code for finding in report.findings]
    if form == "class indices" and steps:
        assert "BN101" in codes, str(report)
        assert report.predictions.gap is None
        assert "cannot be aligned" in str(report)


def test_outputs_may_be_a_single_number() -> None:
    model = Net(ops.mean, always=True)
    report = check(model, (X, Y), loss=lambda outputs, targets: outputs, steps=2)
    assert report.predictions.gap is None


def own_step() -> Any:
    class Own(Net):
        def train_step(self, *args: Any) -> Any:
            raise NotImplementedError

    model = Own(ops.relu)
    model.compile("adam")
    return model


@pytest.mark.parametrize(
    ("batch", "data", "inputs"),
    [
        (X, X, X),
        ((X,), (X,), X),
        ([X, Y], (X, Y), X),
        ((X, Y, Y), (X, Y, Y), X),
        ((X, None), (X,), X),
        ((X, X, X), (X, X, X), (X, X, X)),
        ((X, X, X, Y), (X, X, X, Y), (X, X, X, Y)),
        (((X, X, X),), ((X, X, X),), (X, X, X)),
        ({"image": X}, {"image": X}, {"image": X}),
        ({"image": X, "labels": Y}, {"image": X, "labels": Y}, {"image": X, "labels": Y}),
    ],
)
def test_a_models_own_step_gets_the_batch_as_from_fit(batch: Any, data: Any, inputs: Any) -> None:
    made = Batch(batch, Recipe(), own_step())
    for given, wanted in ((made.data, data), (made.inputs, inputs)):
        assert type(given) is type(wanted) or wanted is X
        given, wanted = keras.tree.flatten(given), keras.tree.flatten(wanted)
        assert len(given) == len(wanted)
        for one, other in zip(given, wanted, strict=True):
            assert np.array_equal(ops.convert_to_numpy(one), other)


def test_three_parts_that_can_be_two_things_are_asked_about() -> None:
    model = own_step()
    model.compile("adam", "mse")
    with pytest.raises(InputError, match=r"three inputs are passed as \(\(a, b, c\),\)"):
        Batch((X, X, X), Recipe(), model)
    assert Batch((X, X, Y), Recipe(), model).weights is not None


def test_complex_tensors_are_refused() -> None:
    made = ops.convert_to_tensor(X + 1j)
    with pytest.raises(InputError, match=r"batch\[0\] holds complex numbers \(complex64\)"):
        Batch((made, Y), Recipe(), Net(ops.relu))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="only TensorFlow has words")
def test_words_are_inputs_of_a_model_that_takes_them() -> None:
    words = np.array(["red", "blue"] * 16)
    lookup = L.StringLookup(vocabulary=["red", "blue"])
    word = keras.Input((), dtype="string")
    code = L.Embedding(3, 8)(lookup(word))
    model = keras.Model(word, L.Dense(2)(L.BatchNormalization(momentum=0.5)(code)))
    for given in (words, words.astype(object)):
        report = check(model, (given, np.arange(32) % 2), steps=2)
        assert report.training.loss
    with pytest.raises(InputError, match=r"batch\[0\] is an array of words"):
        Batch((words, Y), Recipe(), Net(ops.relu).net)


def test_a_batch_is_not_changed_by_what_is_made_of_it() -> None:
    reversed_, swapped = X[:, ::-1], X.astype(">f4")
    for given in (reversed_, swapped, X.astype(np.longdouble), X.tolist()):
        made = Batch((given, Y), Recipe(), Net(ops.relu))
        wanted = np.asarray(given).astype("float32")
        assert np.array_equal(ops.convert_to_numpy(made.inputs), wanted)
    assert np.array_equal(reversed_, X[:, ::-1])


def test_a_mask_is_no_target_where_only_the_model_knows() -> None:
    batch = {"tokens": X, "mask": Y}
    assert Batch(batch, Recipe(), own_step()).targets is None
    assert Batch(batch, Recipe(), Net(ops.relu)).targets is not None
    both = [keras.Input((8,), name="tokens"), keras.Input((), name="mask")]
    model = keras.Model(both, L.Dense(2)(both[0]) * both[1][:, None])
    assert Batch(batch, Recipe(), model).targets is None
    assert Batch({**batch, "y": Y}, Recipe(), model).targets is not None


def test_a_loss_of_the_users_may_take_another_number_of_targets() -> None:
    def flat(targets: Any, outputs: Any) -> Any:
        rows = ops.reshape(targets, (-1, 2))[:, 0]
        return keras.losses.sparse_categorical_crossentropy(rows, outputs, from_logits=True)

    model = Net(ops.relu)
    model.compile("adam", flat)
    assert Batch((X, np.repeat(Y, 2)), Recipe(), model).size == 32
    model.compile("adam", "mse")
    with pytest.raises(InputError, match="its inputs have 32 samples, its targets 64"):
        Batch((X, np.repeat(Y, 2)), Recipe(), model)
