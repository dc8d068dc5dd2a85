"""Healthy architectures in PyTorch, re-implemented small: the designs of the field's model zoos."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 4


# parts ------------------------------------------------------------------------------------------


def conv(i: int, o: int, k: int = 3, s: int = 1, g: int = 1, act: Any = nn.ReLU) -> nn.Sequential:
    """Convolution, batch normalisation at PyTorch's defaults, activation."""
    parts = [nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*parts, *([act()] if act else []))


class Add(nn.Module):
    """x + body(x), with a projection where shapes differ, and stochastic depth."""

    def __init__(
        self,
        body: nn.Module,
        short: nn.Module | None = None,
        *,
        drop: float = 0.0,
        act: bool = True,
    ) -> None:
        super().__init__()
        self.body, self.short, self.drop, self.act = body, short, drop, act

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.training and self.drop:
            keep = torch.rand(len(y), *[1] * (y.dim() - 1), device=y.device) >= self.drop
            y = y * keep / (1.0 - self.drop)
        y = y + (x if self.short is None else self.short(x))
        return torch.relu(y) if self.act else y


class Cat(nn.Module):
    """Branches side by side, with or without the input."""

    def __init__(self, *branches: nn.Module, keep: bool = False) -> None:
        super().__init__()
        self.branches, self.keep = nn.ModuleList(branches), keep

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([*([x] if self.keep else []), *(b(x) for b in self.branches)], 1)


