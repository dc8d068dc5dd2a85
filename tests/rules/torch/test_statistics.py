"""Reported faults of running statistics in PyTorch, each on several networks and seeds."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn

from common_nets import silent
from pytest_bncheck import check
from torch_nets import (
    CLASSES,
    FAST,
    KIND,
    NORMS,
    SEED,
    WIDTH,
    Net,
    batch_norm,
    data,
    mini_batches,
    sole,
)


@KIND
@SEED
def test_slow_average(kind, seed):
    """A momentum carried over from Keras's convention, and few steps."""
    model = Net(kind, seed, momentum=0.01)
    report = check(model, data(kind, seed, contrast=0.1), steps=30, seed=seed, optimizer=FAST)
    finding = sole(report, "BN101")
    assert finding.severity == "error"
    assert report.verdict == "fail"
    assert sorted(finding.layers) == NORMS
    assert "30 updates at momentum 0.01" in finding.cause
    assert "74.0 %" in finding.cause


@KIND
@SEED
def test_slow_average_of_one_layer_names_that_layer(kind, seed):
    model = Net(kind, seed)
    model.blocks[1].norm.momentum = 0.001
    report = check(model, data(kind, seed), steps=60, seed=seed, optimizer=FAST)
    finding = sole(report, "BN101")
    assert finding.layers == ["blocks.1.norm"]
    assert "momentum 0.001" in finding.cause


@KIND
@SEED
def test_average_that_trails_fast_weights(kind, seed):
    """A cumulative average over weights that move fast."""
    model = Net(kind, seed, momentum=None)
    report = check(model, data(kind, seed), steps=40, seed=seed, optimizer=partial(FAST, lr=2e-2))
    finding = sole(report, "BN102")
    assert set(finding.layers) <= set(NORMS)
    assert finding.layers
    assert "cumulative average" in finding.cause


@pytest.mark.parametrize("way", ["unused", "frozen"])
@SEED
def test_a_layer_without_updates_does_not_change_the_cause(way, seed):
    """It keeps its initial value, and nobody suffers from that."""
    model = Net("mlp", seed)
    extra = nn.BatchNorm1d(WIDTH)
    if way == "frozen":
        model.blocks.insert(1, nn.Sequential(extra.eval().requires_grad_(False)))
    else:
        model.unused = extra
    report = check(model, data("mlp", seed), steps=50, seed=seed, optimizer=partial(FAST, lr=2e-2))
    if report.predictions.gap <= 0.1:  # nothing to explain
        silent(report)
        return
    finding = sole(report, "BN102")
    assert finding.evidence["largest_initial_weight"] < 0.01


@pytest.mark.parametrize("momentum", [0.9, 0.99, 0.999])
@KIND
@SEED
def test_momentum_of_the_other_convention(kind, seed, momentum):
    model = Net(kind, seed, momentum=momentum)
    report = check(model, data(kind, seed), steps=150, seed=seed)
    finding = sole(report, "BN104")
    assert finding.severity == "warning"
    assert report.verdict == "warn"
    assert finding.layers == NORMS
    assert f"Was {1 - momentum:g} meant?" in finding.remedy


@KIND
@SEED
def test_momentum_of_the_other_convention_in_a_stream(kind, seed):
    model = Net(kind, seed, momentum=0.99)
    report = check(model, batches=mini_batches(kind, seed), steps=80, seed=seed)
    *worse, finding = report.findings
    assert finding.code == "BN104"
    losses = finding.evidence["eval_losses"]
    assert len(losses) == 8
    assert f"from {min(losses):.2g} to {max(losses):.2g}" in finding.message
    for each in worse:  # where eval mode decides worse, for no other reason
        assert each.code == "BN102"
        assert "the last mini-batch makes 99 %" in each.cause


@KIND
def test_momentum_one_keeps_the_last_batch_only(kind):
    report = check(Net(kind, momentum=1.0), data(kind), steps=150)
    finding = sole(report, "BN104")
    assert "100 %" in finding.message
    assert "more than one batch" in finding.remedy


@KIND
@SEED
def test_momentum_zero_never_updates(kind, seed):
    model = Net(kind, seed, momentum=0.0)
    report = check(model, data(kind, seed), steps=60, seed=seed, optimizer=FAST)
    finding = sole(report, "BN103")
    assert finding.severity == "error"
    assert finding.layers == NORMS
    assert "At momentum 0 a batch has no weight" in finding.cause
    assert "blocks.0.norm" in finding.cause


