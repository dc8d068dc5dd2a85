"""Private names of PyTorch: what happens in a version that lacks one."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

import pytest_bncheck
from pytest_bncheck import InputError, check
from pytest_bncheck.adapters.versions import find


def pytorch_check():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU())
    x = torch.linspace(-1.0, 2.0, 24).reshape(8, 3)
    return model, lambda: check(model, (x, torch.zeros(8, 4)), steps=3)


def said(report):
    """All that a report says, but for the time that it took."""
    return json.dumps({k: v for k, v in report.to_dict().items() if k != "seconds"}, default=str)


def test_a_pytorch_without_a_name_that_is_needed_is_refused_at_the_start(monkeypatch):
    model, run = pytorch_check()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make = torch.nn.Module.__init__

    def made(module, *args, **kwargs):
        make(module, *args, **kwargs)
        vars(module).pop("_buffers", None)

    monkeypatch.setattr(torch.nn.Module, "__init__", made)
    with pytest.raises(InputError) as error:
        run()
    monkeypatch.undo()
    assert str(error.value) == (
        f"PyTorch {torch.__version__} is not supported by pytest-bncheck "
        f"{pytest_bncheck.__version__}; it lacks torch.nn.Module._buffers."
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert run().verdict != "error"


@pytest.mark.parametrize(
    "path",
    ["_GLOBAL_DEVICE_CONTEXT", "compiler.set_stance", "_C._autograd._unsafe_set_version_counter"],
)
def test_a_pytorch_without_a_name_that_can_be_missed_is_checked_as_ever(monkeypatch, path):
    _, run = pytorch_check()
    expected = said(run())
    *place, last = path.split(".")
    owner = find(".".join(("torch", *place)))
    if not hasattr(owner, last):
        pytest.skip(f"this version has no torch.{path} either")
    monkeypatch.setattr(torch, "get_default_device", lambda: torch.device("cpu"))  # uses the first
    monkeypatch.delattr(owner, last)
    assert said(run()) == expected
    monkeypatch.undo()
    assert torch.get_default_device() == torch.device("cpu")
