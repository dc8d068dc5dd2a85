"""Several streams in one layer and several mini-batches, in PyTorch: reported faults and the
healthy networks that look like them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

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
    sole,
)

# several streams in one layer -------------------------------------------------------------------


class Towers(nn.Module):
    """The same network for the inputs and for another view of them."""

    def __init__(self, kind: str, seed: int, view: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.view = Net(kind, seed), view
        self.head = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.net.features(x), self.net.features(self.view(x))], 1))


@KIND
@SEED
def test_towers_with_different_inputs(kind, seed):
    model = Towers(kind, seed, lambda x: 0.2 * x - 4.0)
    report = check(model, data(kind, seed), steps=150, seed=seed, optimizer=FAST)
    finding = sole(report, "BN108")
    lost = report.predictions.eval.accuracy < report.predictions.train.accuracy
    assert finding.severity == ("error" if lost else "warning")
    assert finding.layers[0] == "net.blocks.0.norm"
    assert finding.evidence["calls"] == 2
    assert finding.evidence["spread"] > 0.5


@KIND
@SEED
def test_towers_with_inputs_alike(kind, seed):
    """Two views of the same samples, as in contrastive learning."""
    passes(Towers(kind, seed, lambda x: 0.9 * x + 0.1), data(kind, seed), steps=100, seed=seed)


@SEED
def test_a_layer_at_several_depths_that_costs_decisions(seed):
    """Less than half a standard deviation apart, and yet nothing else can be why eval fails."""
    torch.manual_seed(seed)
    norm, conv = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, padding=1)
    block = nn.Sequential(conv, norm, nn.ReLU())
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), norm, nn.ReLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    inputs = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    batch = inputs, torch.arange(16) % 4
    report = check(nn.Sequential(stem, block, block, *head), batch, seed=seed)
    finding = sole(report, "BN108")
    assert finding.severity == "error"
    assert finding.evidence["spread"] < 0.5
    assert report.predictions.eval.accuracy < report.predictions.train.accuracy - 0.2
    assert "with which the predictions still differ by" in finding.message


@pytest.mark.parametrize("momentum", [0.001, None])
def test_streams_at_other_momenta(momentum):
    """The batch statistics of single calls are read from what they change."""
    model = Towers("conv", 0, lambda x: 0.2 * x - 4.0)
    for layer in model.net.blocks:
        layer.norm.momentum = momentum
    planned = {"planned_updates": 20_000} if momentum else {}
    report = check(model, data("conv"), steps=150, optimizer=FAST, **planned)
    finding = next(finding for finding in report.findings if finding.code == "BN108")
    assert finding.evidence["spread"] == pytest.approx(1.2, abs=0.3)


def domains(kind: str, seed: int, per_domain: int = 32) -> Any:
    """Samples of one domain, then of another that is shifted and scaled, with their labels."""
    inputs, labels = data(kind, seed, per_domain)
    both = np.concatenate([inputs, 0.3 * inputs - 3.0])
    return both, np.concatenate([labels, labels])


def step_in_parts(optimizer: Any, parts: int) -> Callable[[nn.Module, Any], Tensor]:
    """One optimizer step on the batch in so many forward passes."""

    def step(model: nn.Module, batch: Any) -> Tensor:
        optimizer.zero_grad()
        pairs = list(zip(*(tensor.chunk(parts) for tensor in batch), strict=True))
        losses = [F.cross_entropy(model(x), y) / parts for x, y in pairs]
        for loss in losses:
            loss.backward()
        optimizer.step()
        return torch.stack(losses).sum()

    return step


def in_halves(model: nn.Module, batch: Any) -> Tensor:
    """The outputs of both domains, each by a forward pass of its own."""
    return torch.cat([model(half) for half in batch[0].chunk(2)])


@KIND
@SEED
def test_two_domains_by_turns(kind, seed):
    model = Net(kind, seed)
    step = step_in_parts(FAST(model.parameters()), 2)
    report = check(
        model, domains(kind, seed), steps=150, seed=seed, train_step=step, forward=in_halves
    )
    finding = sole(report, "BN108")
    # A step that returns the loss of a part tells no accuracy of the whole.
    assert report.predictions.eval.accuracy is None
    suffers = report.predictions.retained is None or report.predictions.retained < 0.9
    assert finding.severity == ("error" if suffers else "warning")
    assert "blocks.0.norm" in finding.layers


@KIND
@SEED
def test_two_domains_by_turns_in_each_mini_batch(kind, seed):
    """Dealt anew, every sample keeps its place, and so its domain: no shortcut is seen in that."""
    inputs, labels = data(kind, seed, 64)
    order = np.random.default_rng(seed).permutation(64)
    batches = [
        (np.concatenate([inputs[part], 0.3 * inputs[part] - 3.0]), np.tile(labels[part], 2))
        for part in np.split(order, 4)
    ]
    report = check(
        Net(kind, seed), batches=batches, steps=150, seed=seed, optimizer=FAST, forward=in_halves
    )
    assert sole(report, "BN108").layers


@SEED
def test_two_domains_in_one_call(seed):
    model = Net("conv", seed)
    step = step_in_parts(FAST(model.parameters()), 1)
    report = check(model, domains("conv", seed), steps=150, seed=seed, train_step=step)
    assert report.verdict == "pass", str(report)


def discriminator(seed: int, width: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(20, width), nn.BatchNorm1d(width), nn.LeakyReLU(0.2),
        nn.Linear(width, width), nn.BatchNorm1d(width), nn.LeakyReLU(0.2), nn.Linear(width, 1),
    )  # fmt: skip


@pytest.mark.parametrize("forward", [in_halves, None])
@pytest.mark.parametrize("width", [16, 32])
@SEED
def test_discriminator_sees_real_and_fake_by_turns(seed, width, forward):
    """The usual step of a GAN; judged with and without a forward that does the same."""
    model = discriminator(seed, width)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    real, fake = 2.0 + torch.randn(64, 20), -1.0 + 0.5 * torch.randn(64, 20)
    targets = torch.cat([torch.ones(64, 1), torch.zeros(64, 1)])

    def step(model: nn.Module, batch: Any) -> Tensor:
        optimizer.zero_grad()
        halves = zip(*(tensor.chunk(2) for tensor in batch), strict=True)
        loss = sum(F.binary_cross_entropy_with_logits(model(x), y) for x, y in halves)
        loss.backward()
        optimizer.step()
        return loss

    batch = torch.cat([real, fake]), targets
    report = check(model, batch, steps=200, seed=seed, train_step=step, forward=forward)
    finding = sole(report, "BN108")
    assert "1" in finding.layers
    if forward is in_halves:  # what training computes, which eval mode then does not
        assert finding.severity == "error"


@pytest.mark.parametrize("parts", [2, 4])
@KIND
@SEED
def test_gradient_accumulation(kind, seed, parts):
    """Micro-batches of one distribution are neither streams nor lag."""
    inputs, labels = data(kind, seed, 8 * parts)
    order = np.random.default_rng(seed).permutation(len(labels))
    model = Net(kind, seed)
    step = step_in_parts(FAST(model.parameters()), parts)
    batch = inputs[order], labels[order]
    report = check(model, batch, steps=100, seed=seed, train_step=step)
    assert report.verdict == "pass", str(report)


def test_micro_batches_that_are_too_small_are_called_so():
    inputs, labels = data("mlp", 0, 16)
    model = Net("mlp")
    step = step_in_parts(FAST(model.parameters()), 4)
    report = check(model, (inputs, labels), steps=100, train_step=step)
    assert not report.findings, str(report)
    (few,) = (note for note in report.notes if note.code == "BN106")
    assert "only 4 values per channel" in few.cause


@SEED
def test_sorted_micro_batches_are_streams(seed):
    """Gradient accumulation over one class at a time."""
    inputs, labels = data("mlp", seed, 64)
    order = np.argsort(labels, kind="stable")
    model = Net("mlp", seed)
    step = step_in_parts(FAST(model.parameters()), 4)
    batch = inputs[order], labels[order]
    report = check(model, batch, steps=100, seed=seed, train_step=step)
    assert sole(report, "BN108").evidence["calls"] == 4


class Checkpointed(Net):
    """The blocks' activations are computed again in the backward pass."""

    def __init__(self, kind: str, seed: int, reentrant: bool, **options: Any) -> None:
        super().__init__(kind, seed, **options)
        self.reentrant = reentrant

    def features(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return x.flatten(2).mean(2) if x.dim() > 2 else x


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
@KIND
@SEED
def test_checkpointing_counts_two_updates_a_step(kind, seed, reentrant):
    report = passes(Checkpointed(kind, seed, reentrant), data(kind, seed), seed=seed)
    assert [layer.updates for layer in report.layers] == [2 * report.steps] * 2


def test_gradient_checkpointing_hides_no_fault():
    """The limits are those of one batch: both calls are the same."""
    model = Checkpointed("conv", 0, False, momentum=0.003)
    finding = sole(check(model, data("conv", contrast=0.1), steps=30, optimizer=FAST), "BN101")
    assert "up to 0.25 allowed, default)" in finding.message


# several mini-batches ---------------------------------------------------------------------------


def in_batches(batch: Any, order: Any, size: int) -> list[Any]:
    inputs, labels = batch
    parts = np.split(order, range(size, len(order), size))
    return [(inputs[part], labels[part]) for part in parts]


def contrasts(seed: int) -> Any:
    """Images of four patterns, each image of another brightness and contrast."""
    rng = np.random.default_rng(seed)
    inputs, labels = data("conv", seed)
    scale = np.exp(rng.uniform(-1.5, 1.5, (len(labels), 1, 1, 1)))
    offset = rng.normal(0.0, 10.0, (len(labels), 3, 1, 1))
    return (scale * inputs + offset).astype("float32"), labels


@pytest.mark.parametrize("kind", ["mlp", "wide"])
@SEED
def test_one_class_in_each_mini_batch(kind, seed):
    torch.manual_seed(seed)
    wide = nn.Sequential(
        nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(),
        nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, CLASSES),
    )  # fmt: skip
    model = Net("mlp", seed) if kind == "mlp" else wide
    inputs, labels = data("mlp", seed, 64)
    batches = in_batches((inputs, labels), np.argsort(labels, kind="stable"), 16)
    report = check(model, batches=batches, steps=400, seed=seed, optimizer=FAST)
    finding = sole(report, "BN109")
    assert finding.severity == "error"
    assert report.predictions.train.accuracy >= 0.95
    assert report.predictions.eval.accuracy <= 0.75
    assert finding.evidence["remixed_accuracy"] <= 0.75
    assert finding.evidence["mini_batches"] == 4
    assert len(finding.layers) == 2
    assert "shuffle=True" in finding.remedy


