"""Every form of a batch that the documentation lists for Keras is understood, on its backends."""

from __future__ import annotations

import functools
import os
from typing import Any

import pytest

pytest.importorskip(os.environ["KERAS_BACKEND"])
keras = pytest.importorskip("keras")

from input_forms import BOTH, KERAS, TENSORFLOW, Form
from input_forms_page import ARRAYS, X, Y, compare, table, understood
from pytest_bncheck.adapters.keras.adapter import KerasAdapter
from pytest_bncheck.types import Recipe

L, ops = keras.layers, keras.ops
BACKEND = keras.backend.backend()
ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def body() -> list[Any]:
    """Layers that learn in few steps, and whose running statistics do not."""
    keras.utils.set_random_seed(0)
    return [L.Dense(16), L.BatchNormalization(momentum=0.99), L.ReLU(), L.Dense(3)]


def net() -> Any:
    return keras.Sequential([keras.Input((4,), name="image"), *body()])


def two_inputs() -> Any:
    both = [keras.Input((4,), name=name) for name in ("left", "right")]
    return keras.Model(both, keras.Sequential(body())((both[0] + both[1]) / 2))


def two_outputs() -> Any:
    image = keras.Input((4,))
    shared = keras.Sequential(body())(image)
    model = keras.Model(image, {"a": L.Dense(3)(shared), "b": L.Dense(3)(shared)})
    model.compile(adam(), {"a": ENTROPY, "b": ENTROPY})
    return model


class Around(keras.Model):
    """A subclassed model with a net inside."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()
        self.compile(adam())

    def call(self, inputs: Any, training: Any = None) -> Any:
        parts = inputs.values() if isinstance(inputs, dict) else inputs
        parts = parts if isinstance(inputs, (dict, list, tuple)) else [inputs]
        return sum(self.net(part, training=training) for part in parts)


class WithPadding(Around):
    def call(self, inputs: Any, training: Any = None) -> Any:
        return self.net(ops.where(ops.isnan(inputs), 0.0, inputs), training=training)


class Distiller(Around):
    """Learns from the inputs; `compute_loss` gets them as `fit` gives them."""

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, *_: Any, **__: Any):
        return ops.mean((y_pred - x[:, :3]) ** 2)


class Penalty(L.Layer):
    def call(self, inputs: Any) -> Any:
        self.add_loss(ops.mean((inputs - 1) ** 2))
        return inputs


def adds_its_loss() -> Any:
    model = keras.Sequential([keras.Input((4,)), *body(), Penalty()])
    model.compile(adam())
    return model


def own_step() -> Any:
    return {"tensorflow": OnTensorFlow, "torch": OnTorch, "jax": OnJax}[BACKEND]()


class OnTensorFlow(Around):
    def train_step(self, data: Any) -> Any:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = ops.mean((self(only(data), training=True) - 1) ** 2)
        weights = self.trainable_weights
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        return {"loss": loss}


class OnTorch(Around):
    def train_step(self, data: Any) -> Any:
        import torch

        self.zero_grad()
        loss = ops.mean((self(only(data), training=True) - 1) ** 2)
        loss.backward()
        weights = self.trainable_weights
        with torch.no_grad():
            self.optimizer.apply([weight.value.grad for weight in weights], weights)
        return {"loss": loss}


class OnJax(Around):
    def train_step(self, state: Any, data: Any) -> Any:
        import jax

        weights, others, optimizer, metrics = state

        def loss_of(weights: Any) -> Any:
            outputs, moved = self.stateless_call(weights, others, only(data), training=True)
            return ops.mean((outputs - 1) ** 2), moved

        (loss, others), gradients = jax.value_and_grad(loss_of, has_aux=True)(weights)
        weights, optimizer = self.optimizer.stateless_apply(optimizer, gradients, weights)
        return {"loss": loss}, (weights, others, optimizer, metrics)


def only(data: Any) -> Any:
    """The inputs: alone, or in a tuple, as `fit` hands on several."""
    return data[0] if isinstance(data, tuple) and len(data) == 1 else data


def adam() -> Any:
    return keras.optimizers.Adam(0.1)


class Sequence(keras.utils.PyDataset):
    def __init__(self) -> None:
        super().__init__()

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return X[16 * index :][:16], Y[16 * index :][:16]


def two_views(model: Any, batch: Any, training: bool) -> Any:
    return model(ops.concatenate([batch[0], batch[0] + 0.1]), training=training)


def of_both(outputs: Any, targets: Any) -> Any:
    return ENTROPY(ops.concatenate([targets, targets]), outputs)


def names() -> dict[str, Any]:
    """What the rows use."""
    return {
        **ARRAYS,
        "check": lambda *args, **options: ARRAYS["check"](*args, optimizer=adam(), **options),
        **{"net": net, "two_inputs": two_inputs, "two_outputs": two_outputs},
        **{"with_padding": WithPadding, "distiller": Distiller, "adds_its_loss": adds_its_loss},
        **{"own_step": own_step, "Sequence": Sequence, "convert": ops.convert_to_tensor},
        **{"two_views": two_views, "of_both": of_both},
    }


SAME = [form for form in BOTH if form.model == "net()" and "::-1" not in form.given]
SAME = [form for form in SAME if "batches=" not in form.given]
"""Forms of the very same numbers."""

OTHERS = [form for form in (*BOTH, *KERAS) if form not in SAME[1:]]


@functools.cache
def first_loss(form: Form) -> float:
    """The loss of the first step; a whole check for each of these forms would tell no more."""
    lab = KerasAdapter(net(), [eval(form.given, names())], Recipe(optimizer=adam()), None)
    lab.expected_steps = 1
    lab.save()
    try:
        lab.begin()
        lab.train_step(0)
        return lab.losses[0]
    finally:
        lab.restore()


@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
@pytest.mark.parametrize("form", SAME[1:], ids=lambda form: form.what)
def test_is_the_same_batch_in_another_form(form: Form) -> None:
    assert first_loss(form) == pytest.approx(first_loss(SAME[0]), rel=1e-4)


@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
@pytest.mark.parametrize("form", OTHERS, ids=lambda form: form.what)
def test_is_understood(form: Form) -> None:
    understood(form, names())


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.data comes with TensorFlow")
@pytest.mark.parametrize("form", TENSORFLOW, ids=lambda form: form.what)
def test_is_understood_on_tensorflow(form: Form) -> None:
    import tensorflow as tf

    sets = {
        "pairs": tf.data.Dataset.from_tensor_slices((X, Y)),
        "inputs": tf.data.Dataset.from_tensor_slices(X),
    }
    understood(form, {**names(), **sets})


def test_the_page_lists_them() -> None:
    lines = table(BOTH, "PyTorch, Keras") + table(KERAS, "Keras")
    compare("With Keras", lines + table(TENSORFLOW, "Keras on TensorFlow"))
