"""What the user's functions want to know."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def takes_training(function: Callable[..., Any]) -> bool:
    """Whether a ``forward(model, batch, training)`` asks for the mode of each pass.

    It has a parameter ``training``, or a third one without a default; one with a default holds
    what the function closes over.
    """
    parameters = _parameters(function)
    needed = [p for p in parameters if p.kind in _POSITIONAL and p.default is p.empty]
    return len(needed) == 3 or any(p.name == "training" for p in parameters)


def forwarded(function: Callable[..., Any], model: Any, batch: Any, *, training: bool) -> Any:
    """What the user's ``forward`` returns, with the mode if it asks for it."""
    __tracebackhide__ = True
    if not takes_training(function):
        return function(model, batch)
    if _is_named(function):
        return function(model, batch, training=training)
    return function(model, batch, training)


def argument_for_training(function: Callable[..., Any]) -> str:
    """How code tells a ``forward`` that it trains: ``, training=True``, or nothing."""
    if not takes_training(function):
        return ""
    return ", training=True" if _is_named(function) else ", True"


def _is_named(function: Callable[..., Any]) -> bool:
    return any(p.name == "training" for p in _parameters(function))


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a callable of C
        return []