@pytest.mark.parametrize("steps", [30, 150])
@KIND
@SEED
def test_statistics_in_bfloat16_are_rounded_away(kind, seed, steps):
    """At a small momentum a variance never leaves 1, however long the training."""
    model = Net(kind, seed, momentum=0.001).bfloat16()
    report = check(model, data(kind, seed), steps=steps, seed=seed, optimizer=FAST)
    finding = sole(report, "BN103")
    assert "bfloat16" in finding.cause
    assert "float32" in finding.remedy
    assert finding.layers == NORMS


@KIND
def test_statistics_that_fit_already_do_not_change(kind):
    """A normalisation of the inputs, converged to the last bit, is no fault."""
    features = 20 if kind == "mlp" else 3
    model = nn.Sequential(batch_norm(kind)(features), Net(kind))
    check(model, data(kind), steps=400, restore=False)
    codes = [finding.code for finding in check(model, data(kind), steps=50).findings]
    assert "BN103" not in codes


class Detached(nn.Module):
    """Normalises by itself; in training it updates a copy of its statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.momentum = 0.1

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean.clone(), self.running_var.clone()
        return torch.nn.functional.batch_norm(
            x, mean, var, training=self.training, momentum=self.momentum
        )


@KIND
@SEED
def test_update_of_a_copy(kind, seed):
    report = check(Net(kind, seed, norm=Detached), data(kind, seed), steps=60, seed=seed)
    finding = sole(report, "BN103")
    assert finding.layers == NORMS
    assert "written to a copy" in finding.cause


@KIND
@SEED
def test_update_undone_after_each_step(kind, seed):
    """Statistics that a training step loads back from an older state."""
    model = Net(kind, seed)
    optimizer = FAST(model.parameters())
    old = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def step(model: nn.Module, batch: Any) -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        model.load_state_dict({**model.state_dict(), **old})
        return loss

    report = check(model, data(kind, seed), steps=40, seed=seed, train_step=step)
    finding = sole(report, "BN103")
    assert finding.layers == NORMS
    assert "undone" in finding.cause


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@KIND
@SEED
def test_poisoned_statistics(kind, seed, value):
    """One forward pass on a sample that is not finite; training recovers, the buffers do not."""
    model, (inputs, labels) = Net(kind, seed), data(kind, seed)
    corrupt = torch.from_numpy(inputs).clone()
    corrupt[0, 0] = value
    with torch.no_grad():
        model(corrupt)
    report = check(model, (inputs, labels), steps=40, seed=seed)
    finding = sole(report, "BN105")
    assert sorted(finding.layers) == NORMS
    assert "blocks.0.norm" in finding.message


class Pooled(nn.Module):
    """A convolution, pooling, then normalisation of one row a sample."""

    def __init__(self, seed: int, norm: Callable[[int], nn.Module] = nn.BatchNorm1d) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, WIDTH, 3)
        self.hidden, self.norm = nn.Linear(WIDTH, WIDTH), norm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.conv(x)).mean((2, 3))
        return self.head(torch.relu(self.norm(self.hidden(h))))


class OwnNorm(nn.Module):
    """Batch normalisation written out; takes any number of values."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.momentum, self.eps = 0.1, 1e-5

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = x.mean(0), x.var(0, unbiased=False)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var, self.momentum)
        return (x - mean) / (var + self.eps).sqrt() * self.weight + self.bias


@pytest.mark.parametrize(
    ("build", "layer"),
    [
        (lambda seed: Net("mlp", seed), "blocks.0.norm"),
        (lambda seed: Net("mlp", seed, norm=OwnNorm), "blocks.0.norm"),
        (lambda seed: Pooled(seed), "norm"),
        (lambda seed: Pooled(seed, OwnNorm), "norm"),
    ],
    ids=["mlp", "mlp-own", "pooled", "pooled-own"],
)
@SEED
def test_batch_of_one(build, layer, seed):
    """A single value per channel; torch's own layer refuses, one's own may not."""
    model = build(seed)
    kind = "conv" if isinstance(model, Pooled) else "mlp"
    report = check(model, data(kind, seed, samples=1), steps=40, seed=seed, optimizer=FAST)
    finding = sole(report, "BN106")
    assert finding.severity == "error"
    assert finding.layers[0] == layer
    assert "at least 16 samples" in finding.remedy


@KIND
@SEED
def test_few_values_per_channel(kind, seed):
    """Below 8 values it warns even where the prediction is still right."""
    inputs, labels = data(kind, seed, samples=4)
    if kind != "mlp":
        inputs = inputs[:, :, :1, :1].repeat(1, axis=2)
    report = check(Net(kind, seed), (inputs, labels), steps=150, seed=seed)
    finding = sole(report, "BN106")
    assert finding.layers == NORMS
    assert "only 4 values" in finding.cause


