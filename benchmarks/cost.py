"""A check against the bare training loop: ResNets in PyTorch.

    python benchmarks/cost.py [--smoke]

The same 20 training steps on 8 images of 64 x 64, and the two forwards that a comparison of the
modes needs at least, with and without the plugin around them, in alternating pairs. Each
measurement is a process of its own: in one process whoever comes second trains in memory that the
first has used. It is in CPU seconds on one thread, which other work on the machine disturbs least.

The statistics converge (momentum 0.45, Adam(1e-4)), so no failure is diagnosed; `diagnosis.py`
measures that. Of 32 values per channel the variance is known to 3 % only, which multiplies over 151
layers: that warning, with its two passes, is part of what the deepest net costs. The exit code is 1
where the median ratio is above 1.10.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from pairs import process_pairs, ratio, spread, times
from torch import nn
from torch.nn import functional

from pytest_bncheck import check
from pytest_bncheck.report import Report

STEPS = 20
LIMIT = 1.10
OPTIMIZER = partial(torch.optim.Adam, lr=1e-4)
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 152: (3, 8, 36, 3)}
PAIRS = {18: 15, 50: 9, 152: 5}
"""More where a run is short: single pairs differ by a third there."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="one small pair: does it work?")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        what, depth, side = options.measure
        print(json.dumps(_measured(what, int(depth), int(side))))
        return 0
    side = "32" if options.smoke else "64"
    print(f"check / bare loop of {STEPS} steps and 2 forwards: median [least, most]")
    dear = False
    for depth in (18,) if options.smoke else BLOCKS:
        repeats = 1 if options.smoke else PAIRS[depth]
        runs = process_pairs(__file__, "torch", ("check", "bare"), repeats, str(depth), side)
        measured = times(runs)
        dear |= ratio(measured) > LIMIT
        found = ", ".join(sorted({code for check, _ in runs for code in check["codes"]}))
        print(f"  ResNet-{depth:<3} {spread(measured)}; found {found or 'nothing'}")
        print(f"             {_shares([check['parts'] for check, _ in runs])}", flush=True)
    return int(dear and not options.smoke)


def _shares(runs: Sequence[Mapping[str, float]]) -> str:
    """Where the checks spent their time."""
    parts = {
        "save and steps": [run["train"] for run in runs],
        "comparing modes": [run["measure"] for run in runs],
        "converged statistics": [run["diagnose"] for run in runs],
        "restore and report": [
            run["total"] - run["train"] - run["measure"] - run["diagnose"] for run in runs
        ],
    }
    whole = statistics.median(run["total"] for run in runs)
    return ", ".join(
        f"{name} {statistics.median(times) / whole:.1%}" for name, times in parts.items()
    )


def _measured(what: str, depth: int, side: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    small = resnet(18)  # what is imported on the way, by both
    bare(small, _batch(32), 1)
    check(small, _batch(32), steps=1)
    model, batch = resnet(depth), _batch(side)
    if what == "bare":
        return {"seconds": _cpu_seconds(lambda: bare(model, batch, STEPS))}
    reports: list[Report] = []
    took = _cpu_seconds(
        lambda: reports.append(check(model, batch, steps=STEPS, optimizer=OPTIMIZER))
    )
    (report,) = reports
    if report.bn_verdict == "broken":
        sys.exit(f"the check fails, so it does more than is measured here:\n{report}")
    codes = [finding.code for finding in report.findings]
    return {"seconds": took, "codes": codes, "parts": vars(report.seconds)}


def _cpu_seconds(run: Callable[[], object]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


def _batch(side: int) -> tuple[Any, Any]:
    torch.manual_seed(0)
    return torch.randn(8, 3, side, side), torch.arange(8) % 4


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
