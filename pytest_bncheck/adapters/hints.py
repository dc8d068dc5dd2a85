"""Errors for batches, models and training loops that are not understood, with code to paste."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from pytest_bncheck.adapters.arrays import is_numbers
from pytest_bncheck.adapters.signatures import argument_for_training
from pytest_bncheck.types import InputError, Recipe

PAGE = "docs/how-to/inputs.md"
"""The page with every way out of an input that is not understood."""

_NOTHING = Recipe()
_given: ContextVar[Recipe] = ContextVar("given", default=_NOTHING)
"""The functions that the user has written already, which the code of an error uses."""


@contextmanager
def given(recipe: Recipe) -> Iterator[None]:
    """For the time of a ``with`` block: errors show code that uses the user's functions."""
    token = _given.set(recipe)
    try:
        yield
    finally:
        _given.reset(token)


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
        Example of ``bncheck_train_step``, with ``{arguments}``, ``{optimizer}`` and ``{loss}``.
    optimizer
        The optimizer of such an example.
    parameters
        What ``bncheck_optimizer`` takes.
    loss
        A loss as an expression of ``{outputs}`` and ``{targets}``.
    """

    def __init__(self, train_step: str, optimizer: str, parameters: str, loss: str) -> None:
        self._train_step, self._loss = train_step, loss
        self._optimizer, self._parameters = optimizer, parameters

    def no_step(self, problem: str, loss: str = UNKNOWN_LOSS) -> InputError:
        """The error where the training step has to come from the user."""
        return _error(problem, "bncheck_train_step", self._step(loss))

    def no_forward(self, problem: str, outputs: str = UNKNOWN_OUTPUTS) -> InputError:
        """The error where the call of the model has to come from the user."""
        return _error(problem, "bncheck_forward", _FORWARD.format(outputs=outputs))

    def _step(self, loss: str) -> str:
        """An example of a training step, with the functions that the user has written."""
        own, optimizer, used = _given.get(), self._optimizer, []
        if own.optimizer is not None and callable(own.optimizer):
            optimizer = f"bncheck_optimizer({self._parameters})"
            used.append("bncheck_optimizer")
        if own.loss is not None and loss == UNKNOWN_LOSS:
            outputs = "model(...)"
            if own.forward is not None:
                outputs = f"bncheck_forward(model, batch{argument_for_training(own.forward)})"
                used.append("bncheck_forward")
            loss = f"bncheck_loss({outputs}, ...)  # its targets, from batch"
            used.append("bncheck_loss")
        if "bncheck_model" in optimizer:
            used.insert(0, "bncheck_model")
        return self._train_step.format(arguments=", ".join(used), optimizer=optimizer, loss=loss)

    def no_forward_and_step(
        self, problem: str, outputs: str = UNKNOWN_OUTPUTS, loss: str = UNKNOWN_LOSS
    ) -> InputError:
        """The error where only the user knows what the batch means."""
        if _given.get().train_step is not None:
            return self.no_forward(problem, outputs)
        if _given.get().forward is not None:
            return self.no_step(problem, loss)
        return _error(
            problem,
            "bncheck_forward and bncheck_train_step",
            _FORWARD.format(outputs=outputs),
            self._step(loss),
        )

    def no_loss(self, problem: str, outputs: Any = None, targets: Any = None) -> InputError:
        """The error where the loss has to come from the user, with an example for these values."""
        loss = self._loss.format(
            outputs=_first("outputs", outputs), targets=_first("targets", targets)
        )
        return _error(problem, "bncheck_loss", _LOSS.format(loss=loss))


def _error(problem: str, fixtures: str, *code: str) -> InputError:
    stop = "" if problem.endswith(" or") else ";"
    text = "\n".join([*code, f"    # The ways out of this, with an example each: {PAGE}\n"])
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


def seen(value: Any, name: str = "batch") -> str:
    """The arrays in a batch, each with type and shape: ``batch[0]: float32 (64, 8)``."""
    found = list(_arrays(value, name, 3))
    more = [] if len(found) <= _MOST else ["..."]
    return ", ".join([*found[:_MOST], *more])


_MOST = 6
"""Arrays that an error lists."""


def _arrays(value: Any, path: str, levels: int) -> Iterator[str]:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        yield f"{path}: {array(value)}"
    elif levels and isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _arrays(item, f"{path}[{key!r}]", levels - 1)
    elif levels and isinstance(value, (tuple, list)) and value and not is_numbers(value):
        for index, item in enumerate(value):
            yield from _arrays(item, f"{path}[{index}]", levels - 1)
    else:
        yield f"{path}: {kind(value)}"


def array(value: Any) -> str:
    """Type and shape of an array: ``float32 (64, 8)``."""
    dtype = getattr(value.dtype, "name", None) or str(value.dtype)
    shape = ", ".join(map(str, value.shape))
    return f"{dtype.removeprefix('torch.')} ({shape})"
