"""Every form of a batch that the documentation lists for PyTorch is understood."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from input_forms import BOTH, TORCH, Form
from input_forms_page import ARRAYS, X, Y, compare, table, understood

TX, TY = torch.from_numpy(X), torch.from_numpy(Y)


class Net(nn.Module):
    """Learns in few steps, and its running statistics do not."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16, momentum=0.01), nn.ReLU())
        self.head = nn.Linear(16, outputs)
        with torch.no_grad():
            self.head.weight *= 0.1

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.body(image))


class TwoInputs(Net):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return super().forward((left + right) / 2)


class WithPadding(Net):
    def forward(self, image: Tensor) -> Tensor:
        return super().forward(torch.nan_to_num(image))


class OfGraphs(Net):
    def forward(self, data: Any) -> Tensor:
        return super().forward(data.x)


class OfNodes(Net):
    def forward(self, x: Tensor, edges: Tensor, weight: Tensor | None = None) -> Tensor:
        return super().forward(x)


class WithItsLoss(Net):
    def forward(self, x: Tensor, targets: Tensor | None = None) -> Any:
        logits = super().forward(x)
        return logits, None if targets is None else cross_entropy(logits, targets)


class TwoViews(Net):
    def forward(self, image: Tensor) -> Tensor:
        return super().forward(torch.cat([image, image + 0.1]))


class Detector(Net):
    """Returns losses in training mode and lists of boxes in eval mode."""

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        scores = super().forward(torch.stack(images))
        if self.training:
            return {"class": cross_entropy(scores, torch.stack([t["y"] for t in targets or []]))}
        return [{"scores": row} for row in scores]


class Segmenter(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(8, momentum=0.01)
        super().__init__(nn.Conv2d(1, 8, 1), norm, nn.ReLU(), nn.Conv2d(8, 1, 1))


class Graphs:
    """What libraries for graphs make of several of them; iterating gives its parts."""

    def __init__(self, **parts: Tensor) -> None:
        self.__dict__.update(parts)

    def __iter__(self) -> Any:
        return iter(self.__dict__.items())


@dataclasses.dataclass
class Samples:
    image: Tensor
    label: Tensor


Pair = collections.namedtuple("Pair", ["image", "label"])


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return iter(zip(TX, TY, strict=True))


class Steps:
    """A training step with its optimizer, for a batch that only it understands."""

    def __init__(self, loss: Any) -> None:
        self.loss, self.optimizer = loss, None

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        if self.optimizer is None:
            self.optimizer = torch.optim.Adam(model.parameters(), 0.1)
        self.optimizer.zero_grad()
        loss = self.loss(model, batch)
        loss.backward()
        self.optimizer.step()
        return loss


def energy(model: nn.Module, batch: Any) -> Tensor:
    inputs = batch if isinstance(batch, Tensor) else batch[0]
    return (model(inputs) - 1).pow(2).mean()


def names() -> dict[str, Any]:
    """What the rows use."""
    images = 3 + torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    return {
        **ARRAYS,
        "check": lambda *args, **options: ARRAYS["check"](*args, **{**OPTIMIZER, **options}),
        **{"net": Net, "two_inputs": TwoInputs, "with_padding": WithPadding},
        **{"of_graphs": OfGraphs, "of_nodes": OfNodes, "with_its_loss": WithItsLoss},
        **{"two_views": TwoViews, "detector": Detector, "segmenter": Segmenter},
        **{"tx": TX, "ty": TY, "images": images, "edges": torch.zeros(2, 5, dtype=torch.long)},
        **{"Graphs": Graphs, "Samples": Samples, "Pair": Pair, "DataLoader": DataLoader},
        **{"pairs": TensorDataset(TX, TY), "stream": Stream(), "step": Steps(energy)},
        "sum_up": Steps(lambda model, batch: sum(model(*batch).values())),
    }


OPTIMIZER = {"optimizer": lambda parameters: torch.optim.Adam(parameters, 0.1)}


@pytest.mark.parametrize("form", [*BOTH, *TORCH], ids=lambda form: form.what)
def test_is_understood(form: Form) -> None:
    understood(form, names())


def test_the_page_lists_them() -> None:
    compare("With PyTorch", table(BOTH, "PyTorch, Keras") + table(TORCH, "PyTorch"))
