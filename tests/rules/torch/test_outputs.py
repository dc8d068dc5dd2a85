"""Outputs of many forms: masked, of another layout than the batch, of no classes."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn
from torch.nn import functional

from pytest_bncheck import check

SEEDS = (0, 1)


def adam(rate: float = 5e-3) -> Any:
    return lambda parameters: torch.optim.Adam(parameters, rate)


def codes(report: Any) -> list[str]:
    return [finding.code for finding in report.findings]


def mlp(outputs: int, momentum: float = 0.1) -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 32), nn.BatchNorm1d(32, momentum=momentum), nn.ReLU(), nn.Linear(32, outputs)
    )


def cnn(outputs: int, momentum: float = 0.1) -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8)),
        nn.Conv1d(1, 16, 3, padding=1),
        nn.BatchNorm1d(16, momentum=momentum),
        nn.ReLU(),
        nn.Conv1d(16, 16, 3, padding=1),
        nn.BatchNorm1d(16, momentum=momentum),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, outputs),
    )


# entries that are not finite ----------------------------------------------------------------------


class Masked(nn.Module):
    """Sample k has n values; the others are `hole`, in eval mode possibly one more."""

    def __init__(self, body: nn.Module, hole: float, one_more: bool = False) -> None:
        super().__init__()
        self.body, self.hole, self.one_more = body, hole, one_more

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        kept = n - int(self.one_more and not self.training)
        return self.body(x).masked_fill(torch.arange(4) >= kept[:, None], self.hole)


def ragged_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    known = ~torch.isnan(targets)
    return ((outputs - targets)[known] ** 2).mean() if known.any() else 0 * outputs.sum()


def ragged(body: nn.Module, seed: int, **options: Any) -> Any:
    torch.manual_seed(seed)
    x, n = torch.randn(48, 8) + 1, torch.arange(48) % 4 + 1
    targets = (x[:, :4] * 2).masked_fill(torch.arange(4) >= n[:, None], math.nan)
    model = Masked(body, math.nan, **options)
    return check(model, ((x, n), targets), steps=150, loss=ragged_loss, optimizer=adam())


def actions(body: nn.Module, seed: int) -> Any:
    torch.manual_seed(seed)
    x, n = torch.randn(48, 8) + 1, torch.arange(48) % 3 + 2
    y = torch.where(x[:, 0] > 1, n - 1, 0)
    return check(Masked(body, -math.inf), ((x, n), y), steps=150, optimizer=adam())


@pytest.mark.parametrize("net", [mlp, cnn])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", [ragged, actions])
def test_masks_of_nan_and_infinity_are_no_difference(kind: Any, net: Any, seed: int) -> None:
    report = kind(net(4), seed)
    assert report.verdict == "pass", str(report)
    assert report.predictions.gap < 0.1


@pytest.mark.parametrize("net", [mlp, cnn])
@pytest.mark.parametrize("kind", [ragged, actions])
def test_behind_masks_slow_statistics_are_seen(kind: Any, net: Any) -> None:
    report = kind(net(4, momentum=0.001), 0)
    assert "BN101" in codes(report), str(report)
    assert math.isfinite(report.predictions.gap)


@pytest.mark.parametrize("net", [mlp, cnn])
def test_a_hole_that_only_eval_mode_has_never_passes(net: Any) -> None:
    report = ragged(net(4), 0, one_more=True)
    assert report.verdict == "fail", str(report)
    assert "BN201" in codes(report)
