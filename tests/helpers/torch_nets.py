"""Small PyTorch networks of three shapes, into which the tests build their faults."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common_nets import CLASSES as CLASSES
from common_nets import SEED as SEED
from common_nets import Batch, blobs, silent, waves
from common_nets import line as line
from common_nets import sole as sole
from pytest_bncheck import check

KINDS = ("mlp", "conv", "residual")
KIND = pytest.mark.parametrize("kind", KINDS)
WIDTH = 16
NORMS = ["blocks.0.norm", "blocks.1.norm"]

torch.set_num_threads(1)

FAST = partial(torch.optim.Adam, lr=1e-2)

Norm = Callable[[int], nn.Module]


def batch_norm(kind: str, **options: Any) -> Norm:
    """The usual normalisation of a kind of network."""
    return partial(nn.BatchNorm1d if kind == "mlp" else nn.BatchNorm2d, **options)


class Block(nn.Module):
    """Weights, normalisation, ReLU; with a way around them in a residual network."""

    def __init__(self, kind: str, norm: nn.Module) -> None:
        super().__init__()
        self.layer: nn.Module = (
            nn.Linear(WIDTH, WIDTH) if kind == "mlp" else nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        )
        self.norm, self.around = norm, kind == "residual"

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.layer(x)))
        return x + h if self.around else h


class Net(nn.Module):
    """A stem, two blocks, pooling, a linear classifier; faults override one of its parts."""

    def __init__(
        self, kind: str = "mlp", seed: int = 0, norm: Norm | None = None, **options: Any
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem: nn.Module = (
            nn.Linear(20, WIDTH) if kind == "mlp" else nn.Conv2d(3, WIDTH, 3, padding=1)
        )
        make = norm or batch_norm(kind, **options)
        self.blocks = nn.ModuleList([Block(kind, make(WIDTH)) for _ in range(2)])
        self.head = nn.Linear(WIDTH, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        """One row of numbers for each sample."""
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return x.flatten(2).mean(2) if x.dim() > 2 else x

    def classify(self, h: Tensor) -> Tensor:
        """Logits from features."""
        logits: Tensor = self.head(h)
        return logits

    def forward(self, x: Tensor) -> Any:
        return self.classify(self.features(x))


def data(kind: str, seed: int = 0, samples: int = 32, contrast: float = 1.0) -> Batch:
    """Blobs, or small images of four patterns, channels first."""
    return blobs(seed, samples) if kind == "mlp" else waves(seed, samples, contrast)


def mini_batches(kind: str, seed: int = 0, count: int = 8, samples: int = 8) -> list[Any]:
    """The samples of one batch as several, shuffled."""
    inputs, labels = data(kind, seed, count * samples)
    order = np.random.default_rng(seed).permutation(len(labels))
    return [(inputs[part], labels[part]) for part in np.split(order, count)]


def training_step(optimizer: torch.optim.Optimizer) -> Callable[[nn.Module, Any], Tensor]:
    """The usual training step."""

    def step(model: nn.Module, batch: Any) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return loss

    return step


def passes(model: nn.Module, batch: Any, **options: Any) -> Any:
    """The report of a check that has nothing to say."""
    report = check(model, batch, **{"steps": 150, **options})
    silent(report)
    assert report.verdict == "pass"
    return report
