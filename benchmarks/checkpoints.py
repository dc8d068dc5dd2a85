"""Trained models whose fault is known, judged as they are handed over (`steps=0`).

    python benchmarks/checkpoints.py [--seeds 5] [--smoke]

Nets of five shapes are trained by a plain loop and then spoiled, or not, in one known way:

* initial value: a long memory and few updates;
* lag: a long memory, many updates, and a learning rate that rose at the end;
* lost: a new net into which only the parameters were loaded;
* stale: the parameters went on without their statistics (an averaged copy, or a late freeze);
* other data: the inputs come on another scale than in training;
* healthy: default momentum and enough updates; regression and classification, batches of 8 to 64.

A plain measurement decides whether the fault is one: a faulty checkpoint whose eval mode is less
than 10 points of accuracy (or a tenth of what was learned) behind batch statistics is left out,
and so is a healthy one that is more than 2 points behind. Prints the confusion matrix; the exit
code is 1 where the initial value is named in less than 95 % of its cases or for any other cause,
where a healthy one is an error, or more than 5 % of the healthy ones are warned of.
"""

from __future__ import annotations

import argparse
import collections
import copy
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pytest_bncheck import check

SAMPLES, CLASSES = 256, 4
CAUSES = ("initial value", "lag", "lost", "stale", "other data", "healthy")


@dataclass
class Checkpoint:
    """A trained model, the batch that it is checked on, and what is wrong with it."""

    cause: str
    name: str
    model: nn.Module
    batch: tuple[Any, Any]
    weight: float = 0.0
    """What is left of the initial value, where that is the cause."""


# nets -------------------------------------------------------------------------------------------


def _plain(momentum: float | None, outputs: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, width in ((3, 16), (16, 16), (16, 24), (24, 24)):
        layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(width, momentum=momentum), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, outputs))


