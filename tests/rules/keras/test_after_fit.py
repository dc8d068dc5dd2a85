"""A Keras model after the user's own ``fit``, as it is (`steps=0`), and what ``fit`` ends with."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

pytest.importorskip(os.environ["KERAS_BACKEND"])
keras = pytest.importorskip("keras")

from keras_nets import KIND, NORMS, SEED, batch_norm, data, fast, fit, net, silent, sole
from keras_steps import Inside, Told
from pytest_bncheck import check

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(model: Any, kind: str, optimizer: Any = None) -> Any:
    model(data(kind)[0][:1])
    model.compile(optimizer or fast(), LOSS)
    return model


def fitted(model: Any, kind: str, seed: int, updates: int) -> Any:
    compiled(model, kind)
    fit(model, kind, seed, updates)
    return model


@KIND
@SEED
def test_few_updates(kind, seed):
    model = fitted(net(kind, seed, batch_norm(0.99)), kind, seed, 15)
    report = check(model, data(kind, seed), steps=0)
    finding = sole(report, "BN101")
    assert finding.evidence["momentum"] == 0.99
    assert finding.evidence["updates"] == 15
    assert finding.evidence["initial_weight"] == pytest.approx(0.99**15, abs=0.005)
    assert sorted(finding.layers) == NORMS[kind]
    assert "15 updates at momentum 0.99 (counted by optimizer.iterations)" in finding.cause


@KIND
@SEED
def test_two_momenta(kind, seed):
    """The layer that has most of its initial value left is quoted."""
    model = compiled(net(kind, seed, batch_norm(0.99)), kind)
    norms = [layer for layer in model._flatten_layers() if "norm" in layer.name]
    norms[1].momentum = 0.999
    fit(model, kind, seed, 15)
    finding = sole(check(model, data(kind, seed), steps=0), "BN101")
    assert finding.evidence["momentum"] == 0.999
    assert finding.evidence["initial_weight"] == pytest.approx(0.999**15, abs=0.005)


@SEED
def test_statistics_of_other_weights(seed):
    """Weights that were loaded into a net whose statistics stayed, and forget quickly."""
    kind = "subclassed"
    earlier = fitted(net(kind, seed), kind, seed, 60)
    model = fitted(net(kind, seed + 7), kind, seed, 100)
    pairs = zip(moving(model), moving(earlier), strict=True)
    for variable, other in pairs:
        variable.assign(other.value)
    assert sole(check(model, data(kind, seed), steps=0), "BN401").severity == "error"


def moving(model: Any) -> list[Any]:
    return [v for v in model.non_trainable_variables if "moving" in v.name]


@KIND
@SEED
def test_long_enough(kind, seed):
    model = fitted(net(kind, seed), kind, seed, 100)
    silent(check(model, data(kind, seed), steps=0))


@pytest.mark.parametrize("form", [dict, list])
def test_losses_of_several_outputs(form):
    """What a constant prediction would lose is known of all of them together."""
    keras.utils.set_random_seed(0)
    inputs, classes = data("functional")
    start = keras.Input(inputs.shape[1:])
    hidden = keras.layers.Flatten()(start)
    for _ in range(2):
        hidden = keras.layers.Dense(16)(hidden)
        hidden = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.99)(hidden))
    heads = {
        "kind": keras.layers.Dense(int(classes.max()) + 1)(hidden),
        "size": keras.layers.Dense(1)(hidden),
    }
    size = inputs[:, :1] - inputs[:, :1].mean()
    losses, targets = {"kind": LOSS, "size": "mse"}, {"kind": classes, "size": size}
    if form is list:
        heads, losses, targets = (list(each.values()) for each in (heads, losses, targets))
    model = keras.Model(start, heads)
    model.compile(fast(), losses)
    model.fit(inputs, targets, batch_size=len(inputs), epochs=20, verbose=0)
    assert sole(check(model, (inputs, targets), steps=0), "BN101").severity == "error"


# a mode that only the step knows ------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", [Inside, Told])
@SEED
def test_a_mode_inside_the_step(wrapper, seed):
    kind = "functional"

    def made() -> Any:
        return compiled(wrapper(net(kind, seed, batch_norm(0.99))), kind)

    batch, names = data(kind, seed), [f"functional/{name}" for name in NORMS[kind]]
    model = made()
    model.inner.name = "functional"
    finding = sole(check(model, batch, steps=15), "BN101")
    assert sorted(finding.layers) == names
    silent(check(model, batch, steps=15, planned_updates=5000))
    fit(model, kind, seed, 15)
    finding = sole(check(model, batch, steps=0), "BN101")
    assert sorted(finding.layers) == names
    assert finding.evidence["updates"] == 15
    assert finding.evidence["initial_weight"] == pytest.approx(0.99**15, abs=0.005)


# what fit does at its end -------------------------------------------------------------------------


def averaging(momentum: float = 0.9, **options: Any) -> Any:
    return keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=momentum, **options)


@KIND
@SEED
def test_averaged_weights_are_judged(kind, seed):
    """Statistics of the last weights do not fit the average of all."""
    model = compiled(net(kind, seed), kind, averaging(0.99))
    report = check(model, data(kind, seed), steps=40, seed=seed)
    assert report.verdict == "fail", str(report)
    (finding,) = (f for f in report.findings if f.severity == "error")
    assert finding.code in ("BN102", "BN401")
    assert "replaced the weights by their average (use_ema)" in finding.cause
    assert report.predictions.train.accuracy > report.predictions.eval.accuracy


@KIND
def test_averages_that_forget_are_healthy(kind):
    model = compiled(net(kind, 0), kind, averaging(0.5))
    silent(check(model, data(kind), steps=100))


@KIND
@pytest.mark.parametrize("options", [{}, {"ema_overwrite_frequency": 3}])
def test_fit_and_the_check_judge_the_same_weights(kind, options):
    model = compiled(net(kind, 0), kind, averaging(**options))
    start = model.get_weights()
    model.fit(*data(kind), batch_size=32, epochs=5, shuffle=False, verbose=0)
    by_fit = model.get_weights()
    model.set_weights(start)
    check(model, data(kind), steps=5, restore=False)
    for one, other in zip(model.get_weights(), by_fit, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4)
    plain = compiled(net(kind, 0), kind, fast())
    plain.set_weights(start)
    check(plain, data(kind), steps=5, restore=False)
    pairs = zip(plain.get_weights(), by_fit, strict=True)
    assert max(abs(one - other).max() for one, other in pairs) > 0.01
