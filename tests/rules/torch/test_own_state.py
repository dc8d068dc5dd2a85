"""State under any name and in any place, and steps of one's own: what training does is measured."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn
from torch.nn import functional as F

from common_nets import silent
from own_layers import own_norm
from own_steps import Steps
from pytest_bncheck import check
from torch_nets import FAST, NORMS, WIDTH, Net, batch_norm, data, passes, sole

TWO = pytest.mark.parametrize(("kind", "seed"), [("mlp", 0), ("residual", 1)])


def rows_of(report: Any) -> list[str]:
    return sorted(layer.name for layer in report.layers)


# names and places -------------------------------------------------------------------------------

LAYERS = {
    "other names": {"spelling": 2},
    "reassigned, other names": {"place": "reassigned", "spelling": 1, "convention": "decay"},
    "deviation": {"rule": "deviation", "place": "attribute", "convention": "none"},
    "second moment": {"rule": "second moment", "place": "list"},
    "coupled": {"rule": "coupled", "place": "dict", "convention": "lie"},
    "stacked": {"place": "stacked", "convention": "alpha"},
    "helper": {"place": "helper", "convention": "buffer"},
}


@pytest.mark.parametrize("layer", LAYERS)
@TWO
def test_state_of_any_name_that_is_slow(layer, kind, seed):
    model = Net(kind, seed, norm=own_norm("MyNorm", rate=0.01, **LAYERS[layer]))
    report = check(model, data(kind, seed), steps=20, optimizer=FAST)
    finding = sole(report, "BN101")
    assert report.verdict == "fail"
    assert finding.evidence["initial_weight"] == pytest.approx(0.99**20, abs=0.02)
    assert rows_of(report) == NORMS
    rates = [layer.update_rate for layer in report.layers]
    assert rates == pytest.approx([0.01, 0.01], rel=0.02)


@pytest.mark.parametrize("layer", LAYERS)
@TWO
def test_state_of_any_name_that_has_settled(layer, kind, seed):
    model = Net(kind, seed, norm=own_norm("MyNorm", rate=0.2, **LAYERS[layer]))
    passes(model, data(kind, seed), steps=60, optimizer=FAST)


@pytest.mark.parametrize("rule", ["power", "evolved"])
@TWO
def test_a_running_scale_alone(rule, kind, seed):
    """It hardly changes a class, but a number."""

    def net(rate: float) -> nn.Module:
        model = Net(kind, seed, norm=own_norm("Scale", rule=rule, rate=rate))
        model.head = nn.Linear(WIDTH, 1)
        return model

    inputs, labels = data(kind, seed)
    batch = inputs, (labels - 1.5).astype("float32")[:, None]
    passes(net(0.2), batch, steps=60, optimizer=FAST)
    report = check(net(0.003), batch, steps=30, optimizer=FAST)
    assert sole(report, "BN101").evidence["initial_weight"] == pytest.approx(0.997**30, abs=0.02)


@TWO
def test_state_that_moves_at_every_fourth_call(kind, seed):
    model = Net(kind, seed, norm=own_norm("Seldom", rate=0.02, every=4))
    report = check(model, data(kind, seed), steps=40, optimizer=FAST)
    assert sole(report, "BN101").evidence["initial_weight"] == pytest.approx(0.98**10, abs=0.02)


class Codebook(nn.Module):
    """The nearest vectors, which are averages of what they stood for; two stages share them."""

    def __init__(self, width: int, between: bool) -> None:
        super().__init__()
        self.between = between
        self.register_buffer("codes", torch.randn(16, width))

    def nearest(self, x: Tensor) -> Tensor:
        return torch.cdist(x, self.codes).argmin(1)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        chosen = F.one_hot(self.nearest(x), 16).float()
        counts = chosen.sum(0)[:, None]
        means = chosen.T @ x / counts.clamp_min(1)
        self.codes.copy_(torch.where(counts > 0, 0.2 * self.codes + 0.8 * means, self.codes))

    def forward(self, x: Tensor) -> Tensor:
        left, total = x, torch.zeros_like(x)
        for _ in range(2):
            code = self.codes[self.nearest(left)]
            if self.training and self.between:
                self.update(left)
            total, left = total + code, left - code
        if self.training and not self.between:
            self.update(x)
        return x + (total - x).detach()


@pytest.mark.parametrize("seed", [0, 1])
def test_codebook_that_training_moves(seed):
    """A codebook that predicts as it did in training has no fault, however it moves."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(20, 8), Codebook(8, between=False), nn.Linear(8, 4))
    passes(model, data("mlp", seed), steps=60, optimizer=FAST)


# momentum, modes, losses ------------------------------------------------------------------------


@TWO
def test_momentum_that_decays_to_a_long_memory(kind, seed):
    model = Net(kind, seed, norm=batch_norm(kind))
    steps = Steps(F.cross_entropy)

    def step(model: nn.Module, batch: Any) -> Tensor:
        loss = steps.plain(model, batch)
        for name in NORMS:
            model.get_submodule(name).momentum = max(0.02, 0.1 * 0.99**steps.made)
        return loss

    passes(model, data(kind, seed), train_step=step, steps=200)


