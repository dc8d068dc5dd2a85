"""Designs of whole PyTorch models that look like faults and are none: no finding."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from pytest_bncheck import check
from torch_nets import (
    CLASSES,
    FAST,
    KIND,
    SEED,
    WIDTH,
    Net,
    data,
    passes,
    training_step,
)

IMAGES = pytest.mark.parametrize("kind", ["conv", "residual"])


# frozen on purpose -------------------------------------------------------------------------------


class FrozenBatchNorm(nn.Module):
    """Constants in place of batch normalisation, as detection models have them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0)):
            self.register_buffer(name, torch.full((channels,), value))
        self.register_buffer("running_var", torch.ones(channels))
        self.eps = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (x.dim() - 2))
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(shape) + shift.reshape(shape)


@KIND
@SEED
def test_frozen_batch_norm_without_a_momentum(kind, seed):
    passes(Net(kind, seed, norm=FrozenBatchNorm), data(kind, seed), seed=seed, steps=60)


class KeptInEval(nn.Module):
    """A pretrained backbone, frozen, that train() leaves in eval mode."""

    def __init__(self, kind: str, seed: int, override: bool) -> None:
        super().__init__()
        self.backbone, self.head = Net(kind, seed), nn.Linear(CLASSES, CLASSES)
        inputs, labels = (torch.from_numpy(array) for array in data(kind, seed + 10))
        step = training_step(FAST(self.backbone.parameters()))
        for _ in range(60):
            step(self.backbone, (inputs, labels))
        for parameter in self.backbone.parameters():
            parameter.requires_grad = False
        self.override = override
        self.train()
        self.backbone.eval()

    def train(self, mode: bool = True) -> KeptInEval:
        super().train(mode)
        if self.override:
            self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


@pytest.mark.parametrize("override", [True, False], ids=["train-override", "mixed-modes"])
@KIND
@SEED
def test_frozen_backbone_in_eval_mode(kind, seed, override):
    model = KeptInEval(kind, seed, override)
    report = passes(model, data(kind, seed), seed=seed, optimizer=partial(FAST, lr=0.1))
    assert report.predictions.gap == 0.0
    assert [layer.updates for layer in report.layers] == [0, 0]


# outputs and losses of their own -----------------------------------------------------------------


class Detector(Net):
    """Losses in training, boxes in eval mode."""

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Any:
        logits = self.classify(self.features(x))
        if self.training:
            return {"classes": F.cross_entropy(logits, targets), "size": logits.square().mean()}
        return [{"scores": row.softmax(0), "label": row.argmax()} for row in logits]


@pytest.mark.parametrize("norm", [None, FrozenBatchNorm], ids=["batch-norm", "frozen"])
@pytest.mark.parametrize("p", [0.0, 0.2])
@KIND
@SEED
def test_detector_with_a_training_step(kind, seed, norm, p):
    """Only the step knows the targets, without which the model does not train."""
    model = Detector(kind, seed, norm)
    model.head = nn.Sequential(nn.Dropout(p), model.head)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(model: nn.Module, batch: Any) -> Tensor:
        optimizer.zero_grad()
        loss = sum(model(batch[0], batch[1]).values())
        loss.backward()
        optimizer.step()
        return loss

    report = check(model, data(kind, seed), steps=150, seed=seed, train_step=step)
    assert not report.findings, str(report)


@KIND
def test_detector_with_a_forward_and_a_loss(kind):
    def loss(outputs: Any, targets: Any) -> Tensor:
        if isinstance(outputs, dict):
            return sum(outputs.values())
        scores = torch.stack([each["scores"] for each in outputs])
        return F.nll_loss(scores.log(), targets)

    def forward(model: nn.Module, batch: Any) -> Any:
        return model(batch[0], batch[1] if model.training else None)

    report = check(Detector(kind), data(kind), steps=150, loss=loss, forward=forward)
    assert not report.findings, str(report)


class Auxiliary(Net):
    """A second head whose output is returned in training only."""

    def __init__(self, kind: str, seed: int) -> None:
        super().__init__(kind, seed)
        self.second = nn.Linear(WIDTH, CLASSES)

    def classify(self, h: Tensor) -> Any:
        return (self.head(h), self.second(h)) if self.training else self.head(h)


@KIND
@SEED
def test_auxiliary_head(kind, seed):
    def loss(outputs: Any, targets: Any) -> Tensor:
        if isinstance(outputs, tuple):
            return sum(F.cross_entropy(each, targets) for each in outputs)
        return F.cross_entropy(outputs, targets)

    passes(Auxiliary(kind, seed), data(kind, seed), seed=seed, loss=loss, steps=250)


# weights computed anew ----------------------------------------------------------------------------

NORMED_WEIGHTS = {
    "spectral": parametrizations.spectral_norm,
    "weight": parametrizations.weight_norm,
    "old-spectral": nn.utils.spectral_norm,
    "old-weight": nn.utils.weight_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", NORMED_WEIGHTS)
@KIND
@SEED
def test_normed_weights(kind, seed, norm):
    model = Net(kind, seed)
    for block in model.blocks:
        block.layer = NORMED_WEIGHTS[norm](block.layer)
    passes(model, data(kind, seed), seed=seed, optimizer=FAST)


# attributes that only remember -------------------------------------------------------------------


class Remembering(Net):
    """Keeps what it saw last; training does not read it."""

    def classify(self, h: Tensor) -> Tensor:
        self.last_size, self.last_shape, self.last = len(h), h.shape, h.detach()
        if not self.training:
            self.predictions = getattr(self, "predictions", 0) + 1
        return self.head(h)


@KIND
@SEED
def test_attributes_that_only_remember(kind, seed):
    model = Remembering(kind, seed)
    model.predictions = 0
    passes(model, data(kind, seed), seed=seed)
    assert model.predictions == 0
    assert not hasattr(model, "last_shape")
