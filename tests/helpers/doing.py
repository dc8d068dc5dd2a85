"""A module that does what a test asks for, and a batch, for tests of what is put back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

DICE = torch.Generator().manual_seed(0)
X = torch.randn(24, 4, generator=DICE) * 2 + 3
Y = (X[:, 0] > 3).long()


class Doing(nn.Module):
    """Does something in each forward."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Any) -> Any:
        self.act()
        return x
