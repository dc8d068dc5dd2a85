"""Which layers a failing check names, against planted culprits."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from common_nets import SEED
from pytest_bncheck import check


class Net(nn.Module):
    """A stem and residual blocks with 9 normalisation layers."""

    def __init__(self, momentum: float = 0.3, affine: bool = True) -> None:
        super().__init__()

        def layer(inputs: int) -> nn.Module:
            norm = nn.BatchNorm2d(12, momentum=momentum, affine=affine)
            return nn.Sequential(nn.Conv2d(inputs, 12, 3, padding=1, bias=False), norm)

        self.stem = layer(3)
        self.blocks = nn.ModuleList(
            nn.Sequential(layer(12), nn.ReLU(), layer(12)) for _ in range(4)
        )
        self.head = nn.Linear(12, 4)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.head(x.mean(dim=(2, 3)))


def net(seed: int = 0, **options: Any) -> Net:
    torch.manual_seed(seed)
    return Net(**options)


def noise(seed: int = 0) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 3, 14, 14, generator=generator), torch.arange(16) % 4


def plant(norm: Any) -> None:
    """Statistics that start far off and hardly move."""
    norm.momentum = 0.001
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(9.0)


def shares(report: Any) -> dict[str, float]:
    return {layer.name: layer.attribution for layer in report.layers}


@SEED
@pytest.mark.parametrize("culprit", ["stem.1", "blocks.1.0.1", "blocks.3.2.1"])
def test_the_culprit_is_named_and_not_the_decoy(culprit: str, seed: int) -> None:
    model = net(seed)
    plant(model.get_submodule(culprit))
    decoy = model.blocks[2][2][1]
    plant(decoy)
    decoy.weight.requires_grad_(False).zero_()
    report = check(model, noise(seed), steps=60, seed=seed)
    (finding,) = report.findings
    assert finding.code == "BN101"
    assert finding.layers[0] == culprit
    assert f"With only {culprit} put right" in finding.cause
    assert "of the difference would be gone" in finding.cause
    assert shares(report)["blocks.2.2.1"] == 0.0
    assert max(shares(report), key=shares(report).__getitem__) == culprit


def test_a_cause_common_to_all_layers_is_called_so() -> None:
    report = check(net(momentum=0.01), noise(), steps=40)
    (finding,) = report.findings
    assert len(finding.layers) == 9
    assert "the cause is common to all layers" in finding.cause
    assert sum(shares(report).values()) == pytest.approx(1.0, abs=0.25)
    assert finding.evidence["causes"] == {"initial value": 9}


def test_frozen_scales_and_layers_without_scale_have_shares_too() -> None:
    frozen, bare = net(momentum=0.01), net(momentum=0.01, affine=False)
    for norm in (m for m in frozen.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.requires_grad_(False)
    first, second = (check(model, noise(), steps=30) for model in (frozen, bare))
    assert first.verdict == second.verdict == "fail"
    assert shares(first) == pytest.approx(shares(second), rel=1e-3, abs=1e-3)


def test_the_gradient_leaves_no_trace() -> None:
    model = net(momentum=0.01)
    before = dict(model.named_parameters())
    assert not check(model, noise(), steps=20).ok
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is parameter for name, parameter in before.items())
    assert all(parameter.grad is None for parameter in after.values())


def test_a_model_without_a_gradient_in_eval_mode_has_no_shares() -> None:
    class Guarded(Net):
        def forward(self, x: Any) -> Any:
            with torch.set_grad_enabled(self.training):
                return super().forward(x)

    torch.manual_seed(0)
    report = check(Guarded(momentum=0.01), noise(), steps=20)
    (finding,) = report.findings
    assert finding.code == "BN101"
    assert set(shares(report).values()) == {None}
    assert "common to all" not in finding.cause


def test_a_healthy_model_pays_for_no_gradient() -> None:
    report = check(net(), noise(), steps=60)
    assert report.ok
    assert set(shares(report).values()) == {None}