@KIND
@SEED
def test_the_same_samples_shuffled(kind, seed):
    batches = mini_batches(kind, seed, count=4, samples=16)
    passes(Net(kind, seed), None, batches=batches, steps=150, seed=seed)


@pytest.mark.parametrize("width", [8, 16])
@SEED
def test_batches_of_one(seed, width):
    """Each image is normalised by itself; of that eval mode knows nothing."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES),
    )  # fmt: skip
    inputs, labels = contrasts(seed)
    batches = [(inputs[k : k + 1], labels[k : k + 1]) for k in range(len(labels))]
    report = check(model, batches=batches, steps=480, seed=seed, optimizer=FAST)
    finding = sole(report, "BN109")
    assert "each batch is a single sample" in finding.cause
    assert report.predictions.train.accuracy >= 0.85
    assert report.predictions.eval.accuracy <= 0.7

    whole = check(model, (inputs, labels), steps=480, seed=seed, optimizer=FAST)
    assert "BN109" not in {found.code for found in whole.findings}


class Healthy(Net):
    """Dropout, or virtual batches."""

    def __init__(self, kind: str, seed: int, dropout: float = 0.0, parts: int = 1) -> None:
        super().__init__(kind, seed)
        self.dropout, self.parts = nn.Dropout(dropout), parts

    def features(self, x: Tensor) -> Tensor:
        parts = [super(Healthy, self).features(part) for part in x.chunk(self.parts)]
        return self.dropout(torch.cat(parts))


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"parts": 2}], ids=["dropout", "ghost"])
@pytest.mark.parametrize("kind", ["mlp", "conv"])
@SEED
def test_healthy_networks_on_several_mini_batches(kind, seed, options):
    batches = mini_batches(kind, seed, count=6, samples=32)
    model = Healthy(kind, seed, **options)
    passes(model, None, batches=batches, steps=120, seed=seed, optimizer=FAST)


@pytest.mark.parametrize("kind", ["mlp", "residual"])
@SEED
def test_slow_average_on_several_mini_batches(kind, seed):
    model = Net(kind, seed, momentum=0.005)
    batches = mini_batches(kind, seed, count=4, samples=16)
    options = {"batches": batches, "seed": seed, "optimizer": FAST, "restore": False}
    report = check(model, steps=60, **options)
    finding = [*report.findings, *report.notes][0]
    assert finding.code == "BN101", str(report)
    assert "On the same 4 mini-batches" in finding.message
    assert (finding.severity == "error") == (report.bn_verdict == "broken")
    if report.bn_verdict == "broken":
        assert report.predictions.gap > report.curves.gap_limit
        with torch.no_grad():
            for k in range(report.remedies.further_updates):
                model(torch.as_tensor(batches[k % 4][0]))
        after = check(model, steps=0, **options)
        assert after.predictions.gap <= after.curves.gap_limit, str(after)


class Scaled(Net):
    """Code that computes something else in training."""

    def classify(self, h: Tensor) -> Tensor:
        return super().classify(h if self.training else 0.5 * h)


@SEED
def test_other_path_on_several_mini_batches(seed):
    batches = mini_batches("conv", seed, count=4, samples=16)
    report = check(Scaled("conv", seed), batches=batches, steps=100, seed=seed, optimizer=FAST)
    assert "training path" in {f.evidence.get("by") for f in report.findings}, str(report)


@pytest.mark.parametrize(("seed", "size", "steps"), [(108, 12, 12), (110, 16, 40)])
def test_a_few_samples_where_decisions_change_are_no_shortcut(seed, size, steps):
    torch.manual_seed(seed)
    inputs = torch.randn(2 * size, 3, 2, 2) + 1
    labels = (inputs.mean((1, 2, 3)) > 1).long()
    layers = []
    for channels in (3, 16):
        conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(16), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
    batches = list(DataLoader(TensorDataset(inputs, labels), size, shuffle=True))
    report = check(net, batches=batches, steps=steps, planned_updates=2000)
    assert report.verdict != "fail", str(report)
