"""Programs that were traced, scripted or exported from a PyTorch model."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from pytest_bncheck import check
from torch_nets import KIND, SEED, Net, data, sole

# torch.jit is on its way out, and warns of what it takes for constant.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


def traced(model: nn.Module, inputs: Any) -> Any:
    return torch.jit.trace(model, inputs, check_trace=False)


def loaded(model: nn.Module, inputs: Any) -> Any:
    file = io.BytesIO()
    torch.jit.save(traced(model, inputs), file)
    file.seek(0)
    return torch.jit.load(file)


def exported(model: nn.Module, inputs: Any) -> Any:
    size = torch.export.Dim("size", min=2)
    return torch.export.export(model, (inputs,), dynamic_shapes=({0: size},))


def exported_module(model: nn.Module, inputs: Any) -> Any:
    return exported(model, inputs).module()


MAKERS = pytest.mark.parametrize("make", [traced, loaded, exported, exported_module])


@functools.cache
def program(make: Callable[..., Any], kind: str, seed: int, training: bool, p: float) -> Any:
    torch.manual_seed(seed)
    model = nn.Sequential(Net(kind, seed), nn.Dropout(p)).train(training)
    return make(model, torch.from_numpy(data(kind, seed)[0]))


@pytest.mark.parametrize("p", [0.0, 0.5])
@MAKERS
@pytest.mark.parametrize("kind", ["mlp", "conv"])
@SEED
def test_made_in_training_mode(kind, seed, make, p):
    model = program(make, kind, seed, True, p)
    finding = sole(check(model, data(kind, seed), steps=0, seed=seed), "BN403")
    assert finding.severity == "error"
    if p:
        assert "two predictions of the same batch differ by" in finding.message
    else:
        assert "prediction changes by" in finding.message
    assert "running_mean" in finding.message
    assert "model.eval()" in finding.remedy


@MAKERS
@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_made_in_eval_mode(kind, make):
    report = check(program(make, kind, 0, False, 0.5), data(kind), steps=0)
    assert report.verdict == "pass", str(report)


@KIND
def test_a_scripted_model_still_has_its_modes(kind):
    model = torch.jit.script(Net(kind))
    assert check(model, data(kind), steps=0).verdict == "pass"
    assert model.training


@MAKERS
def test_a_program_is_as_it_was(make):
    model = program(make, "mlp", 0, True, 0.5)
    module = model.module() if make is exported else model
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    modes = [part.training for part in module.modules()]
    check(model, data("mlp"), steps=0)
    assert all(torch.equal(before[name], buffer) for name, buffer in module.named_buffers())
    assert [part.training for part in module.modules()] == modes


@MAKERS
def test_a_program_cannot_be_watched_while_it_trains(make):
    with pytest.raises(ValueError, match="or steps=0 to judge it as it is"):
        check(program(make, "mlp", 0, False, 0.5), data("mlp"))


def test_a_program_stays_where_it_is():
    with pytest.raises(ValueError, match="leave device out"):
        check(program(traced, "mlp", 0, False, 0.5), data("mlp"), steps=0, device="cpu")
