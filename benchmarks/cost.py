"""A check against the bare training loop: ResNets in PyTorch.

    python benchmarks/cost.py [--smoke]

The same 20 training steps on 8 images of 64 x 64, and the two forwards that a comparison of the
modes needs at least, with and without the plugin around them, in alternating pairs. The statistics
converge (momentum 0.45, Adam(1e-4)), so no failure is diagnosed; `diagnosis.py` measures that. Of
32 values per channel the variance is known to 3 % only, which multiplies over 151 layers: that
warning, with its two passes, is part of what the deepest net costs. The exit code is 1 where the
median ratio is above 1.10.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from functools import partial
from typing import Any

import torch
from pairs import pairs, ratio, spread
from torch import nn
from torch.nn import functional

from pytest_bncheck import check
from pytest_bncheck.report import Seconds

STEPS = 20
LIMIT = 1.10
OPTIMIZER = partial(torch.optim.Adam, lr=1e-4)
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 152: (3, 8, 36, 3)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="one small pair: does it work?")
    options = parser.parse_args()
    side, repeats = (32, 1) if options.smoke else (64, 5)
    torch.manual_seed(0)
    batch = torch.randn(8, 3, side, side), torch.arange(8) % 4
    print(f"check / bare loop of {STEPS} steps and 2 forwards: median [least, most]")
    dear = False
    for depth in (18,) if options.smoke else BLOCKS:
        measured = pairs(partial(_check, depth, batch), partial(_bare, depth, batch), repeats)
        dear |= ratio(measured) > LIMIT
        found = ", ".join(sorted(FOUND)) or "nothing"
        print(f"  ResNet-{depth:<3} {spread(measured)}; found {found}")
        print(f"             {_parts()}", flush=True)
        FOUND.clear()
        SPENT.clear()
    return int(dear and not options.smoke)


FOUND: set[str] = set()
SPENT: list[Seconds] = []


def _parts() -> str:
    """Where the checks spent their time."""
    parts = {
        "save and steps": [spent.train for spent in SPENT],
        "comparing modes": [spent.measure for spent in SPENT],
        "converged statistics": [spent.diagnose for spent in SPENT],
        "restore and report": [
            spent.total - spent.train - spent.measure - spent.diagnose for spent in SPENT
        ],
    }
    whole = statistics.median(spent.total for spent in SPENT)
    return ", ".join(
        f"{name} {statistics.median(times) / whole:.1%}" for name, times in parts.items()
    )


def _check(depth: int, batch: Any) -> None:
    report = check(resnet(depth), batch, steps=STEPS, optimizer=OPTIMIZER)
    FOUND.update(finding.code for finding in report.findings)
    SPENT.append(report.seconds)
    if report.bn_verdict == "broken":
        raise SystemExit(f"the check fails, so it does more than is measured here:\n{report}")


def _bare(depth: int, batch: Any) -> None:
    bare(resnet(depth), batch, STEPS)


def bare(model: nn.Module, batch: Any, steps: int) -> None:
    """The training loop and the two forwards without the plugin."""
    images, labels = batch
    optimizer = OPTIMIZER(model.parameters())
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    with torch.no_grad():
        model(images)
        model.eval()
        model(images)


def resnet(depth: int) -> nn.Module:
    """ResNet-18 of basic blocks, the others of bottlenecks."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), norm(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, stride=2, padding=1))
    inputs = 64
    for stage, blocks in enumerate(BLOCKS[depth]):
        width = 64 * 2**stage
        outputs = width if depth == 18 else 4 * width
        for block in range(blocks):
            layers.append(Block(inputs, width, outputs, stride=2 if stage and not block else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 4))


class Block(nn.Module):
    def __init__(self, inputs: int, width: int, outputs: int, stride: int) -> None:
        super().__init__()
        if width == outputs:
            shapes = [(inputs, width, 3, stride), (width, width, 3, 1)]
        else:
            shapes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        branch: list[nn.Module] = []
        for before, after, kernel, step in shapes:
            conv = nn.Conv2d(before, after, kernel, step, padding=kernel // 2, bias=False)
            branch += [conv, norm(after), nn.ReLU()]
        self.branch = nn.Sequential(*branch[:-1])
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, norm(outputs))

    def forward(self, x: Any) -> Any:
        return torch.relu(self.branch(x) + self.shortcut(x))


def norm(width: int) -> nn.Module:
    return nn.BatchNorm2d(width, momentum=0.45)


if __name__ == "__main__":
    sys.exit(main())
