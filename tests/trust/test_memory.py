"""A check lets go of everything at its end; `benchmarks/memory.py` measures how much it holds."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn

from pytest_bncheck import InputError, check

X, Y = 3.0 * torch.randn(24, 4, generator=torch.Generator().manual_seed(0)) + 5.0, torch.arange(24)


def net(momentum: float) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=momentum), nn.ReLU(), nn.Linear(8, 3)
    )


def raises(outputs: Tensor, targets: Tensor) -> Tensor:
    raise ZeroDivisionError


ENDS = {
    "pass": {"momentum": 0.4},
    "fail": {"momentum": 0.001},
    "an error": {"momentum": 0.4, "loss": raises},
    "a refusal": {"momentum": 0.4, "loss": lambda outputs, targets: None},
}


def make(momentum: float, **options: object) -> None:
    """One check of a new model; its report and its error are dropped."""
    with contextlib.suppress(ZeroDivisionError, InputError):
        check(net(momentum), (X, Y % 3), steps=60, **options)


def tensors() -> int:
    # Not `isinstance`: some of all the objects there are warn when they are asked.
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


@pytest.fixture
def _no_collector() -> Iterator[None]:
    make(0.4)  # what is kept from the first check on: caches of torch
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("end", ENDS)
def test_no_tensor_is_left(end: str) -> None:
    """Also without the collector of cycles: a large model's memory must not wait for it."""
    before = tensors()
    make(**ENDS[end])
    assert tensors() == before


@pytest.mark.parametrize("end", ENDS)
def test_many_checks_leave_nothing(end: str) -> None:
    counts = []
    for _ in range(3):
        for _ in range(5):
            make(**ENDS[end])
        gc.collect()
        counts.append(len(gc.get_objects()))
    assert counts[2] - counts[1] <= 2


def test_the_model_is_let_go() -> None:
    model = net(0.001)
    report = check(model, (X, Y % 3), steps=60)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert report.verdict == "fail"
