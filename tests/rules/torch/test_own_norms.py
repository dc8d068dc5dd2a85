"""Normalisation and steps of one's own: what they do decides, not what they are called."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn
from torch.nn import functional as F

from own_layers import own_norm
from own_steps import Steps
from pytest_bncheck import check
from torch_nets import FAST, NORMS, SEED, WIDTH, Net, batch_norm, data, passes, sole


def as_row(statistic: Tensor, x: Tensor) -> Tensor:
    return statistic.reshape(1, -1, *[1] * (x.dim() - 2))


class Own(nn.Module):
    """Batch normalisation by hand; `momentum` is the weight of the past."""

    def __init__(self, channels: int, momentum: float = 0.9, way: str = "in place") -> None:
        super().__init__()
        self.scale, self.offset = (
            nn.Parameter(torch.ones(channels)),
            nn.Parameter(torch.zeros(channels)),
        )
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.momentum, self.way = momentum, way

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training:
            over = [0, *range(2, x.dim())]
            mean, var = x.mean(over), x.var(over, unbiased=False)
            self.update(mean.detach(), var.detach())
        normal = (x - as_row(mean, x)) / (as_row(var, x) + 1e-5).sqrt()
        return as_row(self.scale, x) * normal + as_row(self.offset, x)

    def update(self, mean: Tensor, var: Tensor) -> None:
        for name, new in (("running_mean", mean), ("running_var", var)):
            old = getattr(self, name)
            if self.way == "reassigned":
                setattr(self, name, self.momentum * old + (1 - self.momentum) * new)
            else:
                (old.data if self.way == "data" else old).lerp_(new, 1 - self.momentum)


TWO = pytest.mark.parametrize("kind", ["mlp", "residual"])
WAY = pytest.mark.parametrize("way", ["in place", "reassigned", "data"])


@WAY
@TWO
@SEED
def test_own_norm_that_has_settled(kind, seed, way):
    model = Net(kind, seed, norm=partial(Own, way=way))
    buffers = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    report = passes(model, data(kind, seed), optimizer=FAST)
    assert [layer.update_rate for layer in report.layers] == pytest.approx([0.1, 0.1], rel=0.02)
    for name, buffer in model.named_buffers():
        assert buffer is buffers[name][0]
        assert torch.equal(buffer, buffers[name][1])


@WAY
@TWO
@SEED
def test_own_norm_that_is_slow(kind, seed, way):
    model = Net(kind, seed, norm=partial(Own, momentum=0.99, way=way))
    report = check(model, data(kind, seed), steps=20, seed=seed, optimizer=FAST)
    finding = sole(report, "BN101")
    assert sorted(finding.layers) == NORMS
    assert finding.evidence["initial_weight"] == pytest.approx(0.99**20, abs=0.02)
    assert "20 updates at update rate 0.01" in finding.cause
    assert "nn.Own" not in finding.remedy
    assert "update_bn" not in finding.remedy
    assert "running = " in finding.remedy


class Scheduled(Own):
    """Its weight of the past changes in training."""

    def __init__(self, channels: int, schedule: Callable[[int], float]) -> None:
        super().__init__(channels)
        self.schedule, self.calls = schedule, 0

    def update(self, mean: Tensor, var: Tensor) -> None:
        self.momentum = self.schedule(self.calls)
        self.calls += 1
        super().update(mean, var)


SCHEDULES = {
    "decays": lambda k: 1 - 0.1 * 0.95**k,
    "falls at once": lambda k: 0.5 if k < 20 else 0.999,
    "grows": lambda k: 0.999 if k < 10 else 0.5,
}


class Renamed(nn.Module):
    """The same, with state under names that no rule knows."""

    def __init__(self, channels: int, schedule: Callable[[int], float]) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(channels))
        self.register_buffer("spread", torch.ones(channels))
        self.schedule, self.calls = schedule, 0

    def forward(self, x: Tensor) -> Tensor:
        centre, spread = self.centre, self.spread
        if self.training:
            over, keep = [0, *range(2, x.dim())], self.schedule(self.calls)
            self.calls += 1
            centre, spread = x.mean(over), x.var(over, unbiased=False)
            with torch.no_grad():
                self.centre.mul_(keep).add_((1 - keep) * centre)
                self.spread.mul_(keep).add_((1 - keep) * spread)
        return (x - as_row(centre, x)) / (as_row(spread, x) + 1e-5).sqrt()


@pytest.mark.parametrize("own", [Scheduled, Renamed])
@pytest.mark.parametrize("schedule", SCHEDULES)
@TWO
@SEED
def test_own_norm_whose_rate_follows_a_schedule(kind, seed, schedule, own):
    momentum = SCHEDULES[schedule]
    model = Net(kind, seed, norm=partial(own, schedule=momentum))
    report = check(model, data(kind, seed), steps=40, seed=seed, optimizer=FAST)
    left = math.prod(map(momentum, range(40)))
    assert {bool(layer.states) for layer in report.layers} == {own is Renamed}
    for layer in report.layers:
        assert layer.initial_weight == pytest.approx(left, abs=0.02)
    if left < 0.01:  # whatever is wrong, it is not the initial value
        assert "BN101" not in {each.code for each in (*report.findings, *report.notes)}


@TWO
@SEED
def test_trained_weights_stay_where_a_layer_reassigns_its_buffers(kind, seed):
    model = Net(kind, seed, norm=partial(Own, way="reassigned"))
    report = check(model, data(kind, seed), steps=30, optimizer=FAST, restore=False)
    assert report.predictions.gap is not None
    for name in NORMS:
        assert not torch.equal(model.get_submodule(name).running_mean, torch.zeros(WIDTH))


class Renorm(Own):
    """Batch renormalisation: training reads the running statistics."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        over = [0, *range(2, x.dim())]
        mean, var = x.mean(over), x.var(over, unbiased=False)
        deviation, running = (var + 1e-5).sqrt(), (self.running_var + 1e-5).sqrt()
        r = (deviation / running).detach().clamp(1 / 3, 3)
        d = ((mean - self.running_mean) / running).detach().clamp(-5, 5)
        self.update(mean.detach(), var.detach())
        normal = (x - as_row(mean, x)) / as_row(deviation, x) * as_row(r, x) + as_row(d, x)
        return as_row(self.scale, x) * normal + as_row(self.offset, x)


