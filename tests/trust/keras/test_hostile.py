"""What hostile Keras code holds and does, put back by a whole check."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest

pytest.importorskip(os.environ["KERAS_BACKEND"])
keras = pytest.importorskip("keras")

from keras_graphs import bits_of
from pytest_bncheck import check
from refusing import Refusing, refuse

BACKEND = keras.backend.backend()

rng = np.random.default_rng(0)
X = rng.normal(size=(24, 4)).astype("f4")
Y = (X[:, 0] > 0).astype("i4")


class Holding(keras.layers.Layer):
    """Holds something, and calls a function in every pass."""

    def __init__(self, held=None, each=lambda: None):
        super().__init__()
        self.held, self.each = held, each

    def call(self, x):
        self.each()
        return x


def net(*middle):
    layers = [keras.layers.Dense(8), keras.layers.BatchNormalization(), *middle]
    model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


# memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["batch", "layer", "closure"])
def test_read_only_memory_is_never_written(tmp_path, place):
    np.save(tmp_path / "x.npy", X)
    values = np.load(tmp_path / "x.npy", mmap_mode="r")
    batch, middle = (X, Y), []
    if place == "batch":
        batch = values, Y
    elif place == "layer":
        middle = [Holding([values])]
    else:
        middle = [Holding(each=lambda: values.sum())]
    assert check(net(*middle), batch, steps=2).error is None
    assert np.array_equal(values, X)


# undoing ------------------------------------------------------------------------------------------


def test_one_undo_that_fails_leaves_the_others(monkeypatch):
    refuse(monkeypatch)
    model = net(Holding(Refusing()), Holding(Refusing()))
    before = bits_of(model.weights)
    with pytest.raises(OSError, match="cannot be put back"):
        check(model, (X, Y), steps=2)
    assert bits_of(model.weights) == before
    assert not any(layer._call_has_training_arg is None for layer in model.layers)
    assert all("call" not in vars(layer) for layer in model.layers)


# what a step holds --------------------------------------------------------------------------------

OPTIMIZER = keras.optimizers.Adam()
TEACHER = net()
SEEN = {"steps": 0}
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Trainer:
    """The user's own step, with an optimizer that it holds."""

    def __init__(self, model, optimizer):
        self.optimizer = optimizer
        self.optimizer.build(model.trainable_variables)

    def __call__(self, model, batch):
        return minimise(model, batch, self.optimizer)


def minimise(model, batch, optimizer):
    """A step as the backend writes it."""
    x, y = batch
    weights = model.trainable_variables
    SEEN["steps"] += 1
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = LOSS(y, model(x, training=True))
        gradients = tape.gradient(loss, weights)
    elif BACKEND == "torch":
        model.zero_grad()
        loss = LOSS(y, model(x, training=True))
        loss.backward()
        gradients = [weight.value.grad for weight in weights]
    else:
        loss, gradients = with_jax(model, x, y)
    optimizer.apply(gradients, weights)
    for kept, now in zip(TEACHER.weights, model.weights, strict=True):
        kept.assign(0.9 * kept + 0.1 * now)
    return loss


def with_jax(model, x, y):
    import jax

    def loss_of(trainable, others):
        outputs, updated = model.stateless_call(trainable, others, x, training=True)
        return LOSS(y, outputs), updated

    trainable = [variable.value for variable in model.trainable_variables]
    others = [variable.value for variable in model.non_trainable_variables]
    (loss, updated), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable, others)
    for variable, value in zip(model.non_trainable_variables, updated, strict=True):
        variable.assign(value)
    return loss, gradients


def through_globals(model, batch):
    return minimise(model, batch, OPTIMIZER)


@pytest.mark.parametrize("place", ["object", "method", "module"])
def test_optimizers_and_what_the_modules_code_names(place):
    model = net()
    trainer = Trainer(model, OPTIMIZER if place == "module" else keras.optimizers.Adam())
    step = {"object": trainer, "method": trainer.__call__, "module": through_globals}[place]

    def held():
        variables = [*model.weights, *trainer.optimizer.variables, *TEACHER.weights]
        return bits_of(variables), SEEN["steps"]

    before = held()
    report = check(model, (X, Y), steps=3, train_step=step)
    first, *_, last = report.training.loss
    assert last != first  # it trained
    assert held() == before


# exceptions ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """Refuses notes."""

    code: int


PLACES = ["train_step"] if BACKEND == "jax" else ["loss", "train_step"]
"""JAX adds a note of its own to what a compiled loss raises, and fails at these."""


class Listed(Exception):
    """Has notes that are no list."""

    __notes__ = 3


@pytest.mark.parametrize("error", [Frozen(3), Listed()], ids=["frozen", "other notes"])
@pytest.mark.parametrize("place", PLACES)
def test_an_exception_that_refuses_attributes_stays_the_users(error, place):
    def fail(*_):
        raise error

    model = net()
    before = bits_of(model.weights)
    with pytest.raises(type(error)) as caught:
        check(model, (X, Y), steps=1, **{place: fail})
    assert caught.value is error
    assert bits_of(model.weights) == before


# what a compiled function names -------------------------------------------------------------------

COUNTED = keras.Variable(0.0, trainable=False)


def counting(labels, outputs):
    COUNTED.assign_add(1.0)
    return LOSS(labels, outputs)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.function is TensorFlow's")
@pytest.mark.parametrize("place", ["loss", "compiled loss", "train_step", "inside of one"])
def test_variables_that_a_tf_function_names(place):
    import tensorflow as tf

    model, options = net(), {}
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(model, x, y):
        COUNTED.assign_add(1.0)
        with tf.GradientTape() as tape:
            loss = LOSS(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    if place == "loss":
        options["loss"] = tf.function(lambda outputs, labels: counting(labels, outputs))
    elif place == "compiled loss":
        model.compile("sgd", tf.function(counting))
    elif place == "train_step":
        options["train_step"] = tf.function(lambda model, batch: step(model, *batch))
    else:
        options["train_step"] = lambda model, batch: step(model, *batch)
    before = bits_of([*model.weights, *optimizer.variables, COUNTED])
    check(model, (X, Y), steps=2, **options)
    assert bits_of([*model.weights, *optimizer.variables, COUNTED]) == before
