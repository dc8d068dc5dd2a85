"""Keras on another device: half of the CPU, or PyTorch's stand-in, in a process of its own."""

from __future__ import annotations

import contextlib
import functools
import os

import numpy as np
import pytest

pytest.importorskip(os.environ["KERAS_BACKEND"])
keras = pytest.importorskip("keras")

from keras_adapter import BACKEND, L
from pytest_bncheck import InputError, check
from pytest_bncheck.adapters.devices import pick
from pytest_bncheck.adapters.keras.backends.base import own_backend
from rule_examples import load
from second_device import DEVICE, NEVER, run_on

pytestmark = pytest.mark.usefixtures("clean")
on_device = pytest.mark.device("only")
on_stand_in = pytest.mark.device("only", "standin")
on_half_of_the_cpu = pytest.mark.device("only", "cpu:1")
on_tensorflow = pytest.mark.device(*(["only", "cpu:1"] if BACKEND == "tensorflow" else NEVER))
on_jax = pytest.mark.device(*(["only", "cpu:1"] if BACKEND == "jax" else NEVER))


def test_on_a_second_device():
    device = {"torch": "standin"}.get(BACKEND, "cpu:1")
    files = (f"tests/adapters/keras/test_{name}.py" for name in ("device", "passes", "state"))
    assert "skipped" not in run_on(device, *files)


def net(rate=0.1):
    keras.utils.set_random_seed(0)
    layers = [L.Dense(6), L.BatchNormalization(name="norm"), L.ReLU(), L.Dropout(0.2), L.Dense(3)]
    model = keras.Sequential([keras.Input((5,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate), loss)
    return model


def samples():
    x = np.random.default_rng(0).normal(3.0, 1.0, (12, 5)).astype("float32")
    return x, np.arange(12) % 3


@functools.cache
def on_the_cpu():
    return check(net(), samples(), device="cpu", steps=12)


def numbers(report):
    shown = report.predictions
    layers = [(layer.update_rate, layer.distortion) for layer in report.layers]
    return [*report.training.loss, shown.gap, shown.eval.loss, shown.train.loss, *layers]


def words(report):
    return " ".join(str(report).split()).replace(report.device, "cpu")


@on_device
def test_figures_and_words_are_those_of_the_cpu():
    here, there = check(net(), samples(), device=DEVICE, steps=12), on_the_cpu()
    assert here.device.startswith(DEVICE)
    assert here.verdict == there.verdict == "fail"
    for one, other in zip(numbers(here), numbers(there), strict=True):
        assert one == pytest.approx(other, rel=1e-6, abs=1e-6)
    if BACKEND != "torch":  # of whose stand-in nobody can know how exact it is
        assert words(here) == words(there)


@on_device
def test_a_model_is_checked_where_it_lives():
    expected = on_the_cpu()
    with keras.device(DEVICE):
        model = net()
    before = [keras.ops.convert_to_numpy(v.value) for v in model.variables]
    report = check_without_device(model, steps=12)
    assert report.device.startswith(DEVICE)
    for one, other in zip(numbers(report), numbers(expected), strict=True):
        assert one == pytest.approx(other, rel=1e-6, abs=1e-6)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable.value), value)