class _Branches(nn.Module):
    """Two kernels side by side, joined by their channels, three times."""

    def __init__(self, momentum: float | None, outputs: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for width in (3, 16, 16):
            kernels = [
                nn.Sequential(
                    nn.Conv2d(width, 8, size, padding=size // 2),
                    nn.BatchNorm2d(8, momentum=momentum),
                    nn.LeakyReLU(0.1),
                )
                for size in (1, 3)
            ]
            self.blocks.append(nn.ModuleList(kernels))
        self.head = nn.Linear(16, outputs)

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = torch.cat([kernel(x) for kernel in block], dim=1)
        return self.head(x.amax(dim=(2, 3)))


class _Shuffled(nn.Module):
    """Residual blocks with a squeeze in the middle."""

    def __init__(self, momentum: float | None, outputs: int) -> None:
        super().__init__()

        def unit(inputs: int, width: int, size: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(inputs, width, size, padding=size // 2, bias=False),
                nn.BatchNorm2d(width, momentum=momentum),
            )

        self.stem = unit(3, 16, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(unit(16, 8, 1), nn.GELU(), unit(8, 8, 3), nn.GELU(), unit(8, 16, 1))
            for _ in range(3)
        )
        self.head = nn.Linear(16, outputs)

    def forward(self, x: Any) -> Any:
        x = F.gelu(self.stem(x))
        for block in self.blocks:
            x = x + block(x)
        return self.head(F.gelu(x).mean(dim=(2, 3)))


def _sound(momentum: float | None, outputs: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten(2)]
    for inputs, width in ((3, 16), (16, 16), (16, 16)):
        layers += [nn.Conv1d(inputs, width, 5, padding=2)]
        layers += [nn.BatchNorm1d(width, momentum=momentum), nn.ReLU(), nn.MaxPool1d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 8, outputs))


def _table(momentum: float | None, outputs: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(192, 48)]
    for _ in range(3):
        layers += [nn.BatchNorm1d(48, momentum=momentum), nn.ELU(), nn.Linear(48, 48)]
    return nn.Sequential(*layers, nn.Linear(48, outputs))


SHAPES: dict[str, Callable[[float | None, int], nn.Module]] = {
    "plain": _plain,
    "branches": _Branches,
    "squeezed": _Shuffled,
    "sound": _sound,
    "table": _table,
}


# training ---------------------------------------------------------------------------------------


def data(seed: int, *, regression: bool = False) -> tuple[Any, Any]:
    """Images of 8x8 around one prototype a class, and their labels, or a smooth function."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.randn(CLASSES, 3, 8, 8, generator=generator)
    labels = torch.arange(SAMPLES) % CLASSES
    images = prototypes[labels] + 1.3 * torch.randn(SAMPLES, 3, 8, 8, generator=generator) + 1.5
    if not regression:
        return images, labels
    direction = torch.randn(192, 1, generator=generator) / 192**0.5
    projected = (images - 1.5).flatten(1) @ direction
    return images, projected * 2 + projected.square()


def train(
    model: nn.Module, images: Any, targets: Any, updates: int, rate: float, seed: int
) -> Iterator[int]:
    """A plain loop over shuffled mini-batches of 32; yields after every update."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    model.train()
    for update in range(updates):
        rows = torch.randperm(len(images), generator=generator)[:32]
        loss = _loss(model(images[rows]), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield update + 1


def _loss(outputs: Any, targets: Any) -> Any:
    if targets.is_floating_point():
        return F.mse_loss(outputs, targets)
    return F.cross_entropy(outputs, targets)


def _finish(steps: Iterator[int]) -> None:
    collections.deque(steps, maxlen=0)


# checkpoints ------------------------------------------------------------------------------------


def checkpoints(seeds: range) -> Iterator[Checkpoint]:
    """All that are tried; which of them are what they should be is decided by `truth`."""
    for seed, shape in itertools.product(seeds, SHAPES):
        images, labels = data(seed)
        batch = images[:64], labels[:64]

        def build(momentum: float | None, shape: str = shape, seed: int = seed) -> nn.Module:
            torch.manual_seed(seed)
            return SHAPES[shape](momentum, CLASSES)

        for momentum, updates in ((0.01, 40), (0.005, 60), (0.02, 40), (0.002, 120)):
            model = build(momentum)
            _finish(train(model, images, labels, updates, 5e-3, seed))
            name = f"{shape} momentum {momentum:g} updates {updates}"
            weight = (1.0 - momentum) ** updates
            yield Checkpoint("initial value", name, model, batch, weight)

        for momentum, calm, fast in ((0.02, 250, 25), (0.01, 460, 40), (None, 60, 60)):
            model = build(momentum)
            _finish(train(model, images, labels, calm, 2e-3, seed))
            _finish(train(model, images, labels, fast, 5e-2, seed + 1))
            yield Checkpoint("lag", f"{shape} momentum {momentum}", model, batch)

        model = build(0.1)
        average = copy.deepcopy(model)
        for update in train(model, images, labels, 150, 5e-3, seed):
            if update == 20:
                average = copy.deepcopy(model)
            with torch.no_grad():
                pairs = zip(average.parameters(), model.parameters(), strict=True)
                for mean, parameter in pairs:
                    mean.lerp_(parameter, 0.1)
        lost = build(0.1)
        lost.load_state_dict(dict(model.named_parameters()), strict=False)
        yield Checkpoint("lost", shape, lost, batch)
        yield Checkpoint("stale", f"{shape} averaged", average, batch)

        frozen = copy.deepcopy(model)
        kept = {key: value.clone() for key, value in frozen.named_buffers()}
        _finish(train(frozen, images, labels, 150, 1e-2, seed + 1))
        frozen.load_state_dict(kept, strict=False)
        yield Checkpoint("stale", f"{shape} trained on", frozen, batch)

        for scale, offset in ((8.0, 0.0), (0.2, 0.0), (1.0, -4.0)):
            other = batch[0] * scale + offset, batch[1]
            name = f"{shape} inputs x {scale:g} + {offset:g}"
            yield Checkpoint("other data", name, copy.deepcopy(model), other)

        for size in (64, 16):
            yield Checkpoint("healthy", f"{shape} {size}", copy.deepcopy(model), _rows(batch, size))
        table = data(seed, regression=True)
        torch.manual_seed(seed)
        regression = SHAPES[shape](0.1, 1)
        _finish(train(regression, *table, 400, 5e-3, seed))
        for size in (64, 8):
            name = f"{shape} regression {size}"
            yield Checkpoint("healthy", name, copy.deepcopy(regression), _rows(table, size))


def _rows(batch: tuple[Any, Any], size: int) -> tuple[Any, Any]:
    return batch[0][:size], batch[1][:size]


def truth(point: Checkpoint) -> bool:
    """Whether the checkpoint really is, or is not, at fault: measured without the plugin."""
    images, targets = point.batch
    with torch.no_grad():
        evaluated = copy.deepcopy(point.model).eval()(images)
        trained = copy.deepcopy(point.model).train()(images)
    if targets.is_floating_point():
        left = F.mse_loss(evaluated, targets) / targets.var()
        return bool(left < 0.1)
    right = [float((y.argmax(1) == targets).float().mean()) for y in (trained, evaluated)]
    drop = right[0] - right[1]
    return drop < 0.02 if point.cause == "healthy" else drop >= 0.1


# judging ----------------------------------------------------------------------------------------


def named(point: Checkpoint) -> tuple[str, float | None]:
    """The check's answer, and the weight of the initial value that it names."""
    report = check(point.model, point.batch, steps=0)
    errors = [finding for finding in report.findings if finding.severity == "error"]
    if not errors:
        return ("warning" if report.findings else "silent"), None
    first = errors[0]
    return first.code, first.evidence.get("initial_weight")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="one seed, one shape")
    options = parser.parse_args()
    matrix: dict[str, collections.Counter[str]] = {cause: collections.Counter() for cause in CAUSES}
    off: list[float] = []
    found = checkpoints(range(1 if options.smoke else options.seeds))
    for point in itertools.islice(found, 6 if options.smoke else None):
        if not truth(point):
            continue
        answer, weight = named(point)
        matrix[point.cause][answer] += 1
        if point.cause == "initial value" and weight is not None:
            off.append(abs(weight - point.weight))
        wrong = (answer == "BN101") != (point.cause == "initial value")
        if wrong or (point.cause == "healthy" and answer != "silent"):
            print(f"  {point.cause}: {point.name}: {answer}", flush=True)
    answers = sorted({answer for row in matrix.values() for answer in row})
    print(f"{'cause':<14}" + "".join(f"{answer:>9}" for answer in answers) + f"{'all':>9}")
    for cause, row in matrix.items():
        cells = "".join(f"{row[answer]:>9}" for answer in answers)
        print(f"{cause:<14}{cells}{row.total():>9}")
    if off:
        off.sort()
        print(
            f"weight of the initial value: off by {off[len(off) // 2]:.4f}, at most {off[-1]:.4f}"
        )
    return int(not options.smoke and not _holds(matrix))


def _holds(matrix: dict[str, collections.Counter[str]]) -> bool:
    initial, healthy = matrix["initial value"], matrix["healthy"]
    others = sum(row["BN101"] for cause, row in matrix.items() if cause != "initial value")
    errors = healthy.total() - healthy["silent"] - healthy["warning"]
    return (
        initial["BN101"] >= 0.95 * initial.total()
        and others == 0
        and errors == 0
        and healthy["warning"] <= 0.05 * healthy.total()
    )


if __name__ == "__main__":
    sys.exit(main())
