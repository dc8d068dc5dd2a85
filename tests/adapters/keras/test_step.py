"""Training steps of the Keras adapter, and those of the user's own model."""

from __future__ import annotations

import os

import numpy as np
import pytest

pytest.importorskip(os.environ["KERAS_BACKEND"])
keras = pytest.importorskip("keras")

from keras_adapter import (
    BACKEND,
    INDICES,
    SPARSE,
    L,
    X,
    adapter,
    bits,
    expected_loss,
    functional,
    head,
    images,
    output,
)
from passes import in_training, with_batch_statistics
from pytest_bncheck.types import InputError

pytestmark = pytest.mark.usefixtures("clean")


def test_history_is_the_moving_average_of_the_batch_statistics():
    lab = adapter(functional(momentum=0.8))
    seen = []
    for _ in range(4):
        seen.append(with_batch_statistics(lab)[1])
        lab.train_step(0)
    assert len(lab.history) == 5
    assert len(lab.losses) == 4
    for k in range(2):
        r = np.zeros_like(seen[0].mean[k]), np.ones_like(seen[0].mean[k])
        for step, batch in enumerate(seen):
            r = 0.8 * r[0] + 0.2 * batch.mean[k], 0.8 * r[1] + 0.2 * batch.var[k]
            np.testing.assert_allclose(lab.history[step + 1].mean[k], r[0], atol=1e-5)
            np.testing.assert_allclose(lab.history[step + 1].var[k], r[1], rtol=1e-5)
    lab.restore()


def test_a_step_is_the_one_of_fit():
    model = functional()
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(True))
    start = model.get_weights()
    lab = adapter(model, steps=3)
    trained = model.get_weights()
    lab.restore()
    assert all((a == b).all() for a, b in zip(start, model.get_weights(), strict=True))
    x, y = images()
    losses = [float(model.train_on_batch(x, y)) for _ in range(1)]
    assert lab.losses[0] == pytest.approx(losses[0], rel=1e-5)
    for _ in range(2):
        model.train_on_batch(x, y)
    for a, b in zip(trained, model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_penalties_are_trained_on_but_not_logged():
    def build(penalty):
        keras.utils.set_random_seed(3)
        return keras.Sequential([L.Flatten(), L.Dense(3, kernel_regularizer=penalty)])

    plain, penalised = build(None), build(keras.regularizers.L2(10.0))
    both = [
        adapter(model, steps=1, optimizer=keras.optimizers.SGD(0.01))
        for model in (plain, penalised)
    ]
    assert both[0].losses == both[1].losses
    norms = [np.abs(model.layers[1].kernel.numpy()).sum() for model in (plain, penalised)]
    assert norms[1] < norms[0] * 0.95
    for lab in reversed(both):
        lab.restore()


def test_mixed_precision_scales_the_loss():
    with_scale = keras.dtype_policies.DTypePolicy("mixed_float16")
    model = keras.Sequential(
        [L.Flatten(), L.Dense(4, dtype=with_scale), L.BatchNormalization(dtype=with_scale),
         L.Dense(3, dtype="float32")]
    )  # fmt: skip
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.05))
    lab = adapter(model, steps=8, optimizer=optimizer)
    assert lab.losses[-1] < lab.losses[0]
    assert not optimizer.built
    assert lab.layers()[0].dtype == "float32"
    lab.restore()


def test_optimizers():
    made = []

    def make(params):
        made.append(params)
        return keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5))

    lab = adapter(functional(), steps=1, optimizer=make)
    assert len(made[0]) == len(lab._subject.model.trainable_variables)
    lab.restore()
    own = keras.optimizers.SGD(0.1)
    adapter(functional(), steps=1, optimizer=own).restore()
    assert not own.built
    with pytest.raises(InputError, match=r"optimizer: expected .*Optimizer .*got a str"):
        adapter(functional(), optimizer="adam")
    with pytest.raises(InputError, match="that returns one, got a int"):
        adapter(functional(), optimizer=lambda params: 3)


def test_an_optimizer_that_cannot_be_made_again():
    class Odd(keras.optimizers.SGD):
        def __init__(self, rate):
            super().__init__(rate)

    with pytest.raises(InputError, match=r"cannot make a fresh Odd .*optimizer=lambda variables"):
        adapter(functional(), optimizer=Odd(0.1))
    lab = adapter(functional(), steps=1, optimizer=lambda variables: Odd(0.1))
    lab.restore()


