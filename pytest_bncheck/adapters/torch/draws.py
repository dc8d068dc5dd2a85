"""A mode of PyTorch that tells which of its functions draw random numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.overrides import TorchFunctionMode, resolve_name

from pytest_bncheck.adapters.random_state import fingerprint


class Draws(TorchFunctionMode):
    """Compares every random generator before and after each function of torch.

    Parameters
    ----------
    note
        Called after each function, with the function, its arguments, its keyword arguments and
        whether it drew random numbers.
    """

    def __init__(self, note: Callable[[Any, Any, Any, bool], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = fingerprint(), _argument_state(kwargs)
        result = func(*args, **kwargs)
        self._note(func, args, kwargs, before != (fingerprint(), _argument_state(kwargs)))
        return result


def function_name(func: Any) -> str:
    """A function of torch as users write it: ``F.dropout``, ``torch.rand``."""
    name: str = resolve_name(func) or getattr(func, "__name__", "a function of torch")
    return name.replace("torch.nn.functional.", "F.")


def _argument_state(kwargs: Mapping[str, Any]) -> bytes:
    """State of the generator that a function gets as an argument; empty without one."""
    generator = kwargs.get("generator")
    return b"" if generator is None else bytes(generator.get_state().numpy().tobytes())