class Squeeze(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, max(c // 4, 4), 1), nn.ReLU(),
            nn.Conv2d(max(c // 4, 4), c, 1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        gated: Tensor = x * self.gate(x)
        return gated


class Shuffle(nn.Module):
    """Half of the channels goes through a branch, then the halves are mixed."""

    def __init__(self, c: int) -> None:
        super().__init__()
        h = c // 2
        self.branch = nn.Sequential(conv(h, h, 1), conv(h, h, 3, g=h, act=None), conv(h, h, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        y = torch.stack([a, self.branch(b)], 2)
        return y.flatten(1, 2)


class Norm2d(nn.LayerNorm):
    """Layer normalisation over channels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def head(c: int, *, dropout: float = 0.0) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(c, CLASSES)]


def residual(
    block: Callable[[int, int, int], nn.Module], depths: tuple[int, ...], width: int = 16,
    stem: nn.Module | None = None,
) -> nn.Sequential:  # fmt: skip
    """A stem, stages that halve the image and double the width, a head."""
    layers, c = [stem or conv(3, width, 3, 2)], width
    for stage, depth in enumerate(depths):
        for k in range(depth):
            o = width * 2**stage
            layers.append(block(c, o, 2 if stage and not k else 1))
            c = o
    return nn.Sequential(*layers, *head(c))


def _short(i: int, o: int, s: int) -> nn.Module | None:
    return None if i == o and s == 1 else conv(i, o, 1, s, act=None)


def basic(i: int, o: int, s: int) -> nn.Module:
    return Add(nn.Sequential(conv(i, o, 3, s), conv(o, o, act=None)), _short(i, o, s))


def bottleneck(i: int, o: int, s: int, *, g: int = 1, extra: Any = None) -> nn.Module:
    h = max(o // 2, 8)
    body = [conv(i, h, 1), conv(h, h, 3, s, g), conv(h, o, 1, act=None)]
    return Add(nn.Sequential(*body, *([extra(o)] if extra else [])), _short(i, o, s))


def zero_gamma(i: int, o: int, s: int) -> nn.Module:
    block = bottleneck(i, o, s)
    nn.init.zeros_(block.body[2][1].weight)  # type: ignore[index,arg-type,union-attr]
    return block


def preact(i: int, o: int, s: int) -> nn.Module:
    body = nn.Sequential(
        nn.BatchNorm2d(i), nn.ReLU(), nn.Conv2d(i, o, 3, s, 1, bias=False),
        nn.BatchNorm2d(o), nn.ReLU(), nn.Conv2d(o, o, 3, 1, 1, bias=False),
    )  # fmt: skip
    short = None if i == o and s == 1 else nn.Conv2d(i, o, 1, s, bias=False)
    return Add(body, short, act=False)


def inverted(
    i: int, o: int, s: int, *, act: Any = nn.ReLU6, gate: bool = False, drop: float = 0.0
) -> nn.Module:
    """MobileNetV2's block; with a gate EfficientNet's."""
    h = 4 * i
    body = [conv(i, h, 1, act=act), conv(h, h, 3, s, h, act=act)]
    body += [Squeeze(h)] if gate else []  # type: ignore[list-item]
    whole = nn.Sequential(*body, conv(h, o, 1, act=None))
    return Add(whole, drop=drop, act=False) if i == o and s == 1 else whole


def separable(i: int, o: int, s: int) -> nn.Module:
    return nn.Sequential(conv(i, i, 3, s, i), conv(i, o, 1))


def dense(c: int, layers: int, growth: int = 8) -> nn.Sequential:
    grown = [
        Cat(
            nn.Sequential(
                nn.BatchNorm2d(c + k * growth), nn.ReLU(),
                nn.Conv2d(c + k * growth, growth, 3, 1, 1, bias=False),
            ),
            keep=True,
        )
        for k in range(layers)
    ]  # fmt: skip
    return nn.Sequential(*grown)


class RepVGG(nn.Module):
    """Three parallel branches that are summed, not yet folded."""

    def __init__(self, i: int, o: int, s: int) -> None:
        super().__init__()
        self.three, self.one = conv(i, o, 3, s, act=None), conv(i, o, 1, s, act=None)
        self.same = nn.BatchNorm2d(i) if i == o and s == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.three(x) + self.one(x)
        return torch.relu(y if self.same is None else y + self.same(x))


class Res2(nn.Module):
    """Hierarchical groups."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.into, self.out = conv(c, c, 1), conv(c, c, 1, act=None)
        self.parts = nn.ModuleList(conv(c // 4, c // 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        a, *rest = self.into(x).chunk(4, 1)
        found, last = [a], a
        for part, piece in zip(self.parts, rest, strict=True):
            last = part(piece + last)
            found.append(last)
        return torch.relu(x + self.out(torch.cat(found, 1)))


class Ghost(nn.Module):
    """Half of the maps by a cheap operation on the other half."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.first, self.cheap = conv(i, o // 2, 1), conv(o // 2, o // 2, 3, g=o // 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return torch.cat([y, self.cheap(y)], 1)


class Pyramid(nn.Module):
    """Two resolutions that exchange features, as in HRNet."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.high, self.low = conv(c, c), conv(c, 2 * c, 3, 2)
        self.up, self.down = conv(2 * c, c, 1, act=None), conv(c, 2 * c, 3, 2, act=None)

    def forward(self, x: Tensor) -> Tensor:
        high, low = self.high(x), self.low(x)
        up = F.interpolate(self.up(low), size=high.shape[2:])
        low = torch.relu(low + self.down(high))
        return torch.relu(high + up) + F.interpolate(low.mean(1, keepdim=True), high.shape[2:])


class UNet(nn.Module):
    """A label for every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = conv(3, 16), conv(16, 32, 3, 2)
        self.up = nn.ConvTranspose2d(32, 16, 2, 2)
        self.out = nn.Sequential(conv(32, 16), nn.Conv2d(16, CLASSES, 1))

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        y: Tensor = self.out(torch.cat([a, self.up(self.down2(a))], 1))
        return y


class ASPP(nn.Module):
    """Segmentation with dilated branches and image pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 24, 3, 2), basic(24, 24, 1))
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(24, 12, 3, padding=d, dilation=d, bias=False), nn.BatchNorm2d(12),
                nn.ReLU(),
            )
            for d in (1, 2, 4)
        )  # fmt: skip
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, 12, 1), nn.ReLU())
        self.out = nn.Sequential(conv(48, 24, 1), nn.Dropout(0.1), nn.Conv2d(24, CLASSES, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        found = [branch(y) for branch in self.branches]
        pooled = self.pool(y).expand(-1, -1, *y.shape[2:])
        return F.interpolate(self.out(torch.cat([*found, pooled], 1)), size=x.shape[2:])


class Tokens(nn.Module):
    """A vision transformer, or a mixer over patches."""

    def __init__(self, size: int, *, mixer: bool = False) -> None:
        super().__init__()
        n = (size // 8) ** 2
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.place = nn.Parameter(0.02 * torch.randn(1, n, 32))
        layer = Mixer(n, 32) if mixer else nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.layers = nn.Sequential(layer, nn.LayerNorm(32))
        self.out = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.place
        y: Tensor = self.out(self.layers(tokens).mean(1))
        return y


class Mixer(nn.Module):
    def __init__(self, n: int, c: int) -> None:
        super().__init__()
        self.one, self.two = nn.LayerNorm(c), nn.LayerNorm(c)
        self.rows = nn.Sequential(nn.Linear(n, 2 * n), nn.GELU(), nn.Linear(2 * n, n))
        self.columns = nn.Sequential(nn.Linear(c, 2 * c), nn.GELU(), nn.Linear(2 * c, c))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.rows(self.one(x).transpose(1, 2)).transpose(1, 2)
        y: Tensor = x + self.columns(self.two(x))
        return y


class Levit(nn.Module):
    """Attention whose projections are followed by batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, 3, 2), conv(16, 32, 3, 2))
        self.qkv, self.norm = nn.Linear(32, 96, bias=False), nn.BatchNorm1d(96)
        self.out, self.last = nn.Linear(32, 32, bias=False), nn.BatchNorm1d(32)
        self.head = nn.Sequential(nn.BatchNorm1d(32), nn.Linear(32, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        t = self.stem(x).flatten(2).transpose(1, 2)
        b, n, c = t.shape
        q, k, v = self.norm(self.qkv(t).flatten(0, 1)).view(b, n, 3 * c).chunk(3, -1)
        y = F.scaled_dot_product_attention(q, k, v)
        t = t + self.last(self.out(y).flatten(0, 1)).view(b, n, c)
        found: Tensor = self.head(t.mean(1))
        return found


class Auxiliary(nn.Module):
    """Inception's second head, in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16, 3, 2)
        self.mixed = Cat(conv(16, 8, 1), conv(16, 8), conv(16, 8, 5))
        self.out = nn.Sequential(conv(24, 32, 3, 2), *head(32))
        self.aux = nn.Sequential(conv(24, 16, 1), *head(16))

    def forward(self, x: Tensor) -> Any:
        y = self.mixed(self.stem(x))
        return (self.out(y), self.aux(y)) if self.training else self.out(y)


class PointNet(nn.Module):
    """A shared perceptron over points, with a small transform net."""

    def __init__(self) -> None:
        super().__init__()

        def mlp(*w: int) -> nn.Sequential:
            rows = [
                layer
                for i, o in itertools.pairwise(w)
                for layer in (nn.Conv1d(i, o, 1), nn.BatchNorm1d(o), nn.ReLU())
            ]
            return nn.Sequential(*rows)

        self.align, self.turn = mlp(3, 16, 32), nn.Linear(32, 9)
        self.features = mlp(3, 32, 64)
        self.out = nn.Sequential(
            nn.Linear(64, 32),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(32, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)[:, :, :64]
        turn = self.turn(self.align(x).amax(2)).view(-1, 3, 3) + torch.eye(3)
        y: Tensor = self.out(self.features(turn @ x).amax(2))
        return y


class Recurrent(nn.Module):
    """Convolution, then an LSTM over columns."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, 3, 2), conv(16, 16, 3, 2))
        self.lstm = nn.LSTM(16, 32, batch_first=True, bidirectional=True)
        self.out = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.stem(x).mean(2).transpose(1, 2)
        y: Tensor = self.out(self.lstm(columns)[0].mean(1))
        return y


def _deep(d: int) -> nn.Sequential:
    c = 16
    layers: list[nn.Module] = [conv(3, c, 3, 2)]
    for _ in range(3):
        layers += [dense(c, d)]
        c += 8 * d
        layers += [nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, c // 2, 1), nn.AvgPool2d(2)]
        c //= 2
    return nn.Sequential(*layers, nn.BatchNorm2d(c), nn.ReLU(), *head(c))


def _vgg() -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, o in ((3, 16), (16, 32), (32, 64)):
        layers += [conv(i, o), conv(o, o), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 64),
                         nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, CLASSES))  # fmt: skip


def _efficient(drop: float) -> nn.Sequential:
    def block(i: int, o: int, s: int) -> nn.Module:
        return inverted(i, o, s, act=nn.SiLU, gate=True, drop=drop)

    return residual(block, (1, 2, 2), stem=conv(3, 16, 3, 2, act=nn.SiLU))


def _convmixer() -> nn.Sequential:
    c = 32
    stem = [nn.Conv2d(3, c, 4, 4), nn.GELU(), nn.BatchNorm2d(c)]
    blocks = [
        nn.Sequential(
            Add(
                nn.Sequential(
                    nn.Conv2d(c, c, 5, 1, 2, groups=c), nn.GELU(), nn.BatchNorm2d(c)
                ),
                act=False,
            ),
            nn.Conv2d(c, c, 1), nn.GELU(), nn.BatchNorm2d(c),
        )
        for _ in range(3)
    ]  # fmt: skip
    return nn.Sequential(*stem, *blocks, *head(c))


def _convnext() -> nn.Sequential:
    def block(c: int) -> nn.Module:
        body = [nn.Conv2d(c, c, 7, 1, 3, groups=c), Norm2d(c), nn.Conv2d(c, 4 * c, 1), nn.GELU()]
        return Add(nn.Sequential(*body, nn.Conv2d(4 * c, c, 1)), act=False, drop=0.1)

    return nn.Sequential(nn.Conv2d(3, 24, 4, 4), Norm2d(24), block(24), block(24), *head(24))


def _dcgan() -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 4, 2, 1), nn.LeakyReLU(0.2)]
    for i in (16, 32):
        layers += [nn.Conv2d(i, 2 * i, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * i)]
        layers += [nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, *head(64))


def _tabular() -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten(), nn.LazyBatchNorm1d()]
    for _ in range(2):
        layers += [nn.LazyLinear(64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.LazyLinear(CLASSES))


def _split(c: int) -> nn.Module:
    """A cross-stage partial block."""
    return nn.Sequential(Cat(conv(c, c // 2, 1), nn.Sequential(conv(c, c // 2, 1),
                         basic(c // 2, c // 2, 1))), conv(c, c, 1))  # fmt: skip


def _grouped() -> nn.Sequential:
    model = residual(basic, (2, 2))
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(4, child.num_features))
    return model


ZOO: dict[str, Callable[[int], nn.Module]] = {
    "ResNet-18": lambda size: residual(basic, (2, 2, 2, 2)),
    "ResNet-34": lambda size: residual(basic, (3, 4, 6, 3)),
    "ResNet-50": lambda size: residual(bottleneck, (3, 4, 6, 3)),
    "ResNet-50, zero gamma": lambda size: residual(zero_gamma, (3, 4, 6, 3)),
    "Wide ResNet": lambda size: residual(basic, (2, 2), 48),
    "ResNeXt": lambda size: residual(lambda i, o, s: bottleneck(i, o, s, g=4), (2, 3, 2)),
    "SE-ResNet": lambda size: residual(
        lambda i, o, s: bottleneck(i, o, s, extra=Squeeze), (2, 2, 2)
    ),
    "Pre-activation ResNet": lambda size: residual(preact, (2, 2, 2)),
    "RegNet": lambda size: residual(lambda i, o, s: bottleneck(i, o, s, g=2), (1, 3, 2), 24),
    "VGG, batch norm": lambda size: _vgg(),
    "DenseNet": lambda size: _deep(4),
    "Inception, two heads": lambda size: Auxiliary(),
    "MobileNetV1": lambda size: residual(separable, (2, 2, 2)),
    "MobileNetV2": lambda size: residual(inverted, (1, 2, 2)),
    "MobileNetV3": lambda size: residual(
        lambda i, o, s: inverted(i, o, s, act=nn.Hardswish, gate=True), (1, 2, 2)
    ),
    "MnasNet": lambda size: residual(lambda i, o, s: inverted(i, o, s, act=nn.ReLU), (2, 3)),
    "EfficientNet": lambda size: _efficient(0.0),
    "EfficientNet, stochastic depth": lambda size: _efficient(0.2),
    "ShuffleNet": lambda size: nn.Sequential(conv(3, 32, 3, 2), *(Shuffle(32) for _ in range(3)),
                                             *head(32)),
    "GhostNet": lambda size: nn.Sequential(conv(3, 16, 3, 2), Ghost(16, 32), Ghost(32, 32),
                                           *head(32, dropout=0.2)),
    "SqueezeNet, batch norm": lambda size: nn.Sequential(
        conv(3, 32, 3, 2), conv(32, 8, 1), Cat(conv(8, 16, 1), conv(8, 16)), *head(32)
    ),
    "Res2Net": lambda size: nn.Sequential(conv(3, 32, 3, 2), Res2(32), Res2(32), *head(32)),
    "RepVGG": lambda size: residual(RepVGG, (2, 2, 2)),
    "CSPNet": lambda size: nn.Sequential(conv(3, 32, 3, 2, act=nn.SiLU), _split(32), _split(32),
                                         *head(32)),
    "HRNet": lambda size: nn.Sequential(conv(3, 16, 3, 2), Pyramid(16), Pyramid(16), *head(16)),
    "ConvMixer": lambda size: _convmixer(),
    "ConvNeXt": lambda size: _convnext(),
    "ResNet, group norm": lambda size: _grouped(),
    "Vision transformer": lambda size: Tokens(size),
    "MLP-Mixer": lambda size: Tokens(size, mixer=True),
    "LeViT": lambda size: Levit(),
    "U-Net": lambda size: UNet(),
    "DeepLab": lambda size: ASPP(),
    "PointNet": lambda size: PointNet(),
    "CRNN": lambda size: Recurrent(),
    "DCGAN's discriminator": lambda size: _dcgan(),
    "Tabular perceptron": lambda size: _tabular(),
}  # fmt: skip
PIXELS = {"U-Net", "DeepLab"}
"""They label every pixel."""


def build(name: str, size: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return ZOO[name](size)


def data(name: str, size: int, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise around a picture for each of four classes."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % CLASSES
    coarse = torch.randn(CLASSES, 3, 4, 4, generator=rng)
    pictures = F.interpolate(coarse, size=size, mode="bilinear")
    images = pictures[labels] + 0.5 * torch.randn(samples, 3, size, size, generator=rng)
    if name in PIXELS:
        return images, pictures[labels].sum(1).gt(0).long() + pictures[labels][:, 0].gt(0).long()
    return images, labels


def loss(outputs: Any, targets: Tensor) -> Tensor:
    """Cross-entropy; of the second head a part."""
    if isinstance(outputs, tuple):
        return F.cross_entropy(outputs[0], targets) + 0.3 * F.cross_entropy(outputs[1], targets)
    return F.cross_entropy(outputs, targets)