def test_own_train_step_and_forward():
    model = functional()
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(True))
    lab = adapter(
        model,
        {"image": images()[0], "answer": images()[1]},
        steps=3,
        train_step=lambda m, b: m.train_on_batch(b["image"], b["answer"]),
        forward=lambda m, b: m(b["image"]),
    )
    assert lab.calls.training == (3, 3)
    trained, batch, calls = with_batch_statistics(lab)
    assert calls.training == (1, 1)
    assert trained.loss is None
    assert in_training(lab).mean[0] == pytest.approx(batch.mean[0])
    lab.restore()
    assert model.train_function is None
    assert not model.optimizer.built
    assert int(model.optimizer.iterations) == 0


def test_forward_is_called_in_the_mode_of_the_step():
    def forward(model, batch):
        return model(batch[0])

    both = [adapter(functional(), steps=2, **recipe) for recipe in ({}, {"forward": forward})]
    assert both[1].calls.training == (2, 2)
    assert with_batch_statistics(both[1])[2].training == (1, 1)
    for lab in reversed(both):
        lab.restore()


def test_train_step_must_return_a_loss():
    with pytest.raises(InputError, match="train_step returned None; it has to return the loss"):
        adapter(functional(), steps=1, train_step=lambda model, batch: None)


def with_own_step(key="loss"):
    """A model whose loss is three times what fit would minimise, by a step of its own."""

    class Own(keras.Model):
        steps = 0

        def __init__(self):
            super().__init__()
            self.bn, self.head = L.BatchNormalization(name="bn"), L.Dense(3)

        def call(self, x, training=None):
            return self.head(self.bn(x, training=training))

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return 3.0 * super().compute_loss(x, y, y_pred, sample_weight, training)

        def train_step(self, *state_and_data):
            type(self).steps += 1
            result = super().train_step(*state_and_data)
            if BACKEND == "jax":
                logs, state = result
                return {key: logs["loss"]}, state
            return {key: result["loss"]}

    model = Own()
    model(X)
    return model


def test_own_train_step_of_the_model():
    model = with_own_step()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    before, optimizer = model.get_weights(), model.optimizer
    lab = adapter(model, (X, INDICES), steps=3, expected=3)
    assert type(model).steps == 3
    assert lab.calls.training == (3,)
    assert lab.losses[0] > lab.losses[1] > lab.losses[2]
    # The logs are means over the steps since the last reset; each step shows its own.
    expected = 3 * expected_loss(SPARSE, INDICES, output(with_batch_statistics(lab)[0]),
                                 from_logits=True)  # fmt: skip
    lab.train_step(0)
    assert lab.losses[3] == pytest.approx(expected, rel=1e-4)
    lab.restore()
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))
    assert model.optimizer is optimizer
    assert not optimizer.built


def test_own_train_step_needs_what_fit_needs():
    with pytest.raises(InputError, match=r"Own has a train_step of its own.* call model\.compile"):
        adapter(with_own_step(), (X, INDICES), steps=1)
    model = with_own_step(key="score")
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    with pytest.raises(InputError, match="train_step of Own returned a dict with 'score'"):
        adapter(model, (X, INDICES), steps=1)


def test_a_loss_given_goes_before_the_models_own_step():
    model = with_own_step()
    lab = adapter(model, (X, INDICES), steps=1, loss=lambda o, t: SPARSE(t, o, from_logits=True))
    assert type(model).steps == 0
    lab.restore()


def test_optimizers_of_the_users_own_step_are_put_back():
    model, optimizer = head(3), keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(model.trainable_variables)

    def train_step(model, batch):
        optimizer.apply([v * 0 + 1.0 for v in model.trainable_variables])
        return 1.0

    if BACKEND == "torch":
        import torch

        train_step = torch.no_grad()(train_step)
    before = bits(optimizer.variables)
    lab = adapter(model, (X, INDICES), steps=2, train_step=train_step)
    assert bits(optimizer.variables) != before
    lab.restore()
    assert bits(optimizer.variables) == before
