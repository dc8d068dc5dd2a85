"""PyTorch on another device: the stand-in, in a process of its own, or a real one by its name.

The tests marked `device`, here and elsewhere, run there:

    BNCHECK_DEVICE=cuda python -m pytest tests/adapters/torch tests/trust/test_left_as_found.py
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn

from pytest_bncheck import InputError, check
from pytest_bncheck.adapters import accelerators
from pytest_bncheck.adapters.torch import core, layers
from pytest_bncheck.watch.torch.layers import fingerprint
from rule_examples import load
from second_device import DEVICE, IS_EXACT, run_on

KIND = DEVICE.partition(":")[0]
on_device = pytest.mark.device("only")
on_stand_in = pytest.mark.device("only", "standin")


def test_on_the_stand_in() -> None:
    backends = pytest.importorskip("torch.utils.backend_registration")
    if not hasattr(backends, "_setup_privateuseone_for_python_backend"):
        pytest.skip(f"PyTorch {torch.__version__} has no backends in Python")
    printed = run_on("standin", "tests/adapters/torch", "tests/trust/test_left_as_found.py")
    assert "skipped" not in printed


# figures, verdicts and words --------------------------------------------------------------------

CODES = ["BN101", "BN107", "BN108", "BN401"]
"""Slopes and culprits, statistics of passes, frozen parameters, streams, copies."""


def examined(code: str, device: str) -> Any:
    case = load("torch", code).bad()
    return check(case.model, case.batch, device=device, **case.options)


def words(report: Any) -> str:
    """What is printed, whatever the device."""
    text = " ".join(str(report).split()).replace(report.device, "cpu")
    return text.replace("up to 0.01 is rounding", "up to 0.0001 is rounding")


def numbers(value: Any, path: str = "") -> dict[str, float]:
    """Every number of a report."""
    if isinstance(value, dict):
        items: Any = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return {path: value} if isinstance(value, float) else {}
    parts = (numbers(part, f"{path}.{key}") for key, part in items if key != "seconds")
    return {name: number for part in parts for name, number in part.items()}


@on_device
@pytest.mark.parametrize("code", CODES)
def test_verdict_words_and_figures_are_those_of_the_cpu(code: str) -> None:
    here, there = examined(code, DEVICE), examined(code, "cpu")
    assert here.device.startswith(KIND)
    assert here.verdict == there.verdict
    assert [each.code for each in here.findings] == [each.code for each in there.findings]
    if IS_EXACT:
        assert words(here) == words(there)
        expected = numbers(there.to_dict())
        assert numbers(here.to_dict()) == pytest.approx(expected, rel=1e-6, abs=1e-6, nan_ok=True)


# transfers --------------------------------------------------------------------------------------


def chain(layers: int, momentum: float = 0.4) -> nn.Module:
    torch.manual_seed(0)
    pairs = [(nn.Linear(5, 5), nn.BatchNorm1d(5, momentum=momentum)) for _ in range(layers)]
    return nn.Sequential(*(part for pair in pairs for part in pair), nn.Linear(5, 3))


def samples(n: int = 12) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(0)
    return 3 + torch.randn(n, 5, generator=generator), torch.arange(n) % 3


def transfers(layers: int, steps: int, *, momentum: float = 0.4, rate: float = 1e-3) -> Any:
    """Those of a check of a model that is on the device already, and what it finds."""
    import standin

    model = chain(layers, momentum).to(DEVICE)
    batch = tuple(part.to(DEVICE) for part in samples())
    standin.transfers.clear()
    sgd = partial(torch.optim.SGD, lr=rate)
    report = check(model, batch, optimizer=sgd, steps=steps, planned_updates=500)
    return dict(standin.transfers), [finding.code for finding in report.findings]


@on_stand_in
def test_a_check_waits_for_the_device_as_often_for_many_steps() -> None:
    found, codes = transfers(2, 5)
    assert codes == ["BN202"]
    assert 5 < sum(found.values()) < 100
    assert transfers(2, 20) == (found, codes)


@on_stand_in
def test_a_check_waits_for_the_device_as_often_for_many_layers() -> None:
    few, many = (transfers(layers, 8, momentum=0.9, rate=0.05) for layers in (6, 12))
    assert few == many


@on_stand_in
def test_a_transfer_in_each_step_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = layers.Layers.raw

    def read(self: Any) -> Any:
        found = raw(self)
        found[0].cpu()
        return found

    monkeypatch.setattr(layers.Layers, "raw", read)
    few, many = (transfers(2, steps)[0]["to host"] for steps in (5, 20))
    assert many == few + 15


# mixed devices, and generators ------------------------------------------------------------------


@on_device
@pytest.mark.parametrize("steps", [0, 3])
def test_mixed_devices_would_be_seen(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    def left(batch: Any, device: Any, *others: Any, **options: Any) -> Any:
        return core_to_tensors(batch, torch.device("cpu"), *others, **options)

    core_to_tensors = core.to_tensors
    monkeypatch.setattr(core, "to_tensors", left)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        check(chain(1), samples(), steps=steps)


@on_device
def test_generators_are_left_as_found_seeded_and_missed() -> None:
    module, model = torch.get_device_module(KIND), nn.Sequential(chain(1), nn.Dropout(0.5))
    module.manual_seed_all(3)
    before = module.get_rng_state(DEVICE)
    one, two = (check(model, samples(), steps=3, seed=5) for _ in range(2))
    assert numbers(one.to_dict()) == numbers(two.to_dict())
    assert torch.equal(module.get_rng_state(DEVICE), before)
    drawn = torch.rand(1, device=DEVICE).cpu()
    module.set_rng_state(before, DEVICE)
    assert torch.equal(torch.rand(1, device=DEVICE).cpu(), drawn)


@on_device
def test_a_generator_that_is_forgotten_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    module, model = torch.get_device_module(KIND), nn.Sequential(chain(1), nn.Dropout(0.5))
    before = module.get_rng_state(DEVICE)
    monkeypatch.setattr(accelerators, "random_state", dict)
    check(model, samples(), steps=2)
    assert not torch.equal(module.get_rng_state(DEVICE), before)


# names ------------------------------------------------------------------------------------------


@on_device
@pytest.mark.parametrize("wish", [KIND, KIND.upper(), f"{KIND}:0", "auto"])
def test_names(wish: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    model = chain(1)
    weight = model[0].weight
    report = check(model, samples(), device=wish, steps=1)
    assert report.device == f"{KIND}:0"
    assert model[0].weight is weight
    assert weight.device.type == "cpu"


@on_stand_in
def test_workers_of_xdist_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for worker in ("gw0", "gw1", "gw2"):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        # Only the first of the stand-in's devices can compute gradients.
        found.append(check(chain(1), samples(), device="standin", steps=0).device)
    assert found == ["standin:0", "standin:1", "standin:0"]


@on_device
def test_a_bad_name_lists_what_is_there() -> None:
    with pytest.raises(InputError) as caught:
        check(chain(1), samples(), device="zpu")
    count = torch.get_device_module(KIND).device_count()
    there = ", ".join(["cpu", *(f"{KIND}:{k}" for k in range(count))])
    assert str(caught.value) == f"device: 'zpu' is not there; this machine has {there}"


def step() -> Any:
    """A step of the user's, which the check rehearses."""

    def train_step(model: nn.Module, batch: Any) -> Any:
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss

    return train_step