def check_without_device(model, batch=None, **options):
    """Not moved: the tests' default device is taken away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("second_device.DEVICE", None)
        return check(model, samples() if batch is None else batch, **options)


@on_half_of_the_cpu
def test_half_of_the_cpu_is_no_accelerator(monkeypatch):
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw1")
    for wish in ("auto", "cpu"):
        assert pick(wish, own_backend().devices()) == "cpu"
    assert pick("cpu:1", own_backend().devices()) == "cpu:1"


@on_device
def test_a_bad_name_lists_what_is_there():
    with pytest.raises(InputError, match="device: 'zpu' is not there; this machine has cpu, "):
        check(net(), samples(), device="zpu")


# several devices at once ------------------------------------------------------------------------


def in_each(model):
    """The bits of every variable in every replica."""
    return [held.numpy().tobytes() for v in model.variables for held in v.value.values]


@on_tensorflow
@pytest.mark.parametrize("which", ["bad", "good"])
def test_replicas_of_tensorflow(which):
    case = getattr(load("keras", "BN402"), which)()
    # As after a training, in which each replica takes in its share of each batch.
    case.model.layers[1].moving_mean.value.values[1].assign_add(np.ones(16))
    before = in_each(case.model)
    report = check_without_device(case.model, case.batch, **case.options)
    assert [finding.code for finding in report.findings] == ["BN402"] * (which == "bad")
    assert in_each(case.model) == before
    if which == "bad":
        words = str(report)
        assert "The 2 replicas have different" in " ".join(words.split())
        assert "BatchNormalization(..., synchronized=True)" in words
        # Without training it is said of what each replica holds.
        report = check_without_device(case.model, case.batch, steps=0, select=["BN402"])
        assert [finding.code for finding in report.findings] == ["BN402"]
        assert in_each(case.model) == before


@on_tensorflow
def test_all_replicas_keep_what_the_first_was_trained_to():
    import tensorflow as tf

    case = load("keras", "BN402").good()
    check_without_device(case.model, case.batch, steps=2, restore=False)
    held = in_each(case.model)
    assert held[0::2] == held[1::2]
    kernel = case.model.variables[0].numpy()
    assert not np.array_equal(kernel, load("keras", "BN402").good().model.variables[0].numpy())
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope(), pytest.raises(InputError, match=r"inside strategy.scope\(\) cannot"):
        check_without_device(case.model, case.batch, steps=1)


@on_tensorflow
@pytest.mark.parametrize("compiled", [True, False])
def test_a_strategy_of_one_device(compiled):
    import tensorflow as tf

    def made():
        model = net()
        if compiled:
            model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
        return model

    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = made()
    before = [array.tobytes() for array in model.get_weights()]
    report = check_without_device(model, steps=2)
    assert report.verdict == check_without_device(made(), steps=2).verdict
    assert [array.tobytes() for array in model.get_weights()] == before


@on_jax
@pytest.mark.parametrize("kind", ["data", "model"])
def test_distributions_of_jax(kind):
    expected = check_without_device(net(), steps=4)
    distribution = keras.distribution
    if kind == "data":
        spread = distribution.DataParallel(devices=["cpu:0", "cpu:1"])
    else:
        mesh = distribution.DeviceMesh((1, 2), ("batch", "model"), ["cpu:0", "cpu:1"])
        layout = distribution.LayoutMap(mesh)
        layout["dense.*kernel"] = (None, "model")
        spread = distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
    with spread.scope():
        model = net()
        places = [v.value.sharding for v in model.variables]
        report = check_without_device(model, steps=4)
    assert [v.value.sharding for v in model.variables] == places
    assert len(places[0].device_set) == 2
    assert report.verdict == expected.verdict


@on_stand_in
def test_a_check_waits_for_the_device_as_often_for_many_steps():
    import standin

    found = []
    for steps in (4, 12):
        with keras.device(DEVICE):
            model = net(rate=1e-3)
        standin.transfers.clear()
        report = check_without_device(model, steps=steps, planned_updates=500)
        codes = [each.code for each in report.findings]
        # In each step Keras itself reads the rate, and moves a 1 and the size of the batch.
        each = standin.transfers["values"] - steps, standin.transfers["to device"] - 2 * steps
        found.append((standin.transfers["to host"], each, codes))
    assert found[0] == found[1]


@on_stand_in
def test_mixed_devices_would_be_seen(monkeypatch):
    def nowhere(self, device):
        return contextlib.nullcontext()

    monkeypatch.setattr("pytest_bncheck.adapters.keras.backends.base.Backend.on", nowhere)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        check(net(), samples(), steps=1)
