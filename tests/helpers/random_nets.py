"""Random small networks, their data, and the parts with which faults are built into them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

NORMS = (None, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CONVS = (None, nn.Conv1d, nn.Conv2d, nn.Conv3d)
POOLS = (None, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
STATISTICS = {"running_mean", "running_var"}


# parts ------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """x + body(x)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Twins(nn.Module):
    """The same body on two views of the input whose moments are alike."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.body(1.02 * x)


class Checkpointed(nn.Module):
    """Computes its body twice in training, to save memory."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.body, x, use_reentrant=False)


class AlwaysDropout(nn.Module):
    """Dropout that nobody switches off."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.3)


class OtherPath(nn.Module):
    """Reverses the features in eval mode only."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else x.flip(1)


class Shifts(nn.Module):
    """Moves the features in eval mode only, which batch statistics hide."""

    def __init__(self, mixed: float) -> None:
        super().__init__()
        self.mixed = mixed

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else x + self.mixed * x.roll(1, 1) + 3.0


class Counts(nn.Module):
    """Scales by a buffer that every pass changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return x * (1.0 + 0.1 * torch.cos(self.passes))


class Merges(nn.Module):
    """Computes something else for good once it was in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.merged = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            self.merged = True
            return x
        return x.flip(1) if self.merged else x


class TimeFirst(nn.Module):
    """(N, C, T) to (T, N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(2, 0, 1)


class Hidden(nn.Module):
    """Keeps its part where neither `train()` nor `eval()` reaches it."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.parts = [part]

    def forward(self, x: Tensor) -> Tensor:
        return self.parts[0](x)


class Poisoned(nn.Module):
    """Leaves an impossible number in the statistics of its layer."""

    def __init__(self, norm: Any, value: float) -> None:
        super().__init__()
        self.norm, self.value = norm, value

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        if self.training:
            self.norm.running_var.data[0] = self.value  # the graph is not to notice
        return x


class LosesUpdates(nn.Module):
    """Normalises like its layer, with copies of the statistics."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        kept = {name: getattr(self.norm, name).clone() for name in STATISTICS}
        x = self.norm(x)
        for name, value in kept.items():
            getattr(self.norm, name).data.copy_(value)
        return x


# nets -------------------------------------------------------------------------------------------


class Builder:
    """Draws one net: its shape, its blocks, its data."""

    def __init__(self, seed: int) -> None:
        self.seed, self.rng = seed, random.Random(seed)
        torch.manual_seed(seed)
        self.dims = self.rng.choice((0, 1, 2, 2, 3))
        self.classes = self.rng.randint(2, 5)
        self.samples = self.rng.choice((16, 24, 32) if self.dims < 2 else (8, 12, 16))
        self.channels = self.rng.choice((8, 12, 16))
        self.size = self.rng.choice((5, 6, 8)) if self.dims < 3 else 4
        self.task = self.rng.choice(("classes", "classes", "one column", "regression"))
        self.momentum: float | None = self.rng.choice((0.1, 0.1, 0.15, 0.2, 0.3))
        self.affine = 0.8
        self.by_hand: Callable[[int], nn.Module] | None = None
        self.alike = True

    def norm(self, channels: int) -> nn.Module:
        if self.by_hand:
            return self.by_hand(channels)
        return NORMS[max(self.dims, 1)](
            channels,
            eps=self.rng.choice((1e-5, 1e-5, 1e-3)),
            momentum=self.momentum,
            affine=self.rng.random() < self.affine,
        )

    def conv(self, inputs: int, outputs: int, *, kernel: int = 3, groups: int = 1) -> nn.Module:
        bias = self.rng.random() < 0.5
        if not self.dims:
            return nn.Linear(inputs, outputs, bias=bias)
        return CONVS[self.dims](
            inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=bias
        )

    def act(self) -> nn.Module:
        return self.rng.choice((nn.ReLU, nn.ReLU, nn.LeakyReLU, nn.GELU, nn.Tanh))()

    def plain(self, c: int) -> nn.Module:
        return nn.Sequential(self.conv(c, c), self.norm(c), self.act())

    def before(self, c: int) -> nn.Module:
        return nn.Sequential(self.norm(c), self.act(), self.conv(c, c))

    def depthwise(self, c: int) -> nn.Module:
        spread = self.conv(c, c, groups=c if self.dims else 1)
        mix = self.conv(c, c, kernel=1)
        return nn.Sequential(spread, self.norm(c), self.act(), mix, self.norm(c))

    def residual(self, c: int) -> nn.Module:
        return Residual(nn.Sequential(self.plain(c), self.conv(c, c), self.norm(c)))

    def grouped(self, c: int) -> nn.Module:
        return nn.Sequential(self.conv(c, c), nn.GroupNorm(4, c), self.act())

    def shared(self, c: int) -> nn.Module:
        body = self.plain(c)
        return Twins(body) if self.alike else body

    def blocks(self, *, kinds: tuple[str, ...] = ()) -> list[nn.Module]:
        """A stem and one to three blocks."""
        c = self.channels
        stem = nn.Sequential(self.conv(3 if self.dims else 10, c), self.norm(c), self.act())
        kinds = kinds or ("plain", "before", "depthwise", "residual", "grouped", "shared")
        drawn = [getattr(self, self.rng.choice(kinds))(c) for _ in range(self.rng.randint(1, 3))]
        return [stem, *drawn]

    def net(self, blocks: list[nn.Module], *, dropout: float = 0.0) -> nn.Module:
        outputs = self.classes if self.task == "classes" else 1
        pool = [POOLS[self.dims](1)] if self.dims else []
        head = [*pool, nn.Flatten(), nn.Dropout(dropout), nn.Linear(self.channels, outputs)]
        return nn.Sequential(*blocks, *head)

    def batch(self, samples: int | None = None) -> tuple[Tensor, Tensor]:
        """Clusters far from mean 0 and variance 1, one for each class."""
        count = samples or self.samples
        shape = (3, *[self.size] * self.dims) if self.dims else (10,)
        classes = 2 if self.task == "one column" else self.classes
        labels = torch.arange(count) % classes
        offset = self.rng.choice((-4.0, 3.0, 8.0))
        inputs = 2.0 * torch.randn(classes, *shape)[labels] + torch.randn(count, *shape) + offset
        if self.task == "classes":
            return inputs, labels
        targets = labels.float() if self.task == "one column" else (labels - labels.float().mean())
        return inputs, targets[:, None]

    def insert(self, part: nn.Module) -> nn.Module:
        """A net with a part between its blocks."""
        blocks = self.blocks()
        place = self.rng.randint(1, len(blocks))
        return self.net([*blocks[:place], part, *blocks[place:]])

    def replace(self, model: nn.Module, make: Callable[[Any], nn.Module]) -> str:
        """Put something else in the place of one norm; the name of the place."""
        name, norm = self.rng.choice(list(norms(model)))
        parent, _, key = name.rpartition(".")
        setattr(model.get_submodule(parent), key, make(norm))
        return name


def norms(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every layer with running statistics, by name."""
    return ((n, m) for n, m in model.named_modules() if hasattr(m, "running_mean"))