class RunningMeanStd(nn.Module):
    """Normalises by all that it has seen, in both modes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("count", torch.tensor(1e-4))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            values = x.detach().transpose(0, 1).flatten(1)
            n, delta = values.shape[1], values.mean(1) - self.running_mean
            total = self.count + n
            spread = self.running_var * self.count + values.var(1) * n
            self.running_var = (spread + delta**2 * self.count * n / total) / total
            self.running_mean = self.running_mean + delta * n / total
            self.count = total
        return (x - as_row(self.running_mean, x)) / (as_row(self.running_var, x) + 1e-8).sqrt()


@pytest.mark.parametrize("norm", [Renorm, RunningMeanStd])
@TWO
@SEED
def test_a_layer_whose_training_reads_its_statistics_is_left_alone(kind, seed, norm):
    report = passes(Net(kind, seed, norm=norm), data(kind, seed), optimizer=FAST)
    assert not report.predictions.distortion  # no batch normalisation of mean and variance


class Subclass(nn.BatchNorm1d):
    """Another name for the usual layer."""


@SEED
def test_a_subclass_is_stock_but_not_of_torch(seed):
    model = Net("mlp", seed, norm=partial(Subclass, momentum=0.01))
    report = check(model, data("mlp", seed), steps=20, optimizer=FAST)
    remedy = sole(report, "BN101").remedy
    assert "isinstance(module, Subclass)" in remedy
    assert "nn.Subclass" not in remedy


# momentum that changes --------------------------------------------------------------------------


def norms(model: nn.Module) -> list[Any]:
    return [model.get_submodule(name) for name in NORMS]


def step_with(model: nn.Module, after: Callable[[int, Any], None]) -> Callable[..., Tensor]:
    """The usual step, and something after it, which gets the number of steps so far."""
    optimizer, made = FAST(model.parameters()), [0]

    def step(model: nn.Module, batch: Any) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        made[0] += 1
        after(made[0], batch)
        return loss

    return step


@TWO
@SEED
def test_second_forward_that_is_not_tracked(kind, seed):
    model = Net(kind, seed)

    def again(made: int, batch: Any) -> None:
        for norm in norms(model):
            norm.momentum = 0
        model(batch[0] + 3.0)
        for norm in norms(model):
            norm.momentum = 0.1

    report = passes(model, data(kind, seed), train_step=step_with(model, again))
    assert [layer.updates for layer in report.layers] == [150, 150]


def test_second_forward_of_an_own_norm_that_is_not_tracked():
    """Sharpness-aware: a flag of the layer holds its statistics in the second forward."""
    model = Net("mlp", norm=own_norm("Flagged", place="reassigned", rate=0.02))
    step = Steps(F.cross_entropy).sharpness_aware
    report = check(model, data("mlp"), steps=16, train_step=step)
    assert [layer.updates for layer in report.layers] == [16, 16]
    assert [layer.initial_weight for layer in report.layers] == pytest.approx([0.98**16] * 2)


@TWO
@SEED
def test_momentum_that_stays_off_after_a_step(kind, seed):
    """As an optimizer that looks ahead leaves it: the next step switches it on."""
    model = Net(kind, seed)

    def off(made: int, batch: Any) -> None:
        for norm in norms(model):
            norm.momentum = 0

    step = step_with(model, off)

    def on(model: nn.Module, batch: Any) -> Tensor:
        for norm in norms(model):
            norm.momentum = 0.1
        return step(model, batch)

    report = passes(model, data(kind, seed), train_step=on)
    assert [layer.update_rate for layer in report.layers] == [0.1, 0.1]


@pytest.mark.parametrize(("built", "real"), [(0.001, 0.1), (0.1, 0.002)])
@TWO
@SEED
def test_momentum_that_the_training_sets(kind, seed, built, real):
    model = Net(kind, seed, norm=batch_norm(kind, momentum=built))
    for norm in norms(model):
        norm.register_forward_pre_hook(lambda norm, args: setattr(norm, "momentum", real))
    if real == 0.1:
        passes(model, data(kind, seed), optimizer=FAST)
        return
    report = check(model, data(kind, seed), steps=60, optimizer=FAST)
    finding = sole(report, "BN101")
    assert finding.evidence["initial_weight"] == pytest.approx(0.998**60, abs=0.001)


@TWO
@SEED
def test_momentum_that_decays(kind, seed):
    model = Net(kind, seed, norm=batch_norm(kind, momentum=0.01))

    def decay(made: int, batch: Any) -> None:
        for norm in norms(model):
            norm.momentum = 0.01 * 0.9**made

    report = check(model, data(kind, seed), steps=40, train_step=step_with(model, decay))
    finding, expected = sole(report, "BN101"), 1.0
    for made in range(40):
        expected *= 1 - 0.01 * 0.9**made
    assert finding.evidence["initial_weight"] == pytest.approx(expected, abs=1e-3)


# statistics that outnumber the scale ------------------------------------------------------------


class Ghost(nn.BatchNorm1d):
    """Two halves of a batch, each with statistics of its own."""

    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__(channels, **options)
        self.register_buffer("running_mean", torch.zeros(2 * channels))
        self.register_buffer("running_var", torch.ones(2 * channels))

    def forward(self, x: Tensor) -> Tensor:
        n, affine = self.num_features, (None, None)
        mean, var = self.running_mean, self.running_var
        if self.training:
            if self.affine:
                affine = self.weight.repeat(2), self.bias.repeat(2)
            halves = x.reshape(-1, 2 * n)
            rest = (True, self.momentum, self.eps)
            return F.batch_norm(halves, mean, var, *affine, *rest).reshape(-1, n)
        mean, var = mean.view(2, n).mean(0), var.view(2, n).mean(0)
        return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)


@pytest.mark.parametrize("affine", [True, False])
@SEED
def test_ghost_normalisation_has_no_shares(seed, affine):
    norm = partial(Ghost, momentum=0.01, affine=affine)
    report = check(Net("mlp", seed, norm=norm), data("mlp", seed), steps=20, optimizer=FAST)
    assert "BN101" in [finding.code for finding in report.findings]
    assert [layer.attribution for layer in report.layers] == [None, None]


# frozen by values and gradients ------------------------------------------------------------------


class Distilled(nn.Module):
    """A student, and a teacher that it learns from."""

    def __init__(self, kind: str, seed: int) -> None:
        super().__init__()
        self.student = Net(kind, seed)
        self.teacher = nn.Sequential(copy.deepcopy(self.student), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.student(x)
        return logits

    def step(self, training: bool, average: float = 0.0) -> Callable[..., Tensor]:
        optimizer = FAST(self.student.parameters())

        def step(model: Distilled, batch: Any) -> Tensor:
            model.train()
            model.teacher.train(training)
            with torch.no_grad():
                taught = model.teacher(batch[0])
            logits = model.student(batch[0])
            loss = F.cross_entropy(logits, batch[1]) + 0.01 * F.mse_loss(logits, taught)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                pairs = zip(model.teacher.parameters(), model.student.parameters(), strict=True)
                for own, other in pairs:
                    own.lerp_(other, average)
            return loss

        return step


@pytest.mark.parametrize("requires_grad", [True, False])
@TWO
@SEED
def test_teacher_in_eval_mode(kind, seed, requires_grad):
    model = Distilled(kind, seed)
    model.teacher.requires_grad_(requires_grad)
    passes(model, data(kind, seed), train_step=model.step(training=False))


@TWO
@SEED
def test_teacher_that_follows_its_student(kind, seed):
    model = Distilled(kind, seed)
    model.teacher.requires_grad_(False)
    passes(model, data(kind, seed), train_step=model.step(training=True, average=0.05))


class PredictsByTeacher(Distilled):
    """The teacher runs in the step as well, but nothing trains it."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.teacher(x)
        return logits


