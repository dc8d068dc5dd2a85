"""Reported faults of moving statistics in Keras, each on two networks and two seeds."""

from __future__ import annotations

import pytest

keras = pytest.importorskip("keras")

from keras_nets import CLASSES, KIND, NORMS, SEED, batch_norm, data, fast, net, run, silent, sole
from pytest_bncheck import check

L = keras.layers


@pytest.mark.parametrize(
    ("momentum", "steps", "left"), [(0.99, 15, "86.0 %"), (0.999, 60, "94.2 %")]
)
@KIND
@SEED
def test_long_memory_and_few_steps(kind, seed, momentum, steps, left):
    report = run(net(kind, seed, batch_norm(momentum)), kind, seed, steps=steps)
    finding = sole(report, "BN101")
    assert finding.severity == "error"
    assert report.verdict == "fail"
    assert sorted(finding.layers) == NORMS[kind]
    assert f"{steps} updates at momentum {momentum}" in finding.cause
    assert left in finding.cause
    sufficient = report.remedies.momentum
    assert sufficient < momentum
    assert f"BatchNormalization(momentum={sufficient:g})" in finding.remedy


@KIND
@SEED
def test_one_layer_with_a_long_memory_is_named(kind, seed):
    worst = NORMS[kind][1]
    model = net(kind, seed)
    model(data(kind)[0])
    norm = model.get_layer(worst) if kind == "functional" else model.blocks[1].norm
    norm.momentum = 0.999
    finding = sole(run(model, kind, seed, optimizer=fast(2e-2)), "BN101")
    assert finding.layers == [worst]


@KIND
@SEED
def test_long_memory_and_many_planned_updates(kind, seed):
    model = net(kind, seed, batch_norm(0.99))
    silent(run(model, kind, seed, planned_updates=5000))


@KIND
def test_long_memory_and_too_few_planned_updates(kind):
    model = net(kind, 0, batch_norm(0.999))
    finding = sole(run(model, kind, 0, steps=40, planned_updates=60), "BN101")
    assert "Projected to 60 updates" in finding.cause


@KIND
def test_long_memory_trained_long_enough(kind):
    silent(run(net(kind, 0, batch_norm(0.99)), kind, 0, steps=460, optimizer=fast(3e-3)))


@KIND
@SEED
def test_momentum_one(kind, seed):
    finding = sole(run(net(kind, seed, batch_norm(1.0)), kind, seed), "BN103")
    assert finding.layers == NORMS[kind]
    assert "At momentum 1 a batch has no weight" in finding.cause


@KIND
@SEED
def test_momentum_of_the_other_convention(kind, seed):
    finding = sole(run(net(kind, seed, batch_norm(0.1)), kind, seed), "BN104")
    assert finding.layers == NORMS[kind]
    assert "Was 0.9 meant?" in finding.remedy


@KIND
@SEED
def test_frozen_variables_do_not_freeze_statistics(kind, seed):
    base = net(kind, seed)
    base.name = "base"
    inputs, labels = data(kind, seed)
    base(inputs)
    for variable in base.trainable_variables:
        variable.trainable = False
    model = keras.Sequential([L.Input(inputs.shape[1:]), base, L.Dense(CLASSES)])
    report = check(model, (inputs, labels), steps=100, optimizer=fast(5e-2), seed=seed)
    finding = sole(report, "BN107")
    assert finding.layers == [f"base/{name}" for name in NORMS[kind]]


def test_weights_that_rest_are_not_said_to_move():
    """A memory of one batch, and dropout that draws: no lag, whatever the gap."""
    inner = net("functional", 0, batch_norm(0.0))
    model = keras.Sequential([keras.Input((20,)), keras.layers.Dropout(0.1), inner])
    model.compile(fast(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*data("functional", 0), epochs=40, batch_size=32, verbose=0)
    model.optimizer.learning_rate = 0.0
    report = check(model, data("functional", 0), steps=20)
    assert "BN102" not in {finding.code for finding in report.findings}, str(report)
