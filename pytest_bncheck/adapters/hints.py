"""What to paste where a batch, a model or a loop cannot be understood: one error, with code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_bncheck.types import InputError

FORWARD = """\
    @pytest.fixture
    def bncheck_forward():
        def forward(model, batch):
            return {outputs}

        return forward
"""

LOSS = """\
    @pytest.fixture
    def bncheck_loss():
        def loss(outputs, targets):
            # Your own, for example:
            return {loss}

        return loss
"""

UNKNOWN_OUTPUTS = "model(...)  # its predictions, from batch"
UNKNOWN_LOSS = "...  # your own, from model and batch"


def error(problem: str, hooks: str, *code: str) -> InputError:
    """The error that names the fixtures to override, with an example of each.

    A problem that says itself what else can be done ends with ``or``.
    """
    stop = "" if problem.endswith(" or") else ";"
    text = "\n".join(code)
    return InputError(f"{problem}{stop} override {hooks}, for example in conftest.py:\n\n{text}")


def part(name: str, value: Any) -> str:
    """The expression for the first part of outputs or targets: ``outputs["a"]``."""
    if isinstance(value, Mapping) and value:
        return f"{name}[{next(iter(value))!r}]".replace("'", '"')
    return f"{name}[0]" if isinstance(value, (tuple, list)) and value else name


def kind(value: Any) -> str:
    """What something is, in words: ``None``, ``a tuple of 3``, ``a dict with 'a', 'b'``."""
    if value is None:
        return "None"
    name = type(value).__name__
    article = "an" if name[0].lower() in "aeio" else "a"
    if isinstance(value, Mapping):
        return f"{article} {name} with {', '.join(map(repr, value)) or 'nothing'}"
    count = f" of {len(value)}" if isinstance(value, (tuple, list)) else ""
    return f"{article} {name}{count}"
