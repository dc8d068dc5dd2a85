"""Calls in PyTorch's eval mode that behave as in training."""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from pytest_bncheck.adapters.random_state import fingerprint
from pytest_bncheck.adapters.sources import PACKAGE, frames_within, line_of, source_line
from pytest_bncheck.adapters.torch.draws import Draws, function_name
from pytest_bncheck.types import Trace

_TORCH = str(Path(torch.__file__).resolve().parent)
_LIBRARIES = (PACKAGE, _TORCH, str(Path(np.__file__).resolve().parent), random.__file__)

_HOST = {"random": "Python's random", "numpy": "numpy.random"}
"""Generators that no function of torch draws from, as messages call them."""

_BATCH_NORM = inspect.signature(functional.batch_norm)


class Tracer:
    """Finds the calls of a pass that draw random numbers or normalise with batch statistics.

    The generators are compared before and after each function of torch. For those of Python and
    numpy also at every line of the user's code, and around every module.

    Parameters
    ----------
    paths
        The path of each module in the model.
    """

    def __init__(self, paths: Mapping[nn.Module, str]) -> None:
        self._paths = paths
        self._found: dict[Trace, None] = {}
        self._stack: list[tuple[nn.Module, dict[str, Any]]] = []
        self._lines = _HostLines()

    def run(self, forward: Callable[[], object]) -> list[Trace]:
        """Make the pass."""
        before = register_module_forward_pre_hook(self._enter)
        after = register_module_forward_hook(self._leave, always_call=True)
        start, trace = fingerprint(), sys.gettrace()
        sys.settrace(self._lines)
        try:
            with Draws(self._note):
                forward()
        finally:
            sys.settrace(trace)
            before.remove()
            after.remove()
        now = fingerprint()
        if start != now and not self._found:
            self._add("random", _generator(start, now), self._lines.last_found)
        return list(self._found)

    def _note(self, func: Any, args: Any, kwargs: Any, drew: bool) -> None:
        if drew:
            self._explained(fingerprint())
            self._add("random", _call(func, args, kwargs), _user_line())
        elif _uses_batch_statistics(func, args, kwargs):
            self._add("batch statistics", _call(func, args, kwargs), _user_line())

    def _enter(self, module: nn.Module, _: Any) -> None:
        self._stack.append((module, fingerprint()))

    def _leave(self, module: nn.Module, *_: Any) -> None:
        entered, before = self._stack.pop()
        now = fingerprint()
        if entered is module and any(before.get(name) != now[name] for name in _HOST):
            source = self._lines.last_found or _forward_line(module)
            self._add("random", _generator(before, now), source)
            self._explained(now)

    def _explained(self, now: dict[str, Any]) -> None:
        """Keep the modules around from reporting random numbers that are explained already."""
        self._stack = [(module, now) for module, _ in self._stack]

    def _add(self, kind: Literal["random", "batch statistics"], call: str, source: str) -> None:
        around = [self._paths[module] for module, _ in self._stack if module in self._paths]
        self._found[Trace(kind, call, around[-1] if around else "", source)] = None


class _HostLines:
    """A trace function that finds the user's line that draws random numbers."""

    def __init__(self) -> None:
        self.last_found = ""
        self._state = fingerprint()
        self._line = ("", 0)

    def __call__(self, frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename.startswith(_LIBRARIES):
            return None
        state = fingerprint()
        if state != self._state:
            self._state = state
            self.last_found = source_line(*self._line) if self._line[1] else ""
        if event == "return":  # the caller's line goes on
            frame = frame.f_back
            while frame is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
                frame = frame.f_back
        if frame is not None and event != "call":
            self._line = (frame.f_code.co_filename, frame.f_lineno)
        return self


def _generator(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The generator that moved, in words."""
    moved = (words for name, words in _HOST.items() if before.get(name) != now[name])
    return next(moved, "a generator of torch")


def _uses_batch_statistics(func: Any, args: Any, kwargs: Any) -> bool:
    if func is not functional.batch_norm:
        return False
    return bool(_BATCH_NORM.bind(*args, **kwargs).arguments.get("training", False))


def _call(func: Any, args: Any, kwargs: Any) -> str:
    """The call with its plain arguments, as code."""
    names = _parameters(func)
    plain = [
        f"{names[k]}={value}" if k < len(names) else f"{value}"
        for k, value in enumerate(args)
        if isinstance(value, (bool, int, float)) and k > 0
    ]
    plain += [
        f"{k}={v}"
        for k, v in kwargs.items()
        if isinstance(v, (bool, int, float)) and v is not False
    ]
    return f"{function_name(func)}({', '.join(plain)})"


def _parameters(func: Any) -> tuple[str, ...]:
    code = getattr(func, "__code__", None)
    return () if code is None else code.co_varnames[: code.co_argcount]


def _user_line() -> str:
    """The line of the user's code that led to the present call of torch; empty if none did."""
    frames = frames_within(Tracer.run.__code__)
    own = (frame for frame in frames if not frame.f_code.co_filename.startswith(_TORCH))
    return next(map(line_of, own), "")


def _forward_line(module: nn.Module) -> str:
    code = getattr(type(module).forward, "__code__", None)
    return "" if code is None else source_line(code.co_filename, code.co_firstlineno)
