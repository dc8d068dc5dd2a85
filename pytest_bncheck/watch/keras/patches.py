"""What is replaced in Keras for the time of a session.

The replaced ``__call__`` carries the module of the original: TensorFlow's AutoGraph would rewrite
one of ours, and what it calls.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras

from pytest_bncheck.adapters.keras import internals
from pytest_bncheck.watch.keras.observer import Observer
from pytest_bncheck.watch.replaced import Replaced
from pytest_bncheck.watch.watcher import Watcher

_PHASES = (
    *("fit", "train_on_batch"),
    *("evaluate", "test_on_batch", "predict", "predict_on_batch", "export"),
)
_LIBRARIES = ("keras", "tensorflow", "jax", "torch", "optree")


class Patches(Replaced):
    """The replaced functions, and what watches through them."""

    def __init__(self, root: str) -> None:
        self._is_compiling: Callable[[], bool] = bool  # False
        self._optimizers: Replaced | None = None
        if keras.backend.backend() == "torch":
            from pytest_bncheck.adapters.torch.internals import leave_uncompiled, run_uncompiled
            from pytest_bncheck.watch.torch.optimizers import Optimizers, is_compiling

            super().__init__(leave_uncompiled)
            leave_uncompiled(Watcher.guarded)
            self.observer = Observer(root, _folders(), run_uncompiled)
            self._is_compiling = is_compiling
            self._optimizers = Optimizers(self._stepped)
        else:
            super().__init__()
            self.observer = Observer(root, _folders())
        self.replace(keras.Layer, "__call__", self._watched_call(keras.Layer.__call__))
        for name in _PHASES:
            self.replace(keras.Model, name, self._watched_phase(getattr(keras.Model, name), name))
        optimizer = keras.optimizers.Optimizer
        self.replace(optimizer, "apply", self._watched_apply(optimizer.apply))

    def _watched_call(self, call: Callable[..., Any]) -> Callable[..., Any]:
        observer, local, is_compiling = self.observer, self.observer.local, self._is_compiling

        @functools.wraps(call)
        def watched_call(self: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if is_compiling() or not observer.active:
                return call(self, *args, **kwargs)
            outer = local.root
            if outer is None:
                observer.guarded(observer.enter, self, args, kwargs, sys._getframe(1))
            observer.guarded(observer.layer, self, kwargs)
            try:
                return call(self, *args, **kwargs)
            finally:
                local.root = outer

        return watched_call

    def _watched_phase(self, method: Callable[..., Any], how: str) -> Callable[..., Any]:
        observer, local = self.observer, self.observer.local

        @functools.wraps(method)
        def watched_phase(self: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            before = local.phases
            if observer.active and local.root is None:
                observer.guarded(observer.begin, self, how, sys._getframe(1))
            try:
                result = method(self, *args, **kwargs)
                if observer.active and local.phases != before:
                    observer.guarded(observer.end, self, how)
                return result
            finally:
                local.phases = before

        return watched_phase

    def _watched_apply(self, apply: Callable[..., Any]) -> Callable[..., Any]:
        observer = self.observer

        @functools.wraps(apply)
        def watched_apply(self: Any, grads: Any, trainable_variables: Any = None) -> Any:
            __tracebackhide__ = True
            result = apply(self, grads, trainable_variables)
            if observer.active and len(grads):
                known = trainable_variables or internals.optimized_variables(self)
                observer.guarded(observer.applied, {id(variable) for variable in known}, id)
            return result

        return watched_apply

    def _stepped(self, optimizer: Any) -> None:
        """After a step of an optimizer of PyTorch."""
        if self.observer.active:
            self.observer.guarded(self.observer.stepped, optimizer.param_groups)

    def remove(self) -> None:
        """Put back what is still in its place."""
        if self._optimizers is not None:
            self._optimizers.remove()
        super().remove()


def _folders() -> list[str]:
    """Where the libraries lie whose frames are no user's."""
    found = [find_spec(name) for name in _LIBRARIES if name in sys.modules]
    return [str(Path(spec.origin).parent) for spec in found if spec and spec.origin]
