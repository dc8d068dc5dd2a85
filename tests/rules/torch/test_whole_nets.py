"""Networks in the manner of torchvision: healthy ones are silent, too long a memory is caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from common_nets import SEED
from pytest_bncheck import check

MOMENTA = {"default": 0.1, "slow": 0.01}


class Residual(nn.Module):
    """``x + body(x)``, with a projection where the shapes differ."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut or nn.Identity()

    def forward(self, x: Any) -> Any:
        return torch.relu(self.shortcut(x) + self.body(x))


class Dense(nn.Module):
    """Concatenates what it computes to its input."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Any) -> Any:
        return torch.cat([x, self.body(x)], dim=1)


def unit(inputs: int, outputs: int, m: float, **conv: Any) -> list[nn.Module]:
    options = {"kernel_size": 3, "padding": 1, "bias": False, **conv}
    return [nn.Conv2d(inputs, outputs, **options), nn.BatchNorm2d(outputs, momentum=m)]


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4)]


def resnet(m: float) -> nn.Module:
    layers = [*unit(3, 16, m), nn.ReLU()]
    for inputs, outputs, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2)):
        body = [*unit(inputs, outputs, m, stride=stride), nn.ReLU(), *unit(outputs, outputs, m)]
        one = {"kernel_size": 1, "padding": 0, "stride": stride}
        projection = nn.Sequential(*unit(inputs, outputs, m, **one))
        layers += [Residual(nn.Sequential(*body), projection)]
        layers += [Residual(nn.Sequential(*unit(outputs, outputs, m), nn.ReLU(),
                                          *unit(outputs, outputs, m)))]  # fmt: skip
    return nn.Sequential(*layers, *head(64))


def bottlenecks(m: float) -> nn.Module:
    layers = [*unit(3, 32, m), nn.ReLU()]
    one = {"kernel_size": 1, "padding": 0}
    for _ in range(6):
        body = [
            *unit(32, 8, m, **one),
            nn.ReLU(),
            *unit(8, 8, m),
            nn.ReLU(),
            *unit(8, 32, m, **one),
        ]
        layers.append(Residual(nn.Sequential(*body)))
    return nn.Sequential(*layers, *head(32))


def vgg(m: float) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 16), (16, 32), (32, 32)):
        layers += [*unit(inputs, outputs, m), nn.ReLU()]
        if inputs == outputs:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, *head(32))


def depthwise(m: float) -> nn.Module:
    layers = [*unit(3, 16, m, stride=2), nn.ReLU6()]
    one = {"kernel_size": 1, "padding": 0}
    for _ in range(3):
        body = [*unit(16, 48, m, **one), nn.ReLU6(), *unit(48, 48, m, groups=48), nn.ReLU6()]
        layers.append(Residual(nn.Sequential(*body, *unit(48, 16, m, **one))))
    return nn.Sequential(*layers, *head(16))


def densenet(m: float) -> nn.Module:
    layers, channels = [*unit(3, 16, m), nn.ReLU()], 16
    for _ in range(4):
        norm = nn.BatchNorm2d(channels, momentum=m)
        body = nn.Sequential(norm, nn.ReLU(), nn.Conv2d(channels, 12, 3, padding=1, bias=False))
        layers.append(Dense(body))
        channels += 12
    return nn.Sequential(*layers, nn.BatchNorm2d(channels, momentum=m), nn.ReLU(), *head(channels))


NETS: dict[str, Callable[[float], nn.Module]] = {
    net.__name__: net for net in (resnet, bottlenecks, vgg, depthwise, densenet)
}


def noise(seed: int) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 3, 24, 24, generator=generator), torch.arange(8) % 4


@SEED
@pytest.mark.parametrize("name", NETS)
def test_healthy_nets_pass(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    report = check(NETS[name](MOMENTA["default"]), noise(seed), seed=seed)
    assert not [f.code for f in report.findings if f.severity == "error"], str(report)
    assert report.bn_verdict != "broken"
    assert report.predictions.eval.accuracy == 1.0


@SEED
@pytest.mark.parametrize("name", NETS)
def test_a_long_memory_and_few_steps_fail(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    report = check(NETS[name](MOMENTA["slow"]), noise(seed), steps=40, seed=seed)
    assert [f.code for f in report.findings] == ["BN101"], str(report)
    assert report.bn_verdict == "broken"
    assert not report.ok
    assert report.remedies is not None
    assert report.remedies.recalibrates


@pytest.mark.parametrize("name", NETS)
def test_planned_updates_judge_the_training_that_will_be(name: str) -> None:
    torch.manual_seed(0)
    model = NETS[name](MOMENTA["slow"])
    report = check(model, noise(0), steps=40, planned_updates=3000)
    assert report.ok, str(report)
    assert report.predictions.projected is not None
    assert report.predictions.projected.accuracy == 1.0
    assert report.predictions.eval.accuracy < 1.0
    assert not check(model, noise(0), steps=40, planned_updates=45).ok