@TWO
def test_own_norm_whose_rate_decays(kind, seed):
    model = Net(kind, seed, norm=own_norm("Fading", rate=0.01))
    step = Steps(F.cross_entropy).decaying
    report = check(model, data(kind, seed), train_step=step, steps=30)
    expected = 1.0
    for made in range(30):
        expected *= 1 - 0.01 * (0.985**made)
    found = sole(report, "BN101").evidence["initial_weight"]
    assert found == pytest.approx(expected, abs=0.02)


@TWO
def test_layers_frozen_in_the_step_with_their_weights(kind, seed):
    """Fine-tuning of the last normalisation alone: the rest stays in eval mode by design."""
    model, steps = Net(kind, seed), Steps(F.cross_entropy)
    passes(model, data(kind, seed), train_step=steps.plain, steps=60, restore=False)
    model.requires_grad_(False)
    model.blocks[1].norm.requires_grad_(True)
    model.head.requires_grad_(True)
    again = Steps(F.cross_entropy)

    def step(model: nn.Module, batch: Any) -> Tensor:
        model.train()
        model.blocks[0].norm.eval()
        return again.plain(model, batch)

    passes(model, data(kind, seed), train_step=step, steps=60)


class Folding(nn.Module):
    """A layer that scales its weights by its running deviation, as training for int8 does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(20, 16), nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()
        folded = F.linear(x, self.linear.weight * scale[:, None])
        out: Tensor = self.norm(folded / scale + self.linear.bias)
        return out


@pytest.mark.parametrize("seed", [0, 1])
def test_weights_that_are_scaled_by_the_running_deviation(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(Folding(), nn.ReLU(), nn.Linear(16, 4))
    passes(model, data("mlp", seed), steps=100, optimizer=FAST)


def residuals(model: nn.Module, x: Tensor) -> Tensor:
    """Of a differential equation and its boundary: what only the step can score."""
    x = x.clone().requires_grad_()
    u = model(x)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    return (slope + u).square().mean() + 3 * (u - torch.sin(x) - 2).square().mean()


def equation(seed: int, momentum: float, steps: int) -> Any:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for width in (1, 32):
        layers += [nn.Linear(width, 32), nn.BatchNorm1d(32, momentum=momentum), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)

    def step(model: nn.Module, batch: Any) -> Tensor:
        loss = residuals(model, batch[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    batch = (torch.linspace(0, 6, 64)[:, None],)
    forward: Callable[[Any, Any], Any] = lambda model, batch: model(batch[0])  # noqa: E731
    return check(model, batch, train_step=step, steps=steps, forward=forward)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_loss_that_only_the_step_knows_and_that_eval_mode_keeps(seed):
    """The predictions differ, and solve the equation as well."""
    report = equation(seed, 0.1, 120)
    silent(report)
    assert report.predictions.gap > 0.1


@pytest.mark.parametrize("seed", [1, 3])
def test_a_loss_that_only_the_step_knows_and_that_eval_mode_loses(seed):
    assert sole(equation(seed, 0.002, 120), "BN101").severity == "error"


# attention --------------------------------------------------------------------------------------


class Padded(nn.Module):
    """Torch's encoder over padded tokens, whose fast path in eval mode fills them with zeros."""

    def __init__(self, dropout: float, masked: bool) -> None:
        super().__init__()
        self.tokens, self.masked = nn.Embedding(20, 16), masked
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.last = nn.Linear(16, 3)

    def forward(self, t: Tensor) -> Tensor:
        padding = t == 0
        z = self.encoder(self.tokens(t), src_key_padding_mask=padding)
        if not self.masked:
            return self.last(z.mean(1))
        z = z.masked_fill(padding[..., None], 0.0)
        return self.last(z.sum(1) / (~padding).sum(1, keepdim=True))


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch says that nested tensors may change
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("masked", [False, True])
def test_padding_that_eval_mode_fills_with_zeros(dropout, masked):
    torch.manual_seed(0)
    y = torch.arange(60) % 3
    t = torch.randint(1, 7, (60, 10)) + y[:, None] * 6
    lengths = torch.randint(2, 11, (60,))
    lengths[0] = 10
    t[torch.arange(10) >= lengths[:, None]] = 0
    report = check(Padded(dropout, masked), (t, y), steps=40)
    assert [f.code for f in report.findings] == ([] if masked else ["BN201"]), str(report)


@pytest.mark.parametrize("place", ["dict", "parameter"])
def test_a_variance_around_the_running_mean_at_a_small_rate(place):
    """Displacing all states at once moves it hardly more than its rate does."""
    model = Net("mlp", 0, norm=own_norm("MyNorm", rate=0.001, rule="coupled", place=place))
    report = check(model, data("mlp", 0), steps=60, optimizer=FAST)
    assert sole(report, "BN101").severity == "error"
    assert rows_of(report) == NORMS
    assert [layer.update_rate for layer in report.layers] == pytest.approx([0.001] * 2, rel=0.02)


