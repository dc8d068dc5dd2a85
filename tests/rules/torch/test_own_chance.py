"""Own running state beside random numbers, and the modes in which such a model goes on training."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn
from torch.nn.utils import parametrizations

from own_layers import own_norm
from pytest_bncheck import check
from torch_nets import FAST, NORMS, SEED, WIDTH, Net, data, passes, sole, training_step

TWO = pytest.mark.parametrize("kind", ["mlp", "residual"])


class OwnDropout(nn.Module):
    """Dropout by hand, which no library layer's mode turns off."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) > 0.5) * 2.0 if self.training else x


def followed_by(dropout: type[nn.Module], rate: float) -> Any:
    """An own normalisation, and a dropout after it."""
    return lambda width: nn.Sequential(own_norm("moments", rate=rate)(width), dropout())


def plain_losses(model: nn.Module, batch: Any, steps: int, seed: int = 0) -> list[float]:
    """The losses of the usual loop."""
    torch.manual_seed(seed)
    batch = [torch.as_tensor(each) for each in batch]
    step = training_step(FAST(model.parameters()))
    model.train()
    return [float(step(model, batch).detach()) for _ in range(steps)]


NETS = {
    "spectral norm": lambda: nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(20, WIDTH)), nn.ReLU(), nn.Linear(WIDTH, 4)
    ),
    "own norm and dropout": lambda: Net(norm=followed_by(nn.Dropout, 0.1)),
}


@pytest.mark.parametrize("name", NETS)
def test_a_look_at_the_state_leaves_the_training_as_it_is(name):
    """After steps 1, 4 and 16 a pass measures how state moves; the next step trains as before."""
    batch = data("mlp", 0)
    torch.manual_seed(0)
    plain = plain_losses(NETS[name](), batch, steps=20)
    torch.manual_seed(0)
    report = check(NETS[name](), batch, steps=20, optimizer=FAST, seed=0)
    assert report.training.loss == pytest.approx(plain, rel=1e-5)


def test_a_step_that_leaves_modules_in_its_own_modes_finds_them_so(capsys):
    model = Net(norm=own_norm("moments", rate=0.1))
    usual = training_step(FAST(model.parameters()))

    def step(net: Any, batch: Any) -> Tensor:
        print(net.blocks[0].training)  # a list would be put back
        net.train()
        loss = usual(net, batch)
        net.blocks[0].eval()
        return loss

    check(model, data("mlp"), steps=20, train_step=step)
    assert capsys.readouterr().out.split() == ["True"] + ["False"] * 19


@TWO
@SEED
@pytest.mark.parametrize("dropout", [nn.Dropout, OwnDropout])
def test_own_norm_beside_dropout_that_has_settled(kind, seed, dropout):
    passes(Net(kind, seed, norm=followed_by(dropout, 0.1)), data(kind, seed), optimizer=FAST)


@TWO
@SEED
@pytest.mark.parametrize("dropout", [nn.Dropout, OwnDropout])
def test_own_norm_beside_dropout_that_is_slow(kind, seed, dropout):
    """What the user's code draws hides no fault: it was a pass with a gap of 0."""
    model = Net(kind, seed, norm=followed_by(dropout, 0.001))
    finding = sole(check(model, data(kind, seed), steps=150, optimizer=FAST), "BN101")
    assert sorted(finding.layers) == [f"{name}.0" for name in NORMS]
    assert finding.evidence["initial_weight"] == pytest.approx(0.999**150, abs=0.02)


class Cumulative(nn.Module):
    """A mean over all updates, or the first batch and then an average of a long memory."""

    def __init__(self, width: int, rate: float | None = None) -> None:
        super().__init__()
        self.rate, self.seen = rate, 0
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        centre, spread = self.centre, self.spread
        if self.training:
            over = [0, *range(2, x.dim())]
            centre, spread = x.mean(over), x.var(over, unbiased=False)
            self.seen += 1
            rate = 1.0 if self.seen == 1 else self.rate or 1.0 / self.seen
            self.centre.lerp_(centre.detach(), rate)
            self.spread.lerp_(spread.detach(), rate)
        shape = (1, -1, *[1] * (x.dim() - 2))
        return (x - centre.reshape(shape)) / (spread.reshape(shape) + 1e-5).sqrt()


