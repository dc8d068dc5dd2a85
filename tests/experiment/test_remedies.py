"""The numbers in the remedies, each against doing the real thing."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn

from common_nets import SEED
from pytest_bncheck import check
from pytest_bncheck.experiment import remedies
from pytest_bncheck.experiment.remedies import RATES
from pytest_bncheck.maths.predictions import gap


def plain(momentum: float) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 12), (12, 16), (16, 16)):
        norm = nn.BatchNorm2d(outputs, momentum=momentum)
        layers += [nn.Conv2d(inputs, outputs, 3, bias=False), norm, nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


class Residual(nn.Module):
    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12, momentum=momentum))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(12, 12, 3, padding=1, groups=groups, bias=False),
                nn.BatchNorm2d(12, momentum=momentum),
                nn.ReLU(),
                nn.Conv2d(12, 12, 1, bias=False),
                nn.BatchNorm2d(12, momentum=momentum),
            )
            for groups in (1, 12, 1)
        )
        self.head = nn.Linear(12, 4)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.head(x.mean(dim=(2, 3)))


NETS = {"plain": plain, "residual": Residual}


def build(name: str, momentum: float, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return NETS[name](momentum)


def noise(seed: int) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 3, 14, 14, generator=generator), torch.arange(16) % 4


def optimizer(params: Any) -> Any:
    return torch.optim.Adam(params, lr=3e-3)


@SEED
@pytest.mark.parametrize("name", NETS)
def test_the_momentum_would_really_have_sufficed_and_the_next_worse_not(
    name: str, seed: int
) -> None:
    options: dict[str, Any] = {"steps": 40, "optimizer": optimizer, "seed": seed}
    report = check(build(name, 0.01, seed), noise(seed), **options)
    assert report.verdict == "fail", str(report)
    rate = report.remedies.momentum
    assert rate is not None
    assert f"momentum {rate:g}" in str(report)
    assert check(build(name, rate, seed), noise(seed), **options).bn_verdict == "healthy"
    worse = RATES[RATES.index(rate) - 1]
    assert check(build(name, worse, seed), noise(seed), **options).bn_verdict != "healthy"


def assert_they_suffice(model: nn.Module, batch: Any, report: Any) -> None:
    """Between 5 % fewer updates with frozen weights than promised and 5 % more it gets near."""
    promised = report.remedies.further_updates
    target = max(0.8 * 0.25, 1.2 * report.predictions.floor)
    error = max(3, round(0.05 * promised))

    def gap_after(updates: int) -> float:
        model.train()
        with torch.no_grad():
            for _ in range(updates):
                model(batch[0])
        return check(model, batch, steps=0).predictions.gap

    assert gap_after(promised - error) > target
    assert gap_after(2 * error) <= target


@SEED
@pytest.mark.parametrize("name", NETS)
def test_the_further_updates_really_suffice_with_frozen_weights(name: str, seed: int) -> None:
    model, batch = build(name, 0.02, seed), noise(seed)
    report = check(model, batch, steps=30, optimizer=optimizer, seed=seed, restore=False)
    assert report.verdict == "fail", str(report)
    assert_they_suffice(model, batch, report)


@pytest.mark.parametrize("seed", [1, 3])
def test_a_prediction_can_pass_while_layers_are_still_distorted(seed: int) -> None:
    """The search starts where no layer is, and goes both ways from there."""
    model, batch = build("plain", 0.02, seed), noise(seed)
    sgd = partial(torch.optim.SGD, lr=0.2, momentum=0.9)
    report = check(model, batch, steps=30, optimizer=sgd, seed=seed, restore=False)
    assert_they_suffice(model, batch, report)
    layers = check(model, batch, steps=0).layers
    assert max(math.hypot(layer.shift, layer.scale) for layer in layers) > 0.1


@pytest.mark.parametrize("steepness", [4, 20, 60, 1000])
@pytest.mark.parametrize("turn", [200, 330, 505, 760, 1100])
def test_a_gap_that_falls_late_and_at_once(
    monkeypatch: pytest.MonkeyPatch, turn: int, steepness: int
) -> None:
    """As that of a deep net whose outputs are saturated probabilities."""

    def falling(evidence: Any, predict: Any, updates: int) -> tuple[float, bool]:
        gap = float(1.4 / (1.0 + np.exp(min(steepness * np.log(updates / turn), 700.0))))
        return gap, False

    monkeypatch.setattr(remedies, "_look_after", falling)
    report = check(build("plain", 0.01, 0), noise(0), steps=30, optimizer=optimizer)
    target = max(0.8 * 0.25, 1.2 * report.predictions.floor)
    expected = turn * (1.4 / target - 1.0) ** (1.0 / steepness)
    assert expected <= report.remedies.further_updates <= 1.15 * expected


def test_nothing_is_promised_where_nothing_helps() -> None:
    model = build("plain", 0.01, 0)
    model[1].momentum = 0.0
    report = check(model, noise(0), steps=40, optimizer=optimizer)
    assert next(finding.code for finding in report.findings) == "BN103"
    assert report.remedies is not None
    assert report.remedies.further_updates is None
    assert report.remedies.momentum is None


# several mini-batches ---------------------------------------------------------------------------


def stream(seed: int) -> list[tuple[Any, Any]]:
    """8 mini-batches of noise in which each class has a bright corner of its own."""
    images, labels = [], torch.arange(16) % 4
    for k in range(8):
        image, _ = noise(100 * seed + k)
        for label, (row, column) in enumerate(((0, 0), (0, 7), (7, 0), (7, 7))):
            image[labels == label, :, row : row + 7, column : column + 7] += 0.5 + label
        images.append(image)
    return [(image, labels) for image in images]


def eval_mode(model: nn.Module, batches: list[Any]) -> dict[str, Any]:
    model.eval()
    with torch.no_grad():
        return {"output": torch.cat([model(images) for images, _ in batches]).double().numpy()}


def observed_stream_updates(model: nn.Module, batches: list[Any]) -> int:
    """Updates with frozen weights until the prediction on all is as near as the advice aims at."""
    converged = copy.deepcopy(model)
    torch.optim.swa_utils.update_bn([images for images, _ in batches], converged)
    reference = eval_mode(converged, batches)
    for updates in range(2000):
        if updates % 4 == 0 and gap(eval_mode(model, batches), reference) <= 0.8 * 0.5:
            return updates
        model.train()
        with torch.no_grad():
            model(batches[updates % 8][0])
    raise AssertionError("never")


@SEED
@pytest.mark.parametrize("name", NETS)
def test_what_is_tried_on_one_mini_batch_holds_for_all(name: str, seed: int) -> None:
    model, batches = build(name, 0.01, seed), stream(seed)
    options: dict[str, Any] = {"batches": batches, "steps": 40, "optimizer": optimizer}
    report = check(model, restore=False, seed=seed, **options)
    assert report.bn_verdict == "broken", str(report)
    observed = observed_stream_updates(model, batches)
    print(f"{name} {seed}: {report.remedies}, observed {observed}")
    assert abs(report.remedies.further_updates - observed) <= 0.15 * observed
    assert max(point.gap for point in report.curves.updates) < report.predictions.gap
    again = check(build(name, report.remedies.momentum, seed), seed=seed, **options)
    assert again.bn_verdict in ("healthy", "degraded")


@pytest.mark.parametrize("name", NETS)
def test_after_the_silent_updates_nothing_is_found_any_more(name: str) -> None:
    model, batch = build(name, 0.02, 0), noise(0)
    report = check(model, batch, steps=40, optimizer=optimizer, restore=False)
    silent = report.remedies.silent_updates
    assert silent >= report.remedies.further_updates
    model.train()
    with torch.no_grad():
        for _ in range(silent):
            model(batch[0])
    assert check(model, batch, steps=0).verdict == "pass"
