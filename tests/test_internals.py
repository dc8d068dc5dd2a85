"""Private names of frameworks: one file names them, and a missing one is refused in one line."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

import pytest_bncheck
from pytest_bncheck import InputError, check
from pytest_bncheck.adapters.versions import find, require

PACKAGE = Path(pytest_bncheck.__file__).parent


@dataclass(frozen=True)
class Private:
    """The private names of one framework.

    Attributes
    ----------
    files
        The files that may have them, relative to the package.
    patterns
        Regular expressions of the names.
    """

    files: tuple[str, ...]
    patterns: tuple[str, ...]


PRIVATE = {
    "torch": Private(
        ("adapters/torch/internals.py",),
        (
            r"\btorch(\.\w+)*\._[A-Za-z]",  # torch._C, torch._GLOBAL_DEVICE_CONTEXT
            r"\bfrom torch[\w.]*\._\w+",
            r"\bfrom torch[\w.]* import [^\n]*\b_[a-z]",
            r"\bimport torch[\w.]*\._",
            r"\b_(orig_mod|NormBase|DropoutNd|unsafe_set_version_counter|dynamo)\b",
            r"(?<!self)\._(version|parameters|buffers|modules)\b",
            r"[\"']_(version|parameters|buffers|modules)[\"']",
            r"more than 1 value per channel",  # the words of an error
            r"LogSoftmax",  # a node of the autograd graph
        ),
    ),
    "lightning": Private(
        ("adapters/torch/internals.py",),
        (r"\b_fabric(_optimizers)?\b",),
    ),
    "keras": Private(
        (
            "adapters/keras/internals.py",
            "adapters/keras/backends/torch_internals.py",
            "adapters/random_state.py",
        ),
        (
            r"\bkeras\.src\b",
            r"\b_(flatten_layers|clear_losses|seed_generators|tracker|inputs_struct|keras_logits)\b",
            r"\b_(call_has_training_arg|compile_loss|compile_metrics|compute_loss)\b",
            r"(?<!self)\._(layers|(non_)?trainable_variables|learning_rate|value|user_loss)\b",
            r"[\"'](global_\w+|object_name_uids|current_call_ctx)[\"']",  # keys
        ),
    ),
    "tensorflow": Private(
        (
            "adapters/keras/backends/tensorflow_internals.py",
            "adapters/keras/internals.py",
            "adapters/random_state.py",
        ),
        (r"\btensorflow\.python\b", r"\b_internal_operation_seed\b", r"\._rng\b"),
    ),
    "jax": Private(
        ("adapters/keras/backends/jax_internals.py",),
        (r"\bjax\.(core|_src|config)\b", r"\bto_concrete_value\b", r"\.committed\b", r"\bxla_"),
    ),
}


def found(text: str, private: Private) -> list[str]:
    """Every line with a private name."""
    patterns = [re.compile(pattern) for pattern in private.patterns]
    return [line for line in text.splitlines() if any(p.search(line) for p in patterns)]


@pytest.mark.parametrize("framework", PRIVATE)
def test_private_names_occur_in_no_other_file(framework):
    private = PRIVATE[framework]
    lines = {
        str(path.relative_to(PACKAGE)): found(path.read_text(encoding="utf-8"), private)
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    assert {name: here for name, here in lines.items() if here and name not in private.files} == {}
    for name in private.files:
        assert lines[name], f"{name} has no private name that the patterns find"


@pytest.mark.parametrize(
    ("framework", "line"),
    [
        ("torch", "context = torch._GLOBAL_DEVICE_CONTEXT"),
        ("torch", "torch._C._autograd"),
        ("torch", "from torch.nn.modules.batchnorm import _NormBase"),
        ("torch", "from torch._dynamo import config"),
        ("torch", 'getattr(model, "_orig_mod", model)'),
        ("torch", "version = tensor._version"),
        ("torch", "module._parameters.clear()"),
        ("torch", 'for key in ("_modules", "_buffers"):'),
        ("lightning", "module._fabric = trainer"),
        ("keras", "from keras.src.layers.layer import CallContext"),
        ("keras", "for inner in layer._layers:"),
        ("keras", 'getattr(model, "_compile_loss", None)'),
        ("keras", 'state("current_call_ctx")'),
        ("tensorflow", "from tensorflow.python.eager import context"),
        ("tensorflow", "context()._rng"),
        ("jax", "isinstance(tensor, jax.core.Tracer)"),
        ("jax", "sharding = value.committed"),
    ],
)
def test_the_patterns_see_a_private_name(framework, line):
    assert found(line, PRIVATE[framework])


@pytest.mark.parametrize("line", ["torch.compiler.set_stance", "self._parameters", "self._modules"])
def test_the_patterns_pass_over_public_and_our_own_names(line):
    assert not found(line, PRIVATE["torch"])


def test_what_is_there_is_found():
    assert find("os.path.join") is __import__("os").path.join
    assert find("os.path.nothing") is None
    assert find("no_such_package.module") is None
    require("Python", "3.99", [])


def test_missing_names_are_refused_with_both_versions():
    with pytest.raises(InputError) as error:
        require("Python", "3.99", ["os.nothing", "os.path.none"])
    assert str(error.value) == (
        f"Python 3.99 is not supported by pytest-bncheck {pytest_bncheck.__version__}; "
        "it lacks os.nothing, os.path.none."
    )


# PyTorch ------------------------------------------------------------------------------------------


def pytorch_check():
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU())
    x = torch.linspace(-1.0, 2.0, 24).reshape(8, 3)
    return model, lambda: check(model, (x, torch.zeros(8, 4)), steps=3)


def said(report):
    """All that a report says, but for the time that it took."""
    return json.dumps({k: v for k, v in report.to_dict().items() if k != "seconds"}, default=str)


def test_a_pytorch_without_a_name_that_is_needed_is_refused_at_the_start(monkeypatch):
    model, run = pytorch_check()
    torch = pytest.importorskip("torch")
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
    torch = pytest.importorskip("torch")
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
