"""Copies, averages and checkpoints without their running statistics, in PyTorch."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, update_bn

from pytest_bncheck import check
from torch_nets import FAST, KIND, NORMS, SEED, Net, data, passes, sole


def trained(model: nn.Module, batch: Any, steps: int = 100, follow: Any = None) -> nn.Module:
    """The model after so many steps; `follow` is called after each."""
    inputs, labels = map(torch.from_numpy, batch)
    optimizer = FAST(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        if follow is not None:
            follow(model)
    return model


def copy_parameters(source: nn.Module, target: nn.Module, weight: float = 1.0) -> None:
    with torch.no_grad():
        for own, other in zip(target.parameters(), source.parameters(), strict=True):
            own.lerp_(other, weight)


def far(kind: str, seed: int) -> tuple[Any, Any]:
    """Data on which the initial 0 and 1 decide otherwise than batch statistics."""
    inputs, labels = data(kind, seed)
    return 20.0 * inputs + 50.0, labels


@KIND
@SEED
def test_parameters_loaded_without_buffers(kind, seed):
    batch = far(kind, seed)
    target = Net(kind, seed)
    copy_parameters(trained(Net(kind, seed), batch), target)
    finding = sole(check(target, batch, steps=0), "BN401")
    assert finding.severity == "error"
    assert finding.layers == NORMS
    assert "exactly 0 and 1 beside trained parameters" in finding.message
    assert "load_state_dict" in finding.remedy


@KIND
@SEED
def test_average_of_parameters_without_buffers(kind, seed):
    """A teacher that never runs while its student trains."""
    batch, student = data(kind, seed), Net(kind, seed)
    teacher = copy.deepcopy(student)
    trained(student, batch, follow=lambda model: copy_parameters(model, teacher, 0.1))
    assert sole(check(teacher, batch, steps=0), "BN401").layers == NORMS
    passes(student, batch, steps=0)


@SEED
def test_one_layer_that_lost_its_statistics_is_named(seed):
    batch = far("mlp", seed)
    model = trained(Net("mlp", seed), batch)
    model.blocks[0].norm.reset_running_stats()
    finding = sole(check(model, batch, steps=0), "BN401")
    assert (finding.layers, finding.severity) == (["blocks.0.norm"], "error")


@SEED
def test_lost_statistics_that_decide_as_well_are_no_fault(seed):
    batch = data("residual", seed)
    model = trained(Net("residual", seed), batch)
    model.blocks[1].norm.reset_running_stats()
    report = check(model, batch, steps=0)
    assert report.predictions.gap > 1
    assert report.predictions.eval.loss < report.predictions.train.loss
    assert not report.findings
    assert "Eval mode decides like training mode: gap 1." in str(report)


@pytest.mark.parametrize("kind", ["conv", "residual"])
def test_lost_statistics_that_cost_little_are_a_warning(kind):
    batch = data(kind, 0)
    target = Net(kind, 0)
    copy_parameters(trained(Net(kind, 0), batch), target)
    finding = sole(check(target, batch, steps=0), "BN401")
    assert (finding.layers, finding.severity) == (NORMS, "warning")


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", ["mlp", "conv"])
@SEED
def test_statistics_of_another_training(kind, seed, affine):
    """Stale, not lost: they belong to data of another scale."""
    inputs, labels = data(kind, seed)
    target = trained(Net(kind, seed, affine=affine), (20.0 * inputs + 50.0, labels))
    copy_parameters(trained(Net(kind, seed, affine=affine), (inputs, labels)), target)
    finding = sole(check(target, (inputs, labels), steps=0), "BN401")
    assert "do not belong to" in finding.cause
    assert "e-estimate the statistics before predicting" in finding.remedy


@KIND
@SEED
def test_average_with_recalibration(kind, seed):
    batch = data(kind, seed)
    average = AveragedModel(Net(kind, seed))
    trained(average.module, batch)
    average.module.blocks[0].norm.reset_running_stats()
    update_bn([torch.from_numpy(batch[0])] * 50, average)
    passes(average, batch, steps=0)


@KIND
def test_a_new_network_has_lost_nothing(kind):
    codes = {finding.code for finding in check(Net(kind), data(kind), steps=0).findings}
    assert "BN401" not in codes


class Unsaved(nn.BatchNorm1d):
    """Keeps its statistics out of the model's state."""

    def __init__(self, channels: int, how: str) -> None:
        super().__init__(channels)
        mean, var = self.running_mean, self.running_var
        del self.running_mean, self.running_var
        if how == "attribute":
            self.running_mean, self.running_var = mean, var
        else:
            self.register_buffer("running_mean", mean, persistent=False)
            self.register_buffer("running_var", var, persistent=False)


@pytest.mark.parametrize("how", ["attribute", "not persistent"])
@SEED
def test_statistics_that_no_checkpoint_would_hold(how, seed):
    model = Net("mlp", seed, norm=lambda channels: Unsaved(channels, how))
    finding = sole(check(model, data("mlp", seed), steps=150, seed=seed), "BN401")
    assert finding.layers == NORMS
    assert "leaves out" in finding.message
    assert "register_buffer" in finding.remedy


class OwnState(Net):
    """A state with other names, and with copies of the tensors."""

    def state_dict(self, **options: Any) -> dict[str, Tensor]:
        state = super().state_dict(**options)
        return {"net": {key.upper(): value.clone() for key, value in state.items()}}


class NoState(Net):
    """A model that cannot be saved at all."""

    def state_dict(self, **options: Any) -> Any:
        raise RuntimeError("not this way")


@pytest.mark.parametrize("kind", [OwnState, NoState])
def test_state_of_ones_own(kind):
    passes(kind("mlp"), data("mlp"))


@KIND
def test_synchronised_layers_in_one_process(kind):
    model = nn.SyncBatchNorm.convert_sync_batchnorm(Net(kind))
    report = passes(model, data(kind))
    assert {layer.type for layer in report.layers} == {"SyncBatchNorm"}
