"""How the modules of a PyTorch model mind the mode: which ignore it, which calls do, and where."""

from __future__ import annotations

import linecache
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode, resolve_name

from pytest_bncheck.adapters.torch.state import random_fingerprint
from pytest_bncheck.types import Trace

_SIMPLE = (bool, int, float, str, type(None))
_PACKAGE = str(Path(__file__).resolve().parents[2])
_TORCH = str(Path(torch.__file__).resolve().parent)
_LIBRARIES = (_PACKAGE, _TORCH, str(Path(np.__file__).resolve().parent), random.__file__)

_TRAINING_ARGUMENT = 5
"""Place of `training` among the arguments of `F.batch_norm`."""


def depends_on_mode(module: nn.Module) -> bool:
    """Whether a module computes something else in training mode, as far as can be told.

    Library layers are known; of the user's own, the code is asked whether it reads `training`.
    """
    if isinstance(module, (_NormBase, _DropoutNd, nn.RReLU)):
        return not isinstance(module, _DropoutNd) or module.p > 0
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.dropout > 0)
    if isinstance(module, nn.RNNBase):
        return bool(module.dropout > 0) and module.num_layers > 1
    if type(module).__module__.startswith("torch."):
        return False
    code = getattr(type(module).forward, "__code__", None)
    return code is not None and "training" in code.co_names


class Watch:
    """Which modules ran, in which mode, while it was open; from hooks on every module at once."""

    def __init__(self) -> None:
        self.training: dict[nn.Module, None] = {}
        self.inference: dict[nn.Module, None] = {}
        self.low_precision: torch.dtype | None = None
        """The 16-bit type in which some module got its input, if one did."""

    @contextmanager
    def open(self) -> Iterator[None]:
        """Watch for the time of a ``with`` block."""
        handle = register_module_forward_pre_hook(self._see)
        try:
            yield
        finally:
            handle.remove()

    def _see(self, module: nn.Module, inputs: Any) -> None:
        if inputs and getattr(inputs[0], "dtype", None) in (torch.float16, torch.bfloat16):
            self.low_precision = inputs[0].dtype
        (self.training if module.training else self.inference).setdefault(module)


def attributes(modules: Mapping[nn.Module, str]) -> dict[tuple[nn.Module, str], Any]:
    """The plain attributes of all modules but their mode: numbers, words, switches."""
    return {
        (module, key): value
        for module in modules
        for key, value in vars(module).items()
        if isinstance(value, _SIMPLE) and key != "training"
    }


class Tracer(TorchFunctionMode):
    """Finds the calls that draw random numbers or normalise with batch statistics.

    A function of torch is asked before and after whether torch's generators moved. For those of
    Python and numpy every line of the user's code is asked, and the innermost module around it.
    """

    def __init__(self, paths: Mapping[nn.Module, str]) -> None:
        super().__init__()
        self.found: list[Trace] = []
        self._paths = paths
        self._stack: list[tuple[nn.Module, list[bytes]]] = []
        self._lines = _HostLines()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Trace for the time of a ``with`` block."""
        before = register_module_forward_pre_hook(self._enter)
        after = register_module_forward_hook(self._leave, always_call=True)
        start, trace = random_fingerprint(), sys.gettrace()
        sys.settrace(self._lines)
        try:
            with self:
                yield
        finally:
            sys.settrace(trace)
            before.remove()
            after.remove()
        now = random_fingerprint()
        if start != now and not self.found:
            self._add("random", _generator(start, now), self._lines.last_found)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before, own = random_fingerprint(), _own_state(kwargs)
        result = func(*args, **kwargs)
        if before != random_fingerprint() or own != _own_state(kwargs):
            self._explained(random_fingerprint())
            self._add("random", _call(func, args, kwargs), _source())
        elif _uses_batch_statistics(func, args, kwargs):
            self._add("batch statistics", _call(func, args, kwargs), _source())
        return result

    def _enter(self, module: nn.Module, _: Any) -> None:
        self._stack.append((module, random_fingerprint()))

    def _leave(self, module: nn.Module, *_: Any) -> None:
        entered, before = self._stack.pop()
        now = random_fingerprint()
        if entered is module and before[:2] != now[:2]:
            source = self._lines.last_found or _forward_line(module)
            self._add("random", _generator(before, now), source)
            self._explained(now)

    def _explained(self, now: list[bytes]) -> None:
        """Let the modules around not claim random numbers that are explained already."""
        self._stack = [(module, now) for module, _ in self._stack]

    def _add(self, kind: Literal["random", "batch statistics"], call: str, source: str) -> None:
        around = [self._paths[module] for module, _ in self._stack if module in self._paths]
        trace = Trace(kind, call, around[-1] if around else "", source)
        if trace not in self.found:
            self.found.append(trace)


class _HostLines:
    """A trace function that finds the user's line that moves a generator of Python or numpy."""

    def __init__(self) -> None:
        self.last_found = ""
        self._state = random_fingerprint()[:3]
        self._line = ("", 0)

    def __call__(self, frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename.startswith(_LIBRARIES):
            return None
        state = random_fingerprint()[:3]
        if state != self._state:
            self._state = state
            self.last_found = _line(*self._line) if self._line[1] else ""
        if event == "return":  # the caller's line goes on
            frame = frame.f_back
            while frame is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
                frame = frame.f_back
        if frame is not None and event != "call":
            self._line = (frame.f_code.co_filename, frame.f_lineno)
        return self


def _own_state(kwargs: Mapping[str, Any]) -> bytes:
    """State of the generator that a call is given, empty if it is given none."""
    generator = kwargs.get("generator")
    return b"" if generator is None else bytes(generator.get_state().numpy().tobytes())


def _generator(before: list[bytes], now: list[bytes]) -> str:
    if before[0] != now[0]:
        return "Python's random"
    return "numpy.random" if before[1:3] != now[1:3] else "a generator of torch"


def _uses_batch_statistics(func: Any, args: Any, kwargs: Any) -> bool:
    if func is not functional.batch_norm:
        return False
    positional = args[_TRAINING_ARGUMENT] if len(args) > _TRAINING_ARGUMENT else False
    return bool(kwargs.get("training", positional))


def _call(func: Any, args: Any, kwargs: Any) -> str:
    """The call with its plain arguments, as one would write it."""
    name = (resolve_name(func) or getattr(func, "__name__", "a function")).replace(
        "torch.nn.functional.", "F."
    )
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
    return f"{name}({', '.join(plain)})"


def _parameters(func: Any) -> tuple[str, ...]:
    code = getattr(func, "__code__", None)
    return () if code is None else code.co_varnames[: code.co_argcount]


def _source() -> str:
    """The line of the user's code that led to the present call of torch."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(_TORCH):
        frame = frame.f_back
    if frame is None or frame.f_code.co_filename.startswith(_PACKAGE):
        return ""  # nothing but layers of the library between the plugin and the call
    return _line(frame.f_code.co_filename, frame.f_lineno)


def _forward_line(module: nn.Module) -> str:
    code = getattr(type(module).forward, "__code__", None)
    return "" if code is None else _line(code.co_filename, code.co_firstlineno)


def _line(path: str, number: int) -> str:
    text = linecache.getline(path, number).strip()
    return f"{Path(path).name}:{number}: {text}"