# containers that a pass replaces ------------------------------------------------------------------

Pair = collections.namedtuple("Pair", "centre spread")


@dataclasses.dataclass
class Record:
    centre: Tensor
    spread: Tensor


BOXES = {
    "list": (lambda m, v: [m, v], list),
    "dictionary": (lambda m, v: {"m": m, "v": v}, lambda box: box.values()),
    "named tuple": (Pair, tuple),
    "object": (Record, lambda box: (box.centre, box.spread)),
    "list of lists": (lambda m, v: [[m], [v]], lambda box: (box[0][0], box[1][0])),
    "queue of the last": (
        lambda m, v: collections.deque([(m, v)], maxlen=1),
        lambda box: box[-1],
    ),
}


class Boxed(nn.Module):
    """Keeps its statistics in a container, and makes another one at each call."""

    def __init__(self, channels: int, box: str, keep: float) -> None:
        super().__init__()
        self.make, self.open = BOXES[box]
        self.box, self.keep = self.make(torch.zeros(channels), torch.ones(channels)), keep

    def forward(self, x: Tensor) -> Tensor:
        centre, spread = self.open(self.box)
        if self.training:
            kept, rate = (centre, spread), 1 - self.keep
            centre, spread = x.mean(0), x.std(0)
            new = (k + rate * (b.detach() - k) for k, b in zip(kept, (centre, spread), strict=True))
            self.box = self.make(*new)
        return (x - centre) / (spread + 1e-3)


@pytest.mark.parametrize("keep", [0.7, 0.996])
@pytest.mark.parametrize("box", BOXES)
def test_state_in_a_container_that_each_call_makes_anew(box, keep):
    torch.manual_seed(0)
    x = 10 + 2 * torch.randn(64, 8)
    y = ((x - 10) @ torch.randn(8, 4)).argmax(1)
    model = nn.Sequential(nn.Linear(8, 32), Boxed(32, box, keep), nn.ReLU(), nn.Linear(32, 4))
    before = model[1].box
    report = check(model, (x, y), steps=60, optimizer=lambda p: torch.optim.Adam(p, 3e-3))
    assert model[1].box is before
    (layer,) = report.layers
    assert layer.update_rate == pytest.approx(1 - keep, rel=0.02)
    if keep == 0.7:
        silent(report)
    else:
        sole(report, "BN101")


# averages that are freed of their start when they are read ----------------------------------------


class Debiased(nn.Module):
    """Averages from 0 which eval mode divides by ``1 - b^t``, as Adam does; or forgets to."""

    def __init__(self, channels: int, keep: float, count: str, forgets: bool = False) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(channels))
        self.register_buffer("square", torch.zeros(channels))
        self.keep, self.forgets = keep, forgets
        if count == "attribute":
            self.count: Any = 0
        else:
            kind = torch.long if count == "whole" else torch.float32
            self.register_buffer("count", torch.zeros((), dtype=kind))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            centre, square = x.mean(0), x.var(0, unbiased=False)
            with torch.no_grad():
                self.centre.mul_(self.keep).add_((1 - self.keep) * centre)
                self.square.mul_(self.keep).add_((1 - self.keep) * square)
            self.count += 1
        else:
            share = 1.0 if self.forgets else 1 - self.keep ** float(self.count)
            centre, square = self.centre / share, self.square / share
        return (x - centre) / (square + 1e-5).sqrt()


def debiased(keep: float, seed: int, count: str = "buffer", forgets: bool = False) -> Any:
    torch.manual_seed(seed)
    x = 3 + 2 * torch.randn(64, 8)
    y = ((x - 3) @ torch.randn(8, 4)).argmax(1)
    layer = Debiased(32, keep, count, forgets)
    model = nn.Sequential(nn.Linear(8, 32), layer, nn.ReLU(), nn.Linear(32, 4))
    return check(model, (x, y), steps=40, optimizer=lambda p: torch.optim.Adam(p, 1e-3))


@pytest.mark.parametrize("count", ["buffer", "whole", "attribute"])
@pytest.mark.parametrize("keep", [0.9, 0.99, 0.999])
@pytest.mark.parametrize("seed", [0, 1])
def test_averages_that_eval_mode_frees_of_their_start(keep, seed, count):
    report = debiased(keep, seed, count)
    silent(report)
    (layer,) = report.layers
    assert layer.update_rate == pytest.approx(1 - keep, rel=0.02)


@pytest.mark.parametrize("seed", [0, 1])
def test_averages_that_eval_mode_forgets_to_free_of_their_start(seed):
    finding = sole(debiased(0.99, seed, forgets=True), "BN101")
    assert finding.evidence["initial_weight"] == pytest.approx(0.99**40, abs=0.02)
