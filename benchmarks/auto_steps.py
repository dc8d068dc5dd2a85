"""How many steps `steps="auto"` makes on nets of different kinds, against the fixed 150.

    python benchmarks/auto_steps.py [--smoke]

With and without 5000 planned updates, on 12 nets and on 200 random ones. The exit code is 1 where a
verdict is another than after 150 steps, or where nets with planned updates need more than 30 steps
in the median, or a net in which nothing runs along more than 20.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nets_torch as nets
import torch
from cost import resnet
from torch import nn

from pytest_bncheck import check

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from random_nets import Builder

MOST = 150
PLANNED = 5000
RANDOM = 200
LIMITS = {"planned": 30, "nothing runs along": 20}
"""Steps."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="two nets: does it work?")
    options = parser.parse_args()
    made: list[int] = []
    planned: list[int] = []
    wrong = 0
    print(f"  {'':<44} auto, planned; verdicts, and after {MOST} steps")
    for name, build in list(NETS.items())[: 2 if options.smoke else None]:
        torch.manual_seed(0)
        model, batch = build()
        auto, projected, *fixed = (
            check(model, batch, steps=steps, planned_updates=updates)
            for steps in ("auto", MOST)
            for updates in (None, PLANNED)
        )
        made.append(auto.steps)
        planned.append(projected.steps)
        verdicts = [each.verdict for each in (auto, projected, *fixed)]
        wrong += verdicts[:2] != verdicts[2:]
        wrong += not auto.layers and auto.steps > LIMITS["nothing runs along"]
        print(f"  {name:<44} {auto.steps:>4}, {projected.steps:>7}; {', '.join(verdicts)}")
    median = statistics.median(planned)
    print(f"mean over {len(made)} nets: {sum(made) / len(made):.0f} of {MOST} steps")
    print(f"median with planned updates: {median:g}; {wrong} others than after {MOST} steps")
    differ = _on_random_nets(3 if options.smoke else RANDOM)
    return int(not options.smoke and (wrong + differ > 0 or median > LIMITS["planned"]))


def _on_random_nets(count: int) -> int:
    """How many of them get another verdict with planned updates than after 150 steps."""
    differ, steps = 0, []
    for seed in range(count):
        builder = Builder(400_000 + seed)
        model, batch = builder.net(builder.blocks()), builder.batch()
        auto = check(model, batch, planned_updates=PLANNED)
        fixed = check(model, batch, steps=MOST, planned_updates=PLANNED)
        steps.append(auto.steps)
        if auto.verdict != fixed.verdict:
            differ += 1
            print(f"  random net {400_000 + seed}: {auto.verdict} and {fixed.verdict}")
    median = statistics.median(steps)
    print(f"{count} random nets with planned updates: median {median:g} steps, {differ} differ")
    return differ


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
