"""PyTorch faults that show in eval mode: what is random, what looks across the batch, and where."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn
from torch.nn import functional as F

from pytest_bncheck import check
from torch_nets import (
    CLASSES,
    FAST,
    KIND,
    NORMS,
    SEED,
    WIDTH,
    Net,
    data,
    line,
    sole,
    training_step,
)

RANDOM = "intended: stochastic-eval"


# BN303 and BN304: eval mode looks at the batch, or writes ----------------------------------------


class BatchStatistics(nn.Module):
    """A normalisation that is told to train in every mode."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, training=True)


class WithoutBuffers(nn.Module):
    """Batch statistics by hand."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        axes = [axis for axis in range(x.dim()) if axis != 1]
        mean, var = x.mean(axes, keepdim=True), x.var(axes, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt()


@KIND
@SEED
def test_no_running_statistics(kind, seed):
    model = Net(kind, seed, track_running_stats=False)
    report = check(model, data(kind, seed), steps=60, seed=seed)
    finding = sole(report, "BN303")
    assert finding.layers == NORMS
    assert "F.batch_norm(" in finding.message
    assert "training=True" in finding.message
    assert report.predictions.gap == 0.0


@KIND
@SEED
def test_training_hard_wired(kind, seed):
    """The buffers move in eval mode too, which is the same fault and is said once."""
    report = check(Net(kind, seed, norm=BatchStatistics), data(kind, seed), steps=60, seed=seed)
    finding = sole(report, "BN303")
    assert finding.layers == NORMS
    text = "return F.batch_norm(x, self.running_mean, self.running_var, training=True)"
    assert line(__file__, text) in finding.message


@KIND
@SEED
def test_batch_statistics_by_hand(kind, seed):
    report = check(Net(kind, seed, norm=WithoutBuffers), data(kind, seed), steps=60, seed=seed)
    sole(report, "BN303")


@pytest.mark.parametrize("norm", [BatchStatistics, WithoutBuffers])
@KIND
def test_batch_statistics_on_purpose(kind, norm):
    report = check(
        Net(kind, norm=norm), data(kind), steps=60, intended=["batch-statistics-in-eval"]
    )
    assert not report.findings, str(report)
    reasons = {each.reason for each in report.suppressed}
    assert reasons == {"intended: batch-statistics-in-eval"}


class Counting(Net):
    """Subtracts an average of its features that predictions move too."""

    def __init__(self, kind: str, seed: int) -> None:
        super().__init__(kind, seed)
        self.register_buffer("centre", torch.zeros(WIDTH))

    def classify(self, h: Tensor) -> Tensor:
        self.centre.lerp_(h.detach().mean(0), 0.1)
        return self.head(h - self.centre)


@KIND
@SEED
def test_buffer_that_predictions_change(kind, seed):
    report = check(Counting(kind, seed), data(kind, seed), steps=150, seed=seed)
    finding = sole(report, "BN304")
    assert "centre" in finding.message
    assert finding.evidence["state"] == ["centre"]


# BN305: eval mode in training --------------------------------------------------------------------


@KIND
@SEED
def test_step_that_validates_and_stays_in_eval_mode(kind, seed):
    """Only the first of all steps trains."""
    model = Net(kind, seed)
    usual = training_step(torch.optim.Adam(model.parameters(), lr=1e-3))

    def step(model: nn.Module, batch: Any) -> Tensor:
        loss = usual(model, batch)
        model.eval()
        with torch.no_grad():
            model(batch[0])
        return loss

    report = check(model, data(kind, seed), steps=60, seed=seed, train_step=step)
    finding = sole(report, "BN305")
    assert finding.layers == NORMS
    assert "model.train()" in finding.remedy
    assert "1 of " in finding.cause


@KIND
@SEED
def test_step_that_never_trains(kind, seed):
    model = nn.Sequential(Net(kind, seed), nn.Dropout(0.1))
    usual = training_step(torch.optim.Adam(model.parameters(), lr=1e-3))

    def step(model: nn.Module, batch: Any) -> Tensor:
        model.eval()
        return usual(model, batch)

    report = check(model, data(kind, seed), steps=60, seed=seed, train_step=step)
    finding = sole(report, "BN305")
    assert finding.layers == [*(f"0.{name}" for name in NORMS), "1"]


@KIND
@SEED
def test_step_that_freezes_one_layer_by_mistake(kind, seed):
    model = Net(kind, seed)
    usual = training_step(torch.optim.Adam(model.parameters(), lr=1e-3))

    def step(model: nn.Module, batch: Any) -> Tensor:
        model.blocks[1].eval()
        return usual(model, batch)

    report = check(model, data(kind, seed), steps=150, seed=seed, train_step=step)
    assert sole(report, "BN305").layers == ["blocks.1.norm"]


class Pretrained(nn.Module):
    """A backbone that arrives in eval mode, with dropout, under a head of its own."""

    def __init__(self, kind: str, seed: int, trains: bool = True) -> None:
        super().__init__()
        self.backbone = nn.Sequential(Net(kind, seed), nn.Dropout(0.3))
        self.head = nn.Linear(CLASSES, CLASSES)
        self.backbone.eval()
        self.backbone.requires_grad_(trains)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(x))
        return logits


@KIND
@SEED
def test_loaded_backbone_in_eval_mode_that_trains(kind, seed):
    """The model's own flag looks right; the modes are kept, as by a trainer that restores them."""
    report = check(Pretrained(kind, seed), data(kind, seed), steps=100, seed=seed)
    finding = sole(report, "BN305")
    assert finding.severity == "warning"
    assert finding.layers == [*(f"backbone.0.{name}" for name in NORMS), "backbone.1"]
    assert report.ok


