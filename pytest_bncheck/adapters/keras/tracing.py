"""Calls in a pass in eval mode that behave as in training mode."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import keras

from pytest_bncheck.adapters.keras import internals
from pytest_bncheck.adapters.keras.backends.base import Backend
from pytest_bncheck.adapters.keras.calls import (
    is_traced,
    mode_of,
    replaced_calls,
    signature_of,
    without_idle_draws,
)
from pytest_bncheck.adapters.keras.layers import Layers, has_statistics, is_library
from pytest_bncheck.adapters.keras.state import fingerprint
from pytest_bncheck.adapters.sources import frames_within, line_of
from pytest_bncheck.types import Trace

KerasLayer: TypeAlias = Any

_LIBRARIES = ("keras", "tensorflow", "torch", "jax", "contextlib", "functools", "random")


class Tracer:
    """Finds the calls of a pass that draw random numbers or normalise with batch statistics.

    Parameters
    ----------
    layers
        The layers of the model.
    backend
        The backend that Keras runs on.
    """

    def __init__(self, layers: Layers, backend: Backend) -> None:
        self._layers = layers
        self._recurrent = {id(layer) for layer in layers.recurrent}
        self._backend = backend
        self._running: list[tuple[KerasLayer, str]] = []
        self._preparing = False
        self._draw: tuple[str, str] | None = None
        self._seen: tuple[object, ...] = ()
        self._traces: dict[Trace, None] = {}

    def run(self, forward: Callable[[], Any]) -> list[Trace]:
        """Make the pass; returns each call once, in the order in which they ran."""
        quiet = without_idle_draws(self._layers.recurrent, self._backend)
        self._seen = self._state()
        with replaced_calls(quiet), self._noting_draws():
            calls = [(layer, self._watched(layer, path)) for layer, path in self._layers.named]
            with replaced_calls(calls):
                forward()
        return list(self._traces)

    def _state(self) -> tuple[object, ...]:
        return fingerprint(self._layers.seeds)

    def _watched(self, layer: KerasLayer, path: str) -> Callable[..., Any]:
        original = layer.call
        signature = signature_of(original)

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if is_traced(args, self._backend):
                return original(*args, **kwargs)
            self._assign_draws()
            self._running.append((layer, path))
            training = mode_of(signature, args, kwargs)
            if id(layer) in self._recurrent:
                self._preparing = not training
            try:
                if has_statistics(layer) and layer.trainable and training:
                    _, source = _user_line()
                    self._note("batch statistics", _in_training(layer), path, source)
                return original(*args, **kwargs)
            finally:
                if self._preparing and id(layer) in self._recurrent:  # its draws are taken back
                    self._preparing, self._draw = False, None
                self._assign_draws()
                self._running.pop()

        return call

    def _assign_draws(self) -> None:
        """Assign random numbers drawn since the last call to the layer that is running."""
        if self._preparing:
            return
        now = self._state()
        # A generator that the layer makes during its call is not among the states.
        if not self._running or (now == self._seen and self._draw is None):
            return
        self._seen = now
        layer, path = self._running[-1]
        call, source = self._draw or ("random numbers of Python or numpy", _definition(layer))
        self._draw = None
        if is_library(layer) and internals.draws(layer):
            call = _in_training(layer)
        self._note("random", call, path, source)

    def _note(self, what: Any, call: str, path: str, source: str) -> None:
        self._traces[Trace(what, call, path, source)] = None

    @contextlib.contextmanager
    def _noting_draws(self) -> Iterator[None]:
        def note(call: str = "") -> None:
            # What draws through Keras on its way to the backend was noted by Keras' name.
            if not call or self._draw is None:
                self._draw = _user_line(call)

        with internals.noting_draws(note), self._backend.noting_draws(note):
            yield


def _user_line(call: str = "") -> tuple[str, str]:
    """The library function that the user's innermost line called, and that line.

    Parameters
    ----------
    call
        The function's name where no frame shows it.
    """
    for frame in frames_within(Tracer.run.__code__):
        module = str(frame.f_globals.get("__name__", ""))
        if module.split(".")[0] not in _LIBRARIES:
            return call, line_of(frame)
        starts = (start for start in internals.PUBLIC if module.startswith(start))
        public = internals.PUBLIC.get(next(starts, ""))
        owner = frame.f_locals.get("self")
        if isinstance(owner, keras.layers.Layer) and is_library(owner):
            call = _in_training(owner)
        elif public is not None and not frame.f_code.co_name.startswith("_"):
            call = f"{public}.{frame.f_code.co_name}(...)"
    return call, ""


def _definition(layer: KerasLayer) -> str:
    """The line that defines the layer's ``call``; empty for layers of a library."""
    code = getattr(inspect.unwrap(type(layer).call), "__code__", None)
    if code is None or is_library(layer):
        return ""
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}: def {code.co_name}"


def _in_training(layer: KerasLayer) -> str:
    name = type(layer).__name__
    prefix = "keras.layers." if getattr(keras.layers, name, None) is type(layer) else ""
    rate = getattr(layer, "rate", None)
    setting = f"{rate:g}" if isinstance(rate, (int, float)) else "..."
    return f"{prefix}{name}({setting})(x, training=True)"
