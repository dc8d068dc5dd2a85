"""A small PyTorch classifier and its data, around which tests put code as users write it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def data(n: int = 16) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(n) % 4
    return torch.randn(n, 6, generator=generator) + labels.unsqueeze(1), labels


class Net(nn.Module):
    """A small classifier whose argument is called `image`."""

    def __init__(self, momentum: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, momentum=momentum), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, image: Any) -> Any:
        return self.head(self.body(image))
