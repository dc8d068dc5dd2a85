"""Designs in PyTorch that look like faults and are none: no finding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn

from pytest_bncheck import check
from torch_nets import (
    CLASSES,
    FAST,
    KIND,
    SEED,
    WIDTH,
    Net,
    data,
    mini_batches,
    passes,
)

IMAGES = pytest.mark.parametrize("kind", ["conv", "residual"])


# statistics that have settled --------------------------------------------------------------------


@KIND
@SEED
def test_default_momentum_and_enough_steps(kind, seed):
    report = passes(Net(kind, seed), data(kind, seed), seed=seed)
    assert report.bn_verdict == "healthy"


@KIND
def test_auto_stops_once_settled(kind):
    report = passes(Net(kind), data(kind), steps="auto")
    assert 20 <= report.steps <= 150


@KIND
@SEED
def test_several_mini_batches(kind, seed):
    passes(
        Net(kind, seed), None, batches=mini_batches(kind, seed, samples=16), steps=150, seed=seed
    )


@KIND
@SEED
def test_cumulative_average_once_settled(kind, seed):
    """With a learning rate that decays, as real trainings have, the average catches up."""
    model = Net(kind, seed, momentum=None)
    passes(model, data(kind, seed), seed=seed, optimizer=Decaying, steps=400)


class Decaying(torch.optim.Adam):
    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=1e-2)

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        for group in self.param_groups:
            group["lr"] *= 0.8
        return result


class Shared(nn.Module):
    """One normalisation layer that runs twice."""

    def __init__(self, kind: str, seed: int) -> None:
        super().__init__()
        self.net = Net(kind, seed)
        self.net.blocks[1] = self.net.blocks[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize("kind", ["conv", "mlp"])
def test_shared_layer_counts_all_its_calls(kind):
    """Two streams in one layer are nothing but that."""
    report = check(Shared(kind, 0), data(kind), steps=150)
    assert {finding.code for finding in report.findings} <= {"BN108"}, str(report)
    (layer,) = report.layers
    assert layer.updates == 2 * report.steps


class Ghost(nn.BatchNorm1d):
    """Batch normalisation over virtual batches of sixteen."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return torch.cat([super(Ghost, self).forward(part) for part in x.split(16)])


class Ghost2d(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return torch.cat([super(Ghost2d, self).forward(part) for part in x.split(16)])


@KIND
@SEED
def test_ghost_batch_norm(kind, seed):
    norm = Ghost if kind == "mlp" else Ghost2d
    report = check(Net(kind, seed, norm=norm), data(kind, seed, 64), steps=150, seed=seed)
    assert report.ok, str(report)


@KIND
@SEED
def test_half_precision_at_the_defaults(kind, seed):
    """Rounding hides whether statistics have settled, so their start has to be forgotten."""
    inputs, labels = data(kind, seed)
    batch = torch.as_tensor(inputs).bfloat16(), labels
    report = check(Net(kind, seed).bfloat16(), batch, seed=seed)
    assert report.ok, str(report)
    assert report.layers[0].initial_weight <= 0.01


def test_bessel_chain():
    """Each of twenty layers shrinks by the unbiased variance: a gap, and no fault."""
    torch.manual_seed(0)
    layers = [nn.BatchNorm1d(2, affine=False, eps=1e-12) for _ in range(20)]
    model = nn.Sequential(*layers, nn.Linear(2, 2))
    inputs = np.random.default_rng(0).uniform(size=(64, 2)).astype("float32")
    labels = (inputs[:, 0] > 0.5).astype("int64")
    report = check(model, (inputs, labels), steps=200, optimizer=FAST)
    assert report.ok, str(report)
    assert "BN101" not in [finding.code for finding in report.findings]


@pytest.mark.parametrize("dimensions", [1, 3])
@SEED
def test_sequences_and_volumes(dimensions, seed):
    torch.manual_seed(seed)
    conv, norm = ((nn.Conv1d, nn.BatchNorm1d), None, (nn.Conv3d, nn.BatchNorm3d))[dimensions - 1]
    pool = nn.AdaptiveAvgPool1d(1) if dimensions == 1 else nn.AdaptiveAvgPool3d(1)
    body = [conv(3, 8, 3), norm(8), nn.ReLU(), pool, nn.Flatten(), nn.Linear(8, CLASSES)]
    inputs, labels = data("conv", seed)
    shaped = inputs[..., 0] if dimensions == 1 else inputs[..., None].repeat(4, axis=4)
    passes(nn.Sequential(*body), (shaped, labels), seed=seed, steps=300, optimizer=FAST)


# normalisation without modes ---------------------------------------------------------------------


NORMS = {
    "layer": lambda channels: nn.LayerNorm(channels),
    "group": lambda channels: nn.GroupNorm(4, channels),
    "rms": lambda channels: nn.RMSNorm(channels),
    "instance": lambda channels: nn.InstanceNorm2d(channels),
}


@pytest.mark.parametrize(
    ("kind", "norm"),
    [("mlp", "layer"), ("mlp", "group"), ("mlp", "rms"), ("conv", "group"),
     ("residual", "group"), ("conv", "instance"), ("residual", "instance")],
)  # fmt: skip
@SEED
def test_without_running_statistics_the_gap_is_exactly_zero(kind, norm, seed):
    report = passes(Net(kind, seed, norm=NORMS[norm]), data(kind, seed), steps=60, seed=seed)
    assert report.predictions.gap == 0.0
    assert report.layers == []


# noise in training only --------------------------------------------------------------------------


class DropPath(nn.Module):
    """Stochastic depth per sample."""

    def __init__(self, inner: nn.Module, p: float = 0.2) -> None:
        super().__init__()
        self.inner, self.p = inner, p

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        if not self.training:
            return x + h
        keep = torch.rand([len(x), *[1] * (x.dim() - 1)]) >= self.p
        return x + h * keep / (1.0 - self.p)


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x) if self.training else x


