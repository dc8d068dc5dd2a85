"""How many steps `steps="auto"` makes on nets of different kinds, against the fixed 150.

python benchmarks/auto_steps.py [--smoke]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import nets_torch as nets
import torch
from cost import resnet
from torch import nn

from pytest_bncheck import check

MOST = 150


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="two nets: does it work?")
    options = parser.parse_args()
    made = []
    for name, build in list(NETS.items())[: 2 if options.smoke else None]:
        torch.manual_seed(0)
        report = check(*build())
        made.append(report.steps)
        print(f"  {name:<44} {report.steps:>3} steps, {report.verdict}", flush=True)
    print(f"mean over {len(made)} nets: {sum(made) / len(made):.0f} of {MOST} steps")
    return 0


def _images(model: nn.Module, size: int = 14, count: int = 16) -> tuple[nn.Module, Any]:
    return model, (torch.randn(count, 3, size, size), torch.arange(count) % 4)


def _rows(model: nn.Module, *shape: int) -> tuple[nn.Module, Any]:
    return model, (3.0 + 2.0 * torch.randn(*shape), torch.arange(shape[0]) % 4)


def _mlp(momentum: float | None = 0.1) -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 32), nn.BatchNorm1d(32, momentum=momentum), nn.ReLU(), nn.Linear(32, 4)
    )


NETS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "plain, momentum 0.1": lambda: _images(nets.build("plain", 0.1, 0)),
    "multilayer perceptron, momentum 0.1": lambda: _rows(_mlp(), 32, 8),
    "plain, momentum 0.3": lambda: _images(nets.build("plain", 0.3, 0)),
    "plain, momentum 0.01": lambda: _images(nets.build("plain", 0.01, 0)),
    "residual, momentum 0.1": lambda: _images(nets.build("residual", 0.1, 0)),
    "residual, 21 layers, momentum 0.1": lambda: _images(nets.Residual(0.1, blocks=10)),
    "depthwise, momentum 0.1": lambda: _images(nets.build("depthwise", 0.1, 0)),
    "multilayer perceptron, cumulative average": lambda: _rows(_mlp(None), 32, 8),
    "dropout before a perceptron's normalisation": lambda: _rows(
        nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1), _mlp()), 32, 8
    ),
    "sequences, BatchNorm1d": lambda: _rows(
        nn.Sequential(
            nn.Conv1d(4, 16, 3), nn.BatchNorm1d(16), nn.ReLU(), nn.Flatten(), nn.Linear(224, 4)
        ),
        16,
        4,
        16,
    ),
    "ResNet-18": lambda: _images(_usual(resnet(18)), 64, 8),
    "layer normalisation only": lambda: _rows(
        nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 4)), 32, 8
    ),
}


def _usual(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return model


if __name__ == "__main__":
    sys.exit(main())
