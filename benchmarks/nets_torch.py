"""Small PyTorch nets of three shapes, their data and optimizers, and the work by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

MOMENTA = (0.01, 0.02, 0.05)
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "adam": lambda params: torch.optim.Adam(params, lr=3e-3),
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
}


def data(seed: int) -> tuple[Any, Any]:
    """16 images of noise, 4 classes."""
    rng = np.random.default_rng(seed)
    images = rng.normal(0.5, 1.5, (16, 3, 14, 14)).astype("float32")
    return torch.from_numpy(images), torch.arange(16) % 4


def build(shape: str, momentum: float, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return SHAPES[shape](momentum)


def deep(layers: int, seed: int) -> nn.Module:
    """A residual net with about so many normalisation layers, at a momentum of 0.01."""
    torch.manual_seed(seed)
    return Residual(0.01, blocks=layers // 2)


def momentum(rate: float) -> float:
    """The framework's momentum for an update rate."""
    return rate


class ByHand:
    """A trained model with frozen weights, as a user would look at it without the plugin."""

    def __init__(self, model: nn.Module, batch: tuple[Any, Any]) -> None:
        self._model, self._images = model, batch[0]

    @contextmanager
    def restored(self) -> Iterator[ByHand]:
        """The model ends as it began."""
        saved = {key: value.clone() for key, value in self._model.state_dict().items()}
        try:
            yield self
        finally:
            self._model.load_state_dict(saved)

    def update(self, times: int) -> None:
        """More updates of the running statistics."""
        self._model.train()
        with torch.no_grad():
            for _ in range(times):
                self._model(self._images)

    def predict(self, training: bool) -> np.ndarray:
        self._model.train(training)
        with self.restored(), torch.no_grad():
            return self._model(self._images).double().numpy()

    def recalibrate(self) -> None:
        torch.optim.swa_utils.update_bn([self._images], self._model)


def _conv(inputs: int, outputs: int, momentum: float, groups: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, momentum=momentum),
    )


class Residual(nn.Module):
    def __init__(self, momentum: float, blocks: int = 3, width: int = 12) -> None:
        super().__init__()
        self.stem = _conv(3, width, momentum)
        self.blocks = nn.ModuleList(
            nn.Sequential(_conv(width, width, momentum), nn.ReLU(), _conv(width, width, momentum))
            for _ in range(blocks)
        )
        self.head = nn.Linear(width, 4)

    def forward(self, images: Any) -> Any:
        x = torch.relu(self.stem(images))
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.head(x.mean(dim=(2, 3)))


def _plain(momentum: float) -> nn.Module:
    widths = (3, 12, 12, 16, 16)
    layers = [
        layer
        for inputs, outputs in itertools.pairwise(widths)
        for layer in (_conv(inputs, outputs, momentum), nn.ReLU())
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


def _depthwise(momentum: float) -> nn.Module:
    layers: list[nn.Module] = [_conv(3, 12, momentum), nn.ReLU6()]
    for _ in range(2):
        pointwise = nn.Sequential(
            nn.Conv2d(12, 12, 1, bias=False), nn.BatchNorm2d(12, momentum=momentum)
        )
        layers += [_conv(12, 12, momentum, groups=12), nn.ReLU6(), pointwise, nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))


SHAPES: dict[str, Callable[[float], nn.Module]] = {
    "plain": _plain,
    "residual": Residual,
    "depthwise": _depthwise,
}