@TWO
@SEED
@pytest.mark.parametrize(("average", "code"), [(0.001, "BN201"), (1.0, "BN202")])
def test_teacher_that_predicts(kind, seed, average, code):
    model = PredictsByTeacher(kind, seed)
    model.teacher.requires_grad_(False)
    step = model.step(training=True, average=average)
    finding = sole(check(model, data(kind, seed), steps=100, train_step=step), code)
    assert all(name.startswith("student.") for name in finding.evidence["trained"])
    assert all(name.startswith("teacher.") for name in finding.evidence["predicts"])


@pytest.mark.parametrize("requires_grad", [True, False])
@TWO
@SEED
def test_backbone_that_no_optimizer_trains(kind, seed, requires_grad):
    model = nn.Sequential(Net(kind, seed), nn.Linear(4, 4))
    model[0].requires_grad_(requires_grad)
    optimizer = torch.optim.Adam(model[1].parameters(), 1e-2)
    report = check(model, data(kind, seed), steps=80, optimizer=optimizer)
    assert "BN107" in [finding.code for finding in report.findings]


# modes that change late --------------------------------------------------------------------------


@TWO
@SEED
def test_layers_frozen_late(kind, seed):
    """The last epochs with constant statistics."""
    model = Net(kind, seed)

    def freeze(made: int, batch: Any) -> None:
        if made >= 60:
            for norm in norms(model):
                norm.eval()

    report = passes(model, data(kind, seed), train_step=step_with(model, freeze))
    assert report.predictions.gap == 0.0
    assert [layer.updates for layer in report.layers] == [60, 60]
