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

from pytest_bncheck.adapters.torch.internals import leave_uncompiled
from pytest_bncheck.watch.replaced import Replaced
from pytest_bncheck.watch.torch.observer import Observer
from pytest_bncheck.watch.torch.optimizers import Optimizers
from pytest_bncheck.watch.watcher import Watcher

is_compiling = torch.compiler.is_compiling

_EXPORTS = (
    ("torch.jit", "trace"),
    ("torch.export", "export"),
    ("torch.onnx", "export"),
)


class Patches(Replaced):
    """The replaced functions, and what watches through them."""

    def __init__(self, root: str) -> None:
        super().__init__(leave_uncompiled)
        self.observer = Observer(root)
        for each in (Watcher.guarded, _entered, Patches._stepped):
            leave_uncompiled(each)
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

        self.replace(nn.Module, "__call__", watched_call)
        self.replace(nn.Module, "train", watched_train)
        self.replace(nn.Module, "load_state_dict", watched_load)
        self._optimizers = Optimizers(self._stepped)
        self._replace_exports()

    def _stepped(self, optimizer: torch.optim.Optimizer) -> None:
        if self.observer.active and self.observer.local.call is None:
            self.observer.guarded(self.observer.stepped, optimizer)

    def _replace_exports(self) -> None:
        for module, name in _EXPORTS:
            place = sys.modules.get(module)
            function = getattr(place, name, None)
            if place is not None and function is not None:
                how = f"{module}.{name}"
                self.replace(place, name, self._watched_export(function, how))

    def _watched_export(self, function: Callable[..., Any], how: str) -> Callable[..., Any]:
        observer, local = self.observer, self.observer.local

        @functools.wraps(function)
        def watched_export(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if observer.active and local.call is None and args:
                observer.guarded(observer.exported, args[0], how, sys._getframe(1))
            return function(*args, **kwargs)

        return watched_export

    def remove(self) -> None:
        """Put back what is still in its place."""
        self._optimizers.remove()
        super().remove()


def _entered(observer: Observer, module: nn.Module, frame: Any) -> bool:
    """Begin the call of a model; whether there is anything to see."""
    observer.guarded(observer.enter, module, frame)
    return observer.local.call is not None