@SEED
@pytest.mark.parametrize("rate", [None, 0.005])
def test_nothing_is_left_of_a_start_that_the_first_step_replaced(seed, rate):
    quick = partial(torch.optim.Adam, lr=0.1)
    model = Net("mlp", seed, norm=partial(Cumulative, rate=rate))
    report = check(model, data("mlp", seed), steps=40, optimizer=quick)
    assert [layer.initial_weight for layer in report.layers] == pytest.approx([0, 0], abs=0.02)
    assert "BN101" not in [finding.code for finding in report.findings]


class EveryOther(Cumulative):
    """Moves at the first call and then at every second one."""

    def forward(self, x: Tensor) -> Tensor:
        before = self.centre.clone(), self.spread.clone()
        result = super().forward(x)
        if self.training:
            rate = 0.01 * (self.seen % 2)
            with torch.no_grad():
                over = [0, *range(2, x.dim())]
                self.centre.copy_(before[0].lerp(x.mean(over), rate))
                self.spread.copy_(before[1].lerp(x.var(over, unbiased=False), rate))
        return result


@SEED
def test_a_state_that_rests_in_the_second_step_has_its_start_left(seed):
    report = check(Net("mlp", seed, norm=EveryOther), data("mlp", seed), steps=40, optimizer=FAST)
    left = [layer.initial_weight for layer in report.layers]
    assert left == pytest.approx([0.99**20] * 2, abs=0.02)


class TightRenorm(nn.Module):
    """Batch renormalisation with narrow bounds, so that training mode moves as it settles."""

    def __init__(self, width: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        mean, deviation = self.mean, self.deviation
        if not self.training:
            return (x - mean) / deviation
        now, spread = x.mean(0), x.std(0, unbiased=False) + 1e-3
        r = (spread / deviation).detach().clamp(2 / 3, 1.5)
        d = ((now - mean) / deviation).detach().clamp(-0.5, 0.5)
        self.mean = torch.lerp(mean, now.detach(), self.rate)
        self.deviation = torch.lerp(deviation, spread.detach(), self.rate)
        return (x - now) / spread * r + d


@SEED
@pytest.mark.parametrize("rate", [0.005, 0.05])
def test_renormalisation_whose_modes_meet_takes_no_other_path(seed, rate):
    model = Net("mlp", seed, norm=partial(TightRenorm, rate=rate))
    report = check(model, data("mlp", seed), steps=60, optimizer=FAST)
    assert "BN201" not in [finding.code for finding in report.findings]
    if rate == 0.05:
        assert report.verdict == "pass"


class FirstBatch(nn.Module):
    """Takes scale and offset from its first batch; whether it did is a plain attribute."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.offset, self.scale = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.ones(width))
        self.started = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.started:
            with torch.no_grad():
                self.offset.copy_(-x.mean(0))
                self.scale.copy_(1.0 / (x.std(0) + 1e-6))
            self.started = True
        return (x + self.offset) * self.scale


@SEED
@pytest.mark.parametrize("mode", [True, False])
def test_a_first_pass_that_overwrites_loaded_parameters(seed, mode):
    batch = data("mlp", seed)
    trained, loaded = Net("mlp", seed, norm=FirstBatch), Net("mlp", seed, norm=FirstBatch)
    plain_losses(trained, batch, steps=100)
    loaded.load_state_dict(trained.state_dict())
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    finding = sole(check(loaded.train(mode), batch, steps=0), "BN304")
    assert "blocks.0.norm.scale" in str(finding)
    assert all(torch.equal(value, before[name]) for name, value in loaded.state_dict().items())
    assert not loaded.blocks[0].norm.started


def test_mixed_mini_batches_are_those_of_training_mode():
    """Of random labels: the figure is that of shuffled batches, not of slow statistics."""
    made = torch.Generator().manual_seed(4)
    batches = [
        (2 * torch.randn(16, 20, generator=made) + 3, torch.randint(0, 4, (16,), generator=made))
        for _ in range(4)
    ]
    model = Net("mlp", 0, norm=own_norm("moments", rate=0.001))
    report = check(model, batches=batches, steps=160, optimizer=FAST)
    for finding in report.findings:
        if finding.code == "BN109":
            assert finding.evidence["remixed_accuracy"] > report.predictions.eval.accuracy + 0.1
            assert "0.00 standard deviations" not in finding.cause
