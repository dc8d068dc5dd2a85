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

_PHASES = (
    *("fit", "train_on_batch"),
    *("evaluate", "test_on_batch", "predict", "predict_on_batch"),
)
_LIBRARIES = ("keras", "tensorflow", "jax", "torch", "optree")
_MISSING = object()


class Patches:
    """The replaced functions, and what watches through them."""

    def __init__(self, root: str) -> None:
        self.observer = Observer(root, [*_folders()])
        self._undo: list[tuple[Any, str, Any, Any]] = []
        self._replace(keras.Layer, "__call__", self._watched_call(keras.Layer.__call__))
        for name in _PHASES:
            self._replace(keras.Model, name, self._watched_phase(getattr(keras.Model, name), name))
        optimizer = keras.optimizers.Optimizer
        self._replace(optimizer, "apply", self._watched_apply(optimizer.apply))

    def _watched_call(self, call: Callable[..., Any]) -> Callable[..., Any]:
        observer, local = self.observer, self.observer.local

        @functools.wraps(call)
        def watched_call(self: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            outer = local.root
            if observer.active:
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
                observer.guarded(observer.applied, known)
            return result

        return watched_apply

    # ----------------------------------------------------------------------------------------------

    def _replace(self, place: Any, name: str, new: Any) -> None:
        self._undo.append((place, name, vars(place).get(name, _MISSING), new))
        setattr(place, name, new)

    def remove(self) -> None:
        """Put back what is still in its place."""
        for place, name, old, new in reversed(self._undo):
            if vars(place).get(name) is not new:
                continue
            if old is _MISSING:
                delattr(place, name)
            else:
                setattr(place, name, old)
        self._undo = []


def _folders() -> list[str]:
    """Where the libraries lie whose frames are no user's."""
    found = [find_spec(name) for name in _LIBRARIES if name in sys.modules]
    return [str(Path(spec.origin).parent) for spec in found if spec and spec.origin]