@KIND
def test_backbone_in_eval_mode_that_is_frozen_or_has_frozen_norms_only(kind):
    frozen = Pretrained(kind, 0, trains=False)
    norms = Net(kind, 0)
    for name in NORMS:
        norms.get_submodule(name).eval()
    for model in (frozen, norms):
        report = check(model, data(kind, 0), steps=100)
        assert "BN305" not in [finding.code for finding in report.findings]


@KIND
def test_step_in_eval_mode_on_purpose(kind):
    model = Net(kind)
    usual = training_step(torch.optim.Adam(model.parameters(), lr=1e-3))

    def step(model: nn.Module, batch: Any) -> Tensor:
        model.eval()
        return usual(model, batch)

    report = check(model, data(kind), steps=60, train_step=step, intended=["frozen-batchnorm"])
    assert "BN305" in [each.code for each in report.suppressed]
    assert not {"BN103", "BN305"} & {finding.code for finding in report.findings}


# BN306: an eval pass changes training ------------------------------------------------------------


class Sticky(Net):
    """A rate of dropout that the first prediction sets to 0."""

    def __init__(self, kind: str, seed: int) -> None:
        super().__init__(kind, seed)
        self.rate = 0.3

    def classify(self, h: Tensor) -> Tensor:
        if not self.training:
            self.rate = 0.0
        return self.head(F.dropout(h, self.rate, self.training))


@KIND
@SEED
def test_rate_that_a_prediction_sets_to_zero(kind, seed):
    report = check(Sticky(kind, seed), data(kind, seed), steps=150, seed=seed)
    finding = sole(report, "BN306")
    assert finding.severity == "warning"
    assert "rate" in finding.message
    assert finding.evidence["attributes"] == ["rate"]


@KIND
def test_sticky_attribute_of_a_child_is_named_by_its_path(kind):
    model = nn.Sequential(nn.Identity(), Sticky(kind, 0))
    finding = sole(check(model, data(kind), steps=150), "BN306")
    assert finding.evidence["attributes"] == ["1.rate"]


# BN201: another path in eval mode ----------------------------------------------------------------


