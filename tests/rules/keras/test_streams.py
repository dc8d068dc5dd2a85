"""Several streams in one layer and several mini-batches, in Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from keras import layers

from keras_nets import (
    CLASSES,
    KIND,
    SEED,
    WIDTH,
    batch_norm,
    data,
    differentiated,
    fast,
    net,
    silent,
    sole,
)
from pytest_bncheck import check

View = Callable[[Any], Any]


def functional(view: View) -> Any:
    """Two towers of the same layers."""
    dense, norm = layers.Dense(WIDTH), batch_norm()("norm")
    inputs = keras.Input((20,))
    both = [layers.ReLU()(norm(dense(x))) for x in (inputs, view(inputs))]
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.Concatenate()(both)))


class Subclassed(keras.Model):
    """The same, written out."""

    def __init__(self, view: View) -> None:
        super().__init__()
        self.dense, self.norm, self.view = layers.Dense(WIDTH), batch_norm()("norm"), view
        self.head = layers.Dense(CLASSES)

    def call(self, x: Any, training: bool | None = None) -> Any:
        both = [self.norm(self.dense(part), training=training) for part in (x, self.view(x))]
        return self.head(keras.ops.relu(keras.ops.concatenate(both, axis=-1)))


@pytest.mark.parametrize("build", [functional, Subclassed])
@SEED
def test_towers_that_share_a_normalisation(build, seed):
    keras.utils.set_random_seed(seed)
    model = build(lambda x: 0.2 * x - 4.0)
    report = check(model, data("functional", seed), steps=60, seed=seed, optimizer=fast())
    finding = sole(report, "BN108")
    lost = report.predictions.eval.accuracy <= report.predictions.train.accuracy - 0.05
    assert finding.severity == ("error" if lost else "warning")
    assert finding.layers == ["norm"]
    assert finding.evidence["calls"] == 2
    assert finding.evidence["spread"] > 0.5


@pytest.mark.parametrize("build", [functional, Subclassed])
def test_towers_with_inputs_alike(build):
    keras.utils.set_random_seed(0)
    model = build(lambda x: 0.9 * x + 0.1)
    silent(check(model, data("functional"), steps=50, optimizer=fast()))


@SEED
def test_step_by_turns(seed):
    """A step of the user's that gives real and generated samples to one network in turn."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [layers.Dense(16), layers.BatchNormalization(momentum=0.9), layers.ReLU(), layers.Dense(1)]
    )
    optimizer = keras.optimizers.Adam(1e-3)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    rng = np.random.default_rng(seed)
    batch = np.concatenate([rng.normal(2, 1, (64, 20)), rng.normal(-1, 0.5, (64, 20))])
    targets = np.repeat([1.0, 0.0], 64)[:, None]

    def step(model: Any, batch: Any) -> Any:
        def losses() -> Any:
            halves = zip(*(keras.ops.split(part, 2) for part in batch), strict=True)
            return sum(loss(y, model(x, training=True)) for x, y in halves)

        value, gradients = differentiated(losses, model)
        optimizer.apply(gradients, model.trainable_variables)
        return value

    report = check(model, (batch, targets), steps=50, seed=seed, train_step=step, loss=loss)
    assert "BN108" in {finding.code for finding in report.findings}, str(report)
    assert not {"BN101", "BN102"} & {finding.code for finding in report.findings}


def wide() -> Any:
    """A perceptron with two hidden layers."""
    parts: list[Any] = []
    for _ in range(2):
        parts += [layers.Dense(32), layers.BatchNormalization(momentum=0.9), layers.ReLU()]
    return keras.Sequential([keras.Input((20,)), *parts, layers.Dense(CLASSES)])


def branches() -> Any:
    """Two hidden layers side by side, each normalised by itself."""
    inputs = keras.Input((20,))
    both = [
        layers.ReLU()(layers.BatchNormalization(momentum=0.9)(layers.Dense(32)(inputs)))
        for _ in range(2)
    ]
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.Concatenate()(both)))


@pytest.mark.parametrize("build", [wide, branches])
@SEED
def test_one_class_in_each_mini_batch(seed, build):
    keras.utils.set_random_seed(seed)
    model = build()
    inputs, labels = data("functional", seed, 64)
    order = np.argsort(labels, kind="stable")
    batches = [(inputs[part], labels[part]) for part in np.split(order, 4)]
    report = check(model, batches=batches, steps=80, seed=seed, optimizer=fast(3e-2))
    finding = sole(report, "BN109")
    assert report.predictions.train.accuracy >= 0.85
    assert report.predictions.eval.accuracy <= 0.75
    assert finding.evidence["remixed_accuracy"] <= 0.75


@KIND
@SEED
def test_momentum_of_the_other_convention_in_a_stream(kind, seed):
    inputs, labels = data(kind, seed, 64)
    order = np.random.default_rng(seed).permutation(64)
    batches = [(inputs[part], labels[part]) for part in np.split(order, 4)]
    model = net(kind, seed, batch_norm(0.01))
    report = check(model, batches=batches, steps=50, seed=seed, optimizer=fast())
    finding = report.findings[-1]
    assert finding.code == "BN104"
    assert len(finding.evidence["eval_losses"]) == 4
    assert "mini-batches came last" in finding.message
