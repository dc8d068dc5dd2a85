"""Keras faults of inference mode: batch statistics, writes, another path, and training in it."""

from __future__ import annotations

import pytest

keras = pytest.importorskip("keras")

from keras_nets import (
    HARD_WIRED,
    KIND,
    NORMS,
    SEED,
    WIDTH,
    Always,
    DeafModel,
    batch_norm,
    differentiated,
    fast,
    net,
    run,
    silent,
    sole,
)

L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@KIND
@SEED
def test_hard_wired_batch_statistics(kind, seed):
    model = net(kind, seed, lambda name: Always(batch_norm()("inner"), name))
    finding = sole(run(model, kind, seed), "BN303")
    assert finding.severity == "error"
    assert finding.layers == [f"{name}/inner" for name in NORMS[kind]]
    assert HARD_WIRED in finding.message
    assert f"in {NORMS[kind][0]}/inner" in finding.message
    assert "keras.layers.BatchNormalization" in finding.cause


@KIND
def test_hard_wired_batch_statistics_by_design(kind):
    model = net(kind, 0, lambda name: Always(batch_norm()("inner"), name))
    report = run(model, kind, 0, intended=["batch-statistics-in-eval"])
    silent(report)
    assert [s.code for s in report.suppressed] == ["BN303"]


class Centre(L.Layer):
    """Keeps an average that follows every batch, or those of training."""

    def __init__(self, minds_mode, name="centre"):
        super().__init__(name=name)
        self.minds_mode = minds_mode

    def build(self, shape):
        self.mean = self.add_weight(shape=shape[1:], name="mean", trainable=False)
        self.mean.assign(keras.ops.zeros(shape[1:]))

    def call(self, x, training=None):
        if training or not self.minds_mode:
            self.mean.assign(0.9 * self.mean + 0.1 * keras.ops.mean(x, axis=0))
        return x


class Counting(L.Layer):
    """Counts its calls, and does something else in each."""

    def build(self, shape):
        self.count = self.add_weight(shape=(), name="count", initializer="zeros", trainable=False)

    def call(self, x):
        self.count.assign(self.count + 1.0)
        return x * (1.0 + 0.1 * keras.ops.cos(self.count))


class Decaying(L.Dense):
    """Writes its weights in every call."""

    def call(self, x):
        self.kernel.assign(0.99 * self.kernel)
        return x @ self.kernel


@KIND
@SEED
def test_state_that_inference_changes(kind, seed):
    finding = sole(run(net(kind, seed, extra=Counting(name="counting")), kind, seed), "BN304")
    assert "`counting.count`" in finding.message


@KIND
@pytest.mark.parametrize("minds_mode", [True, False])
def test_state_that_nothing_reads(kind, minds_mode):
    silent(run(net(kind, 0, extra=Centre(minds_mode)), kind, 0))


@KIND
def test_weights_that_inference_changes(kind):
    """On JAX Keras drops what a forward assigns to weights."""
    report = run(net(kind, 0, extra=Decaying(WIDTH, name="decaying")), kind, 0)
    if keras.backend.backend() == "jax":
        silent(report)
    else:
        assert "`decaying.kernel`" in sole(report, "BN304").message


def step(optimizer, **mode):
    """A training loop's step."""

    def train_step(model, batch):
        inputs, labels = batch
        loss, gradients = differentiated(lambda: LOSS(labels, model(inputs, **mode)), model)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    return train_step


@KIND
@SEED
def test_own_loop_without_the_mode(kind, seed):
    model = net(kind, seed, extra=L.Dropout(0.3, name="drop"))
    report = run(model, kind, seed, steps=20, train_step=step(fast()))
    finding = sole(report, "BN305")
    assert sorted(finding.layers) == sorted([*NORMS[kind], "drop"])
    assert "model(x, training=True)" in finding.remedy
    again = net(kind, seed, extra=L.Dropout(0.3, name="drop"))
    silent(run(again, kind, seed, steps=60, train_step=step(fast(), training=True)))


@KIND
@SEED
def test_model_whose_call_takes_no_mode(kind, seed):
    model = DeafModel(net(kind, seed))
    model.body.name = "body"
    finding = sole(run(model, kind, seed), "BN305")
    assert finding.layers == [f"body/{name}" for name in NORMS[kind]]


class Flipped(L.Layer):
    """Turns the sign of its input in inference mode."""

    def call(self, x, training=None):
        return x if training else -x


@KIND
@SEED
def test_another_path_in_inference_mode(kind, seed):
    finding = sole(run(net(kind, seed, extra=Flipped()), kind, seed, steps=80), "BN201")
    assert finding.severity == "error"
    declared = net(kind, seed, extra=Flipped())
    report = run(declared, kind, seed, steps=80, intended=["mode-dependent-path"])
    silent(report)
    assert [s.code for s in report.suppressed] == ["BN201"]


class Noisy(L.Layer):
    """Adds noise in training; with `fault`, inference turns the sign."""

    def __init__(self, fault, name=None):
        super().__init__(name=name)
        self.fault, self.seeds = fault, keras.random.SeedGenerator(1)

    def call(self, x, training=None):
        if training:
            return x + 0.01 * keras.random.normal(keras.ops.shape(x), seed=self.seeds)
        return -x if self.fault else x


@pytest.mark.parametrize("fault", [True, False])
@KIND
def test_random_numbers_hide_no_other_path(kind, fault):
    report = run(net(kind, 0, lambda name: Noisy(fault, name=name)), kind, 0)
    if fault:
        assert sole(report, "BN201").severity == "error"
    else:
        silent(report)