class Rows(nn.Sequential):
    """Normalises rows over and over, so that the factors of the variance multiply."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        parts = [(nn.Linear(20, 20), nn.BatchNorm1d(20), nn.ReLU()) for _ in range(4)]
        super().__init__(*(layer for part in parts for layer in part), nn.Linear(20, CLASSES))


@SEED
def test_the_named_batch_size_is_enough(seed):
    """More than 16 values per channel where as many leave too large a gap."""
    report = check(Rows(seed), data("mlp", seed, 12), steps=150, seed=seed)
    finding = sole(report, "BN106")
    assert {layer.attribution for layer in report.layers} == {None}  # no layer is to blame
    enough = int(re.search(r"at least (\d+) samples", finding.remedy)[1])
    assert 16 < enough < 30
    report = check(Rows(seed), data("mlp", seed, enough + 2), steps=150, seed=seed)
    assert report.predictions.gap < 0.1
    assert report.verdict == "pass"


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *(nn.Conv2d(inputs, width, 1), nn.BatchNorm2d(width, momentum=0.25), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, stride, 1), nn.BatchNorm2d(width, momentum=0.25)),
            *(nn.ReLU(), nn.Conv2d(width, outputs, 1), nn.BatchNorm2d(outputs, momentum=0.25)),
        )
        self.around = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs, momentum=0.25)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branch(x) + self.around(x))


@pytest.mark.parametrize("seed", [1, 3])
def test_lag_is_named_beside_few_values(seed):
    """Few values leave a gap in a deep net, and lag that depth amplifies a larger one."""
    torch.manual_seed(seed)
    blocks, inputs = [], 3
    for width in (8, 16, 32, 64):
        for stride in (1 if width == 8 else 2, 1, 1, 1):
            blocks.append(Bottleneck(inputs, width, 4 * width, stride))
            inputs = 4 * width
    top = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 4))
    batch = torch.randn(8, 3, 16, 16), torch.arange(8) % 4
    # Its layers are distorted by 0.10, more or less: the limit is moved away from there.
    options: dict[str, Any] = {"steps": 18, "seed": seed, "distortion_tolerance": 0.2}
    report = check(nn.Sequential(*blocks, *top), batch, **options)
    assert report.bn_verdict in ("degraded", "broken")
    assert [finding.code for finding in report.findings][-1] == "BN102", str(report)
    said = {finding.code for finding in (*report.findings, *report.notes)}
    assert said == {"BN106", "BN102"}, str(report)
    assert 0.5 * report.predictions.gap > report.predictions.floor > 0.1


class FineTuned(nn.Module):
    """A frozen backbone and a new head."""

    def __init__(self, kind: str, seed: int) -> None:
        super().__init__()
        self.backbone = Net(kind, seed)
        for parameter in self.backbone.parameters():
            parameter.requires_grad = False
        self.head = nn.Linear(CLASSES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


@KIND
@SEED
def test_frozen_backbone_drifts(kind, seed):
    model = FineTuned(kind, seed)
    step = partial(torch.optim.Adam, lr=0.1)
    report = check(model, data(kind, seed), steps=150, seed=seed, optimizer=step)
    finding = sole(report, "BN107")
    assert finding.severity == "warning"
    assert report.verdict == "warn"
    assert finding.layers == [f"backbone.{name}" for name in NORMS]


class DropoutBefore(nn.Module):
    """Dropout in front of each normalisation."""

    def __init__(self, kind: str, seed: int, p: float) -> None:
        super().__init__()
        self.net = Net(kind, seed)
        for block in self.net.blocks:
            block.layer = nn.Sequential(nn.Dropout(p), block.layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@KIND
@SEED
def test_dropout_before_normalisation(kind, seed):
    model = DropoutBefore(kind, seed, p=0.7)
    report = check(model, data(kind, seed), steps=150, seed=seed)
    finding = sole(report, "BN110")
    assert set(finding.layers) <= {f"net.{name}" for name in NORMS}
    assert finding.layers
    assert finding.layers[0] in finding.message


def test_momentum_small_is_fine_if_the_real_training_is_long():
    """The card of the slow average, with the planned number of updates declared."""
    model = Net("mlp", momentum=0.01)
    report = check(model, data("mlp"), steps=60, optimizer=FAST, planned_updates=5000)
    assert report.verdict == "pass", str(report)


@SEED
def test_slow_average_over_volumes(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8, momentum=0.01), nn.ReLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, CLASSES),
    )  # fmt: skip
    inputs, labels = data("conv", seed)
    volumes = inputs[..., None].repeat(4, axis=4)
    report = check(model, (volumes, labels), steps=60, seed=seed, optimizer=FAST)
    assert sole(report, "BN101").layers == ["1"]
