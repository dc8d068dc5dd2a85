"""What is replaced in PyTorch for the time of a session.

No global hook of modules: one that does nothing makes ``torch.export`` fail already. The
functions here say first whether the compiler reads them, and so cost a compiled program nothing.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pytest_bncheck.adapters.torch.internals import leave_uncompiled, run_uncompiled
from pytest_bncheck.watch.torch.observer import Observer

is_compiling = torch.compiler.is_compiling

_EXPORTS = (
    ("torch.jit", "trace"),
    ("torch.export", "export"),
    ("torch.onnx", "export"),
)


class Patches:
    """The replaced functions, and what watches through them."""

    def __init__(self, root: str) -> None:
        self.observer = Observer(root)
        for each in (Observer.guarded, run_uncompiled, _entered):
            leave_uncompiled(each)
        self._undo: list[tuple[Any, str, Any, Any]] = []
        observer, local, kinds = self.observer, self.observer.local, self.observer.kinds
        call, train, load = nn.Module.__call__, nn.Module.train, nn.Module.load_state_dict

        @functools.wraps(call)
        def watched_call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if is_compiling() or not observer.active:
                return call(self, *args, **kwargs)
            if local.call is not None:
                # Most modules are of a class that is known to do the same in both modes.
                if kinds.get(type(self), self) is not None:
                    observer.guarded(observer.layer, self)
                return call(self, *args, **kwargs)
            if not _entered(observer, self, sys._getframe(1)):
                return call(self, *args, **kwargs)
            try:
                return call(self, *args, **kwargs)
            finally:
                local.call = None

        @functools.wraps(train)
        def watched_train(self: Any, mode: bool = True) -> Any:
            __tracebackhide__ = True
            if is_compiling() or not observer.active or local.busy:
                return train(self, mode)
            local.busy = True
            try:
                result = train(self, mode)
            finally:
                local.busy = False
            observer.guarded(observer.switched, self, mode, sys._getframe(1))
            return result

        @functools.wraps(load)
        def watched_load(self: Any, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            result = load(self, state_dict, *args, **kwargs)
            if observer.active and not is_compiling():
                missing = getattr(result, "missing_keys", None)
                if missing:
                    caller = sys._getframe(1)
                    observer.guarded(observer.loaded, self, state_dict, missing, caller)
            return result

        self._replace(nn.Module, "__call__", watched_call)
        self._replace(nn.Module, "train", watched_train)
        self._replace(nn.Module, "load_state_dict", watched_load)
        self._replace_optimizers()
        self._replace_exports()

    def _replace_optimizers(self) -> None:
        """The steps of all optimizers, also of those whose class comes later."""
        init = torch.optim.Optimizer.__init__

        @functools.wraps(init)
        def watched_init(optimizer: Any, *args: Any, **kwargs: Any) -> None:
            __tracebackhide__ = True
            init(optimizer, *args, **kwargs)
            if not is_compiling():
                self.observer.guarded(self._replace_step, type(optimizer))

        self._replace(torch.optim.Optimizer, "__init__", watched_init)
        for kind in _all_subclasses(torch.optim.Optimizer):
            self._replace_step(kind)

    def _replace_step(self, kind: type) -> None:
        for each in kind.__mro__[:-1]:
            step = vars(each).get("step")
            if each is torch.optim.Optimizer or not callable(step):
                continue
            if getattr(step, "bncheck_watched", None) is not self.observer:
                self._replace(each, "step", self._watched_step(step))

    def _watched_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        observer, local = self.observer, self.observer.local

        @functools.wraps(step)
        def watched_step(self: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            result = step(self, *args, **kwargs)
            if not is_compiling() and observer.active and local.call is None:
                observer.guarded(observer.stepped, self)
            return result

        watched_step.bncheck_watched = observer  # type: ignore[attr-defined]
        return watched_step

    def _replace_exports(self) -> None:
        for module, name in _EXPORTS:
            place = sys.modules.get(module)
            function = getattr(place, name, None)
            if place is not None and function is not None:
                how = f"{module}.{name}"
                self._replace(place, name, self._watched_export(function, how))

    def _watched_export(self, function: Callable[..., Any], how: str) -> Callable[..., Any]:
        observer, local = self.observer, self.observer.local

        @functools.wraps(function)
        def watched_export(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if observer.active and local.call is None and args:
                observer.guarded(observer.exported, args[0], how, sys._getframe(1))
            return function(*args, **kwargs)

        return watched_export

    # ----------------------------------------------------------------------------------------------

    def _replace(self, place: Any, name: str, new: Any) -> None:
        leave_uncompiled(new)
        self._undo.append((place, name, vars(place)[name], new))
        setattr(place, name, new)

    def remove(self) -> None:
        """Put back what is still in its place."""
        for place, name, old, new in reversed(self._undo):
            if vars(place).get(name) is new:
                setattr(place, name, old)
        self._undo = []


def _entered(observer: Observer, module: nn.Module, frame: Any) -> bool:
    """Begin the call of a model; whether there is anything to see."""
    observer.guarded(observer.enter, module, frame)
    return observer.local.call is not None


def _all_subclasses(kind: type) -> list[type]:
    found: dict[type, None] = {}
    below: type
    for below in kind.__subclasses__():
        found |= dict.fromkeys([below, *_all_subclasses(below)])
    return list(found)