# what a device may lack, and what users set -----------------------------------------------------


@on_stand_in
@pytest.mark.parametrize("code", ["BN101"])
def test_nothing_asks_for_double_precision_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    import standin

    monkeypatch.setattr(standin, "HAS_FLOAT64", False)
    accelerators.has_float64.cache_clear()
    try:
        with pytest.raises(TypeError, match="has no float64"):
            torch.ones(1, dtype=torch.float64, device="standin")
        assert [each.code for each in examined(code, "standin").findings] == [code]
        x, y = (part.numpy() for part in samples())
        assert check(chain(1), (x.astype(np.float64), y), device="standin", steps=1).findings
        assert fingerprint(chain(1).to("standin")[1]).is_initial
        assert check(chain(1), samples(), train_step=step(), steps=2).findings
    finally:
        accelerators.has_float64.cache_clear()


@on_device
def test_a_default_device_of_the_user_s() -> None:
    expected = check(chain(1).to(DEVICE), samples(), steps=3)
    torch.set_default_device(DEVICE)
    try:
        model = chain(1)
        assert model[0].weight.device.type == KIND
        report = check(model, tuple(part.cpu().numpy() for part in samples_on_host()), steps=3)
        assert torch.get_default_device().type == KIND
    finally:
        torch.set_default_device(None)
    assert report.verdict == expected.verdict


def samples_on_host() -> tuple[Any, Any]:
    with torch.device("cpu"):
        return samples()


@on_device
def test_autocast_is_seen_and_left_as_found() -> None:
    autocast = torch.autocast(KIND, torch.bfloat16)
    forward = autocast(lambda model, batch: model(batch[0]))
    lab = core.TorchCore(chain(1), [samples()], core.Recipe(forward=forward), DEVICE)
    lab.save()
    lab.begin()
    lab.train_step(0)
    noise = lab.noise
    lab.predict(0)
    lab.restore()
    assert lab.noise == 5e-2 > noise
    assert not torch.is_autocast_enabled(KIND)


@on_device
def test_several_inputs_and_arrays() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(10), nn.Linear(10, 3)

        def forward(self, a: Any, b: Any) -> Any:
            return self.head(self.norm(torch.cat([a, b], 1)))

    x, y = samples()
    for inputs in ((x.numpy(), x), {"a": x, "b": x.double().numpy()}):
        assert check(Two(), (inputs, y.numpy()), steps=2).predictions.gap is not None


@on_device
def test_a_report_names_the_device() -> None:
    report = check(chain(1), samples(), steps=0)
    assert json.loads(json.dumps(report.to_dict()))["device"] == report.device
    assert f"torch, {report.device}, 0 steps" in " ".join(str(report).split())