HEADS = {
    "dropout": lambda: nn.Dropout(0.5),
    "alpha": lambda: nn.AlphaDropout(0.2),
    "rrelu": lambda: nn.RReLU(),
    "noise": lambda: Noise(),
    "path": lambda: DropPath(nn.Linear(WIDTH, WIDTH)),
}


@pytest.mark.parametrize("head", HEADS)
@KIND
@SEED
def test_noise_in_training_only(kind, seed, head):
    model = Net(kind, seed)
    model.head = nn.Sequential(HEADS[head](), model.head)
    passes(model, data(kind, seed), seed=seed)


@KIND
@SEED
def test_stochastic_depth_around_normalisation(kind, seed):
    model = Net(kind, seed)
    model.blocks[1] = DropPath(model.blocks[1], 0.1)
    report = check(model, data(kind, seed), steps=150, seed=seed)
    assert report.ok, str(report)


class Variational(Net):
    """Samples in training; predicts from the mean."""

    def __init__(self, kind: str, seed: int) -> None:
        super().__init__(kind, seed)
        self.moments = nn.Linear(WIDTH, 2 * WIDTH)

    def classify(self, h: Tensor) -> Tensor:
        mean, log_var = self.moments(h).chunk(2, dim=1)
        if self.training:
            mean = mean + torch.randn_like(mean) * (0.5 * log_var).exp() * 0.1
        return self.head(mean)


@KIND
@SEED
def test_variational_bottleneck_with_the_mean_in_eval(kind, seed):
    passes(Variational(kind, seed), data(kind, seed), seed=seed)


class Recurrent(nn.Module):
    """A recurrent network with dropout between its layers."""

    def __init__(self, cell: type[nn.RNNBase], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.cell = cell(5, WIDTH, num_layers=2, dropout=0.3, batch_first=True)
        self.norm, self.head = nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.cell(x.reshape(len(x), 4, 5))[0].mean(1)
        return self.head(self.norm(h))


@pytest.mark.parametrize("cell", [nn.GRU, nn.LSTM])
@SEED
def test_recurrent_with_dropout(cell, seed):
    passes(Recurrent(cell, seed), data("mlp", seed), seed=seed, steps=300)


class Parts(nn.Module):
    """The same around a layer of PyTorch."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.norm(x)
        return torch.cat([self.norm(part) for part in x.split(16)])


@KIND
@SEED
def test_ghost_batches_around_a_layer(kind, seed):
    plain = nn.BatchNorm1d if kind == "mlp" else nn.BatchNorm2d
    model = Net(kind, seed, norm=lambda channels: Parts(plain(channels)))
    report = check(model, data(kind, seed, 64), steps=150, seed=seed)
    assert report.verdict == "pass", str(report)
