"""Errors for batches, models and training loops that are not understood, with code to paste."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_bncheck.types import InputError

_FORWARD = """\
    @pytest.fixture
    def bncheck_forward():
        def forward(model, batch):
            return {outputs}

        return forward
"""

_LOSS = """\
    @pytest.fixture
    def bncheck_loss():
        def loss(outputs, targets):
            # Your own, for example:
            return {loss}

        return loss
"""

UNKNOWN_OUTPUTS = "model(...)  # its predictions, from batch"
UNKNOWN_LOSS = "...  # your own, from model and batch"


class Hints:
    """The errors of one framework that name fixtures to override, with an example of each.

    A problem that says itself what else can be done ends with ``or``.

    Parameters
    ----------
    train_step
        Example of ``bncheck_train_step``, with ``{loss}`` where the loss is computed.
    loss
        A loss as an expression of ``{outputs}`` and ``{targets}``.
    """

    def __init__(self, train_step: str, loss: str) -> None:
        self._train_step, self._loss = train_step, loss

    def no_step(self, problem: str, loss: str = UNKNOWN_LOSS) -> InputError:
        """The error where the training step has to come from the user."""
        return _error(problem, "bncheck_train_step", self._train_step.format(loss=loss))

    def no_forward(self, problem: str, outputs: str = UNKNOWN_OUTPUTS) -> InputError:
        """The error where the call of the model has to come from the user."""
        return _error(problem, "bncheck_forward", _FORWARD.format(outputs=outputs))

    def no_forward_and_step(
        self, problem: str, outputs: str = UNKNOWN_OUTPUTS, loss: str = UNKNOWN_LOSS
    ) -> InputError:
        """The error where only the user knows what the batch means."""
        return _error(
            problem,
            "bncheck_forward and bncheck_train_step",
            _FORWARD.format(outputs=outputs),
            self._train_step.format(loss=loss),
        )

    def no_loss(self, problem: str, outputs: Any = None, targets: Any = None) -> InputError:
        """The error where the loss has to come from the user, with an example for these values."""
        loss = self._loss.format(
            outputs=_first("outputs", outputs), targets=_first("targets", targets)
        )
        return _error(problem, "bncheck_loss", _LOSS.format(loss=loss))


def _error(problem: str, fixtures: str, *code: str) -> InputError:
    stop = "" if problem.endswith(" or") else ";"
    text = "\n".join(code)
    return InputError(f"{problem}{stop} override {fixtures}, for example in conftest.py:\n\n{text}")


def _first(name: str, value: Any) -> str:
    """The expression for the first part of outputs or targets: ``outputs["a"]``."""
    if isinstance(value, Mapping) and value:
        return f"{name}[{next(iter(value))!r}]".replace("'", '"')
    return f"{name}[0]" if isinstance(value, (tuple, list)) and value else name


def kind(value: Any) -> str:
    """A value's type in words: ``None``, ``a tuple of 3``, ``a dict with 'a', 'b'``."""
    if value is None:
        return "None"
    name = type(value).__name__
    article = "an" if name[0].lower() in "aeio" else "a"
    if isinstance(value, Mapping):
        return f"{article} {name} with {', '.join(map(repr, value)) or 'nothing'}"
    count = f" of {len(value)}" if isinstance(value, (tuple, list)) else ""
    return f"{article} {name}{count}"
