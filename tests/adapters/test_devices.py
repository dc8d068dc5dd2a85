"""Devices by the names that users type, on machines with any number of GPUs."""

from __future__ import annotations

import pytest

from pytest_bncheck.adapters.devices import pick, rounding, torch_devices
from pytest_bncheck.types import InputError

TWO = ["cpu", "cuda:0", "cuda:1"]


@pytest.mark.parametrize(
    ("worker", "count", "device"),
    [
        (None, 4, "cuda:0"),  # without xdist
        ("master", 4, "cuda:0"),
        ("gw0", 4, "cuda:0"),
        ("gw3", 4, "cuda:3"),
        ("gw4", 4, "cuda:0"),  # more workers than GPUs: in turn
        ("gw11", 4, "cuda:3"),
        ("gw7", 1, "cuda:0"),
    ],
)
@pytest.mark.parametrize("wish", ["cuda", "gpu", "auto", "CUDA"])
def test_workers_are_spread_over_the_gpus(monkeypatch, wish, worker, count, device):
    if worker is None:
        monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    else:
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
    assert pick(wish, ["cpu", *(f"cuda:{k}" for k in range(count))]) == device


def test_the_devices_of_pytorch_are_counted(monkeypatch):
    torch = pytest.importorskip("torch")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw5")
    assert torch_devices()[:4] == ["cpu", "cuda:0", "cuda:1", "cuda:2"]
    assert pick("cuda", torch_devices()) == "cuda:2"


@pytest.mark.parametrize("worker", ["gw0", "gw1"])
@pytest.mark.parametrize(
    ("wish", "device"),
    [("cpu", "cpu"), ("cpu:0", "cpu"), ("cuda:1", "cuda:1"), ("gpu:1", "cuda:1")],
)
def test_a_device_by_its_number_is_that_one_in_every_worker(monkeypatch, wish, device, worker):
    monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
    assert pick(wish, TWO) == device


@pytest.mark.parametrize(
    ("wish", "there", "device"),
    [
        ("cuda:1", ["cpu", "gpu:0", "gpu:1"], "gpu:1"),  # TensorFlow and JAX say gpu
        ("cuda", ["cpu", "gpu:0"], "gpu:0"),
        ("auto", ["cpu"], "cpu"),
        ("auto", ["cpu", "mps"], "mps"),
    ],
)
def test_names_are_those_of_any_framework(monkeypatch, wish, there, device):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    assert pick(wish, there) == device


@pytest.mark.parametrize(
    ("wish", "there", "listed"),
    [
        ("cuda", ["cpu"], "cpu"),
        ("cuda:2", TWO, "cpu, cuda:0, cuda:1"),
        ("mps", TWO, "cpu, cuda:0, cuda:1"),
        ("cuda:x", TWO, "cpu, cuda:0, cuda:1"),
        ("xpu", ["cpu", "mps"], "cpu, mps"),
    ],
)
def test_a_device_that_is_not_there_is_refused_with_those_that_are(wish, there, listed):
    with pytest.raises(InputError) as caught:
        pick(wish, there)
    assert str(caught.value) == f"device: {wish!r} is not there; this machine has {listed}"


def test_tolerances_scale_with_what_the_device_computes_in():
    exact = rounding("float32", "cpu")
    assert exact == rounding("float64", "cpu") == rounding("float64", "cuda:1")  # no TF32 there
    tf32 = rounding("float32", "cuda:1")
    assert tf32 == rounding("float32", "gpu:0") > 2**-10 > exact  # its mantissa has ten bits
    for half in ("float16", "bfloat16"):
        for device in ("cpu", "cuda:0"):
            assert rounding(half, device) > max(tf32, 2**-8)
