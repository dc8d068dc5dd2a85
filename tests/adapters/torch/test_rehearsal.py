"""The pass before the last training step, beside the step: what was trained, on which data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn
from torch.nn import functional as F

from pytest_bncheck import check
from torch_nets import FAST, Net, data

TWO = pytest.mark.parametrize(("kind", "seed"), [("mlp", 0), ("residual", 1)])
Change = Callable[[Tensor], Tensor]


def codes(report: Any) -> list[str]:
    return [finding.code for finding in report.findings]


def step_on(model: nn.Module, change: Change) -> Any:
    """A training step that changes its inputs."""
    optimizer = FAST(model.parameters())

    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(change(batch[0])), batch[1])
        loss.backward()
        optimizer.step()
        return loss

    return step


@TWO
def test_noise_that_the_step_adds_is_no_fault(kind, seed):
    model = Net(kind, seed)
    noisy = step_on(model, lambda x: x + torch.randn_like(x))
    report = check(model, data(kind, seed), steps=120, train_step=noisy)
    assert not codes(report), str(report)


@TWO
def test_step_that_scales_its_inputs(kind, seed):
    """Batch normalisation hides it in training mode, and running statistics do not."""
    model = Net(kind, seed)
    scaled = step_on(model, lambda x: 4.0 * x - 3.0)
    report = check(model, data(kind, seed), steps=120, train_step=scaled)
    assert codes(report) == ["BN201"], str(report)
    assert report.verdict == "fail"
    assert "inputs of the prediction" in report.findings[0].remedy


class Averaged(nn.Module):
    """Trains one network, and predicts with a copy that follows it."""

    def __init__(self, kind: str, seed: int) -> None:
        super().__init__()
        self.net = Net(kind, seed)
        self.copy = copy.deepcopy(self.net).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.copy(x)
        return logits


@pytest.mark.parametrize(("follow", "code"), [(0.5, "BN202"), (0.001, "BN201")])
@TWO
def test_copy_that_predicts(kind, seed, follow, code):
    model = Averaged(kind, seed)
    train = step_on(model.net, lambda x: x)

    def step(model: Averaged, batch: Any) -> Any:
        loss = train(model.net, batch)
        pairs = zip(
            (*model.copy.parameters(), *model.copy.buffers()),
            (*model.net.parameters(), *model.net.buffers()),
            strict=True,
        )
        for mine, other in pairs:
            if mine.is_floating_point():
                mine.data.lerp_(other.data, follow)
        return loss

    report = check(model, data(kind, seed), steps=60, train_step=step)
    assert codes(report) == [code], str(report)
    assert "`net." in report.findings[0].message
    assert "`copy." in report.findings[0].message


@TWO
def test_a_rehearsal_leaves_modes_and_random_numbers(kind, seed):
    """A step that ends in eval mode, as after a validation, goes on as without the check."""
    drawn: list[float] = []
    model = Net(kind, seed)
    train = step_on(model, lambda x: x)

    def step(model: nn.Module, batch: Any) -> Any:
        assert not drawn or not model.training
        drawn.append(float(torch.rand(())))
        loss = train(model.train(), batch)
        model.eval()
        return loss

    for steps in (7, 8):
        drawn.clear()
        check(model, data(kind, seed), steps=steps, train_step=step)
        if steps == 7:
            first = drawn[:7]
    assert drawn[:7] == first


def plain(kind: str, seed: int) -> nn.Module:
    """A network without normalisation, in which no statistics tell on what it learns."""
    model = Net(kind, seed)
    for name, module in list(model.named_modules()):
        if "Norm" in type(module).__name__:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, nn.Identity())
    return model


@TWO
@pytest.mark.parametrize(
    "change", [lambda x: 2.0 - 3.0 * x, lambda x: x.flip(-1)], ids=["scaled", "flipped"]
)
def test_step_on_other_inputs_without_statistics(kind, seed, change):
    model = plain(kind, seed)
    report = check(model, data(kind, seed), steps=120, train_step=step_on(model, change))
    assert codes(report) == ["BN201"], str(report)
    assert report.verdict == "fail"
    assert "learns on other inputs" in report.findings[0].message
    assert "forward=" in report.findings[0].remedy


def mixed(x: Tensor) -> Tensor:
    return 0.9 * x + 0.1 * x.roll(1, 0)


@TWO
@pytest.mark.parametrize(
    "change",
    [lambda x: x + 0.3 * torch.randn_like(x), mixed, lambda x: x],
    ids=["noise", "mixed", "none"],
)
def test_step_that_augments_without_statistics_is_no_fault(kind, seed, change):
    model = plain(kind, seed)
    report = check(model, data(kind, seed), steps=120, train_step=step_on(model, change))
    assert not codes(report), str(report)


@TWO
def test_step_of_several_updates_is_no_fault(kind, seed):
    model = plain(kind, seed)
    train = step_on(model, lambda x: x)

    def step(model: nn.Module, batch: Any) -> Any:
        return [train(model, batch) for _ in range(5)][-1]

    report = check(model, data(kind, seed), steps=10, train_step=step)
    assert "BN201" not in codes(report), str(report)


@TWO
def test_what_depends_on_gradients_is_no_other_input(kind, seed):
    """The pass beside the step has gradients, too."""

    class Graded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net(kind, seed)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(4.0 * x - 3.0 if torch.is_grad_enabled() else x)
            return logits

    model = Graded()
    report = check(model, data(kind, seed), steps=120, train_step=step_on(model, lambda x: x))
    assert codes(report) == ["BN201"], str(report)
    assert "is_grad_enabled" in report.findings[0].cause