class Adapted(nn.Module):
    """A linear layer with an adapter that eval() merges; parents never call that."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.merged = base, False
        self.a = nn.Parameter(torch.randn(2, base.in_features))
        self.b = nn.Parameter(torch.zeros(base.out_features, 2))

    def eval(self) -> Adapted:
        super().eval()
        if not self.merged:
            self.base.weight.data += self.b @ self.a
            self.merged = True
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return y + x @ self.a.T @ self.b.T if self.training else y


class Scaled(Net):
    def classify(self, h: Tensor) -> Tensor:
        logits = self.head(h)
        return logits.flip(1) if not self.training else logits


@KIND
@SEED
def test_adapter_merged_in_eval(kind, seed):
    model = Net(kind, seed)
    model.head = Adapted(model.head)
    report = check(model, data(kind, seed), steps=150, seed=seed, optimizer=FAST)
    finding = sole(report, "BN201")
    assert finding.evidence["by"] == "training path"
    assert finding.evidence["gap"] > 0.01


@KIND
@SEED
def test_other_classes_in_eval_mode(kind, seed):
    report = check(Scaled(kind, seed), data(kind, seed), steps=150, seed=seed)
    assert sole(report, "BN201").severity == "error"


@KIND
def test_other_path_on_purpose(kind):
    report = check(Scaled(kind), data(kind), steps=150, intended=["mode-dependent-path"])
    assert not report.findings, str(report)
    assert [each.code for each in report.suppressed] == ["BN201"]


@pytest.mark.parametrize("kind", ["conv", "residual"])
@SEED
def test_instance_norm_that_tracks(kind, seed):
    """Images of different contrast: one average for all of them fits none."""
    inputs, labels = data(kind, seed)
    contrast = np.geomspace(0.2, 5.0, len(inputs)).astype("float32")
    images = inputs * contrast[:, None, None, None]
    norm = partial(nn.InstanceNorm2d, affine=True, track_running_stats=True)
    model = Net(kind, seed, norm=norm)
    report = check(model, (images, labels), steps=150, seed=seed, optimizer=FAST)
    finding = sole(report, "BN201")
    assert set(finding.layers) == set(NORMS)
    assert "track_running_stats=False" in finding.remedy


# BN201 beside random numbers of the model's own code ----------------------------------------------

DRAWS = {
    "dropout": lambda h, training: F.dropout(h, 0.1, training),
    "noise": lambda h, training: h + 0.01 * torch.randn_like(h) if training else h,
    "numbers of numpy": lambda h, training: h * (1 + 0.01 * np.random.randn()) if training else h,
    "unused": lambda h, training: (h, torch.rand(1))[0] if training else h,
}


class Drawing(nn.Module):
    """Draws in training; with `fault`, eval mode turns the sign of what is inside."""

    def __init__(self, draw: Any, norm: bool, fault: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 32), nn.Linear(32, CLASSES)
        self.norm = nn.BatchNorm1d(32) if norm else nn.Identity()
        self.draw, self.fault = draw, fault

    def forward(self, x: Tensor) -> Tensor:
        inside = self.draw(self.norm(self.first(x)).relu(), self.training)
        return self.last(-inside if self.fault and not self.training else inside)


def _drawing(draw: str, norm: bool, seed: int, fault: bool) -> Any:
    torch.manual_seed(seed)
    x = torch.randn(64, 8)
    y = (x @ torch.randn(8, CLASSES)).argmax(1)
    return check(Drawing(DRAWS[draw], norm, fault), (x, y), steps=80, optimizer=FAST, seed=seed)


@pytest.mark.parametrize("norm", [False, True], ids=["no norm", "norm"])
@pytest.mark.parametrize("draw", DRAWS)
@SEED
def test_random_numbers_hide_no_other_path(draw, norm, seed):
    finding = sole(_drawing(draw, norm, seed, fault=True), "BN201")
    assert finding.severity == "error"


@pytest.mark.parametrize("norm", [False, True], ids=["no norm", "norm"])
@pytest.mark.parametrize("draw", DRAWS)
@SEED
def test_random_numbers_are_no_other_path(draw, norm, seed):
    report = _drawing(draw, norm, seed, fault=False)
    assert report.ok
    assert "BN201" not in {finding.code for finding in report.findings}


class Unscaled(nn.Module):
    """Dropout without 1/(1-p)."""

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.first, self.last, self.scaled = nn.Linear(8, 64), nn.Linear(64, 1), scaled

    def forward(self, x: Tensor) -> Tensor:
        inside = self.first(x).relu()
        if self.training:
            inside = inside * (torch.rand_like(inside) > 0.5) * (2.0 if self.scaled else 1.0)
        return self.last(inside)


@pytest.mark.parametrize("scaled", [False, True])
@SEED
def test_dropout_that_does_not_scale(scaled, seed):
    torch.manual_seed(seed)
    x = 2 * torch.randn(64, 8)
    batch = x, x[:, :1] * 2 + 5
    report = check(Unscaled(scaled), batch, steps=150, optimizer=FAST, seed=seed, loss=F.mse_loss)
    if scaled:
        assert report.ok
    else:
        sole(report, "BN201")
