"""Private names of other packages: only the files that guard against their loss may have them.

What happens where one is missing is tested beside the tests of each package's adapter, or plugin.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

import pytest_bncheck

PACKAGE = Path(pytest_bncheck.__file__).parent
SOURCES = {
    path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted(PACKAGE.rglob("*.py"))
}


@dataclass(frozen=True)
class Private:
    """The private names of one package.

    Attributes
    ----------
    files
        The files of ours that may have them.
    patterns
        Regular expressions of the names.
    """

    files: tuple[str, ...]
    patterns: tuple[str, ...]


PRIVATE = {
    "torch": Private(
        ("adapters/torch/internals.py",),
        (
            r"\btorch(\.\w+)*(\._| import [^\n]*\b_)[A-Za-z]",  # torch._C, from torch import _C
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
    "pytest": Private(
        ("plugin/internals.py",),
        (
            *("_fixturemanager", r"\.argnames", r"\.baseid", r"\.fixturenames", "istestfunction"),
            *("pytestmark", "reprcrash", "capturemanager", "logging-plugin", "log_cli_level"),
            *("workerinput", "workeroutput"),
        ),
    ),
}


def found(text: str, *patterns: str) -> list[str]:
    """Every line with a private name."""
    return [line for line in text.splitlines() if any(re.search(p, line) for p in patterns)]


@pytest.mark.parametrize(
    ("package", "pattern"),
    [(package, each) for package, private in PRIVATE.items() for each in private.patterns],
)
def test_a_private_name_occurs_in_no_other_file(package, pattern):
    lines = {name: here for name, text in SOURCES.items() if (here := found(text, pattern))}
    allowed = PRIVATE[package].files
    assert {name: here for name, here in lines.items() if name not in allowed} == {}
    assert lines, "nothing is found by this pattern"


@pytest.mark.parametrize("package", PRIVATE)
def test_each_of_these_files_has_a_private_name(package):
    private = PRIVATE[package]
    assert [name for name in private.files if not found(SOURCES[name], *private.patterns)] == []


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("torch", "context = torch._GLOBAL_DEVICE_CONTEXT"),
        ("torch", "torch._C._autograd"),
        ("torch", "from torch.nn.modules.batchnorm import _NormBase"),
        ("torch", "from torch._dynamo import config"),
        ("torch", "from torch.utils import _pytree"),
        ("torch", "import torch._inductor"),
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
        ("pytest", "session._fixturemanager"),
    ],
)
def test_the_patterns_see_a_private_name(package, line):
    assert found(line, *PRIVATE[package].patterns)


@pytest.mark.parametrize("line", ["torch.compiler.set_stance", "self._parameters", "self._modules"])
def test_the_patterns_pass_over_public_and_our_own_names(line):
    assert not found(line, *PRIVATE["torch"].patterns)
