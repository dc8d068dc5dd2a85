"""A batch, a model or a loop that Keras users write and nobody can guess: one error, with code."""

from __future__ import annotations

import os
import re
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip(os.environ["KERAS_BACKEND"])
keras = pytest.importorskip("keras")

from pytest_bncheck import check
from pytest_bncheck.types import InputError

L = keras.layers
X = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
Y = np.arange(16) % 3


def net():
    return keras.Sequential([keras.Input((6,)), L.Dense(8), L.BatchNormalization(), L.Dense(3)])


def two_inputs():
    both = [keras.Input((6,), name=name) for name in ("left", "right")]
    return keras.Model(both, L.Dense(3)(both[0] + both[1]))


def two_heads():
    x = keras.Input((6,))
    return keras.Model(x, {"a": L.Dense(3)(x), "b": L.Dense(1)(x)})


class Strange(keras.Model):
    """Returns what it is told to."""

    def __init__(self, form):
        super().__init__()
        self.net, self.form = net(), form

    def call(self, x, training=None):
        return self.form(self.net(x, training=training))


FORWARD, STEP, LOSS = "bncheck_forward", "bncheck_train_step", "bncheck_loss"

ERRORS = {
    "no targets": (lambda: (net(), {"p": X}), {}, r"a dict with 'p' has no targets", [STEP]),
    "targets None": (lambda: (net(), (X, None)), {}, "a tuple of 2 has no targets", [STEP]),
    "four parts": (lambda: (net(), (X, X, X, Y)), {}, "got a tuple of 4", [FORWARD, STEP]),
    "an array": (lambda: (net(), X), {}, "got a ndarray", [FORWARD, STEP]),
    "a word": (lambda: (net(), "images"), {}, "got a str", [FORWARD, STEP]),
    "an object": (lambda: (net(), object()), {}, "got an object", [FORWARD, STEP]),
    "words": (lambda: (net(), (["cat"] * 16, Y)), {}, "no array in its inputs", [FORWARD]),
    "other keys": (
        lambda: (two_inputs(), {"a": X, "b": X, "labels": Y}),
        {},
        r"its inputs \('a', 'b'\) do not fit those of the model: 'left', 'right'",
        [FORWARD],
    ),
    "one input for two": (
        lambda: (two_inputs(), (X, Y)),
        {},
        r"its inputs \(1 of them\) do not fit those of the model",
        [FORWARD],
    ),
    "words as targets": (
        lambda: (net(), (X, ["cat"] * 16)),
        {},
        r"outputs, a tensor of shape \(16, 3\), and targets, a list of 16",
        [LOSS],
    ),
    "other shape": (lambda: (net(), (X, X[:, :2])), {}, r"targets have shape \(16, 2\)", [LOSS]),
    "two heads": (lambda: (two_heads(), (X, Y)), {}, "outputs, a dict with 'a', 'b'", [LOSS]),
    "two outputs": (
        lambda: (Strange(lambda y: (y, y)), (X, Y)),
        {},
        "outputs, a tuple of 2",
        [LOSS],
    ),
    "no tensor": (
        lambda: (net(), (X, Y)),
        {"forward": lambda model, batch: None},
        "outputs: None holds no tensor",
        [FORWARD],
    ),
    "no loss": (
        lambda: (net(), (X, Y)),
        {"loss": lambda outputs, targets: None},
        "loss: expected one number .* got None",
        [LOSS],
    ),
    "loss by numpy": (
        lambda: (net(), (X, Y)),
        {"loss": lambda outputs, targets: 0.5},
        "does not depend on any trainable weight",
        [LOSS],
    ),
    "no loss from the step": (
        lambda: (net(), (X, Y)),
        {"train_step": lambda model, batch: None},
        "train_step returned None; it has to return the loss",
        [STEP],
    ),
    "no loss in the logs": (
        lambda: (net(), (X, Y)),
        {"train_step": lambda model, batch: {"accuracy": 1.0}},
        "returned a dict with 'accuracy'",
        [STEP],
    ),
}


if keras.backend.backend() == "jax":  # its gradient is zero there, not None
    del ERRORS["loss by numpy"]


@pytest.mark.parametrize("name", ERRORS)
def test_one_error_says_which_fixture_to_override_with_code_to_paste(name):
    make, options, message, hooks = ERRORS[name]
    with pytest.raises(InputError, match=re.compile(message)) as caught:
        check(*make(), steps=1, **options)
    problem, code = str(caught.value).split("\n\n", 1)
    assert f"override {' and '.join(hooks)}, for example in conftest.py:" in problem
    assert max(map(len, code.splitlines())) <= 80
    assert set(hooks) == {name for name in pasted(code) if name.startswith("bncheck_")}


def pasted(code):
    """The names that the code of an error defines."""
    # A fixture is the function that it decorates: what pytest makes of it differs by version.
    scope = {"pytest": SimpleNamespace(fixture=lambda function: function), "keras": keras}
    backend = keras.backend.backend()
    scope["tf" if backend == "tensorflow" else backend] = pytest.importorskip(backend)
    exec(textwrap.dedent(code), scope)
    return scope


def test_code_from_an_error_works():
    """With the one line that it leaves open, the step trains."""
    with pytest.raises(InputError) as caught:
        check(net(), (X, X, X, Y), steps=1)
    code = (
        str(caught.value)
        .split("\n\n", 1)[1]
        .replace(
            "loss = ...",
            "loss = keras.ops.mean(keras.losses.sparse_categorical_crossentropy("
            "batch[3], model(batch[0], training=True), from_logits=True))",
        )
    )
    scope = pasted(code)

    own = {"train_step": scope[STEP](), "forward": scope[FORWARD]()}
    report = check(net(), (X, X, X, Y), steps=10, **own)
    assert report.training.loss[-1] < report.training.loss[0]
    assert report.layers[0].updates == 10
