"""A closer look at Keras' eval mode: calls in it that train, attributes it leaves behind."""

from __future__ import annotations

import contextlib
import functools
import inspect
import linecache
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import keras
import numpy as np

from pytest_bncheck.adapters.keras.backends.base import Backend
from pytest_bncheck.adapters.keras.calls import mode_of, replaced_calls, traced, without_idle_draws
from pytest_bncheck.adapters.keras.data import floating
from pytest_bncheck.adapters.keras.layers import Inventory, has_statistics, is_library
from pytest_bncheck.adapters.keras.state import fingerprint
from pytest_bncheck.adapters.random_state import RandomState
from pytest_bncheck.types import Trace

KerasLayer: TypeAlias = Any
Named: TypeAlias = Sequence[tuple[KerasLayer, str]]

_PACKAGE = Path(__file__).parents[2]
_OUTSIDE = str(Path(__file__).with_name("adapter.py"))
_LIBRARIES = ("keras", "tensorflow", "torch", "jax", "contextlib", "functools", "random")
_PUBLIC = {"keras.src.random": "keras.random", "tensorflow.python.ops": "tf.random"}
_PLAIN = (bool, int, float, str, type(None))


class Tracer:
    """Finds the calls of a pass that draw random numbers or normalise with batch statistics.

    Parameters
    ----------
    parts
        The model's parts.
    backend
        The backend's own part.
    """

    def __init__(self, parts: Inventory, backend: Backend) -> None:
        self._parts = parts
        self._idle = {id(layer) for layer in parts.recurrent}
        self._backend = backend
        self._inside: list[tuple[KerasLayer, str]] = []
        self._preparing = False
        self._draw: tuple[str, str] | None = None
        self._found: dict[Trace, None] = {}

    def run(self, forward: Callable[[], Any]) -> list[Trace]:
        """Make the pass."""
        quiet = without_idle_draws(self._parts.recurrent, self._backend)
        self._seen = self._state()
        with replaced_calls(quiet), self._noting_draws():
            calls = [(layer, self._looked_at(layer, path)) for layer, path in self._parts.named]
            with replaced_calls(calls):
                forward()
        return list(self._found)

    def _state(self) -> tuple[object, ...]:
        return fingerprint(self._backend, self._parts.seeds)

    def _looked_at(self, layer: KerasLayer, path: str) -> Callable[..., Any]:
        original = layer.call
        signature = inspect.signature(original)

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if traced(args, self._backend):
                return original(*args, **kwargs)
            self._look()
            self._inside.append((layer, path))
            training = mode_of(signature, args, kwargs)
            if id(layer) in self._idle:
                self._preparing = not training
            try:
                if has_statistics(layer) and layer.trainable and training:
                    _, source = _user_line()
                    self._note("batch statistics", _in_training(layer), path, source)
                return original(*args, **kwargs)
            finally:
                if self._preparing and id(layer) in self._idle:  # its draws are taken back
                    self._preparing, self._draw = False, None
                self._look()
                self._inside.pop()

        return call

    def _look(self) -> None:
        """Ascribe what was drawn since the last look to the layer that is running."""
        if self._preparing:
            return
        now = self._state()
        # The generator of a layer that is made in a call is not among the states.
        if not self._inside or (now == self._seen and self._draw is None):
            return
        self._seen = now
        layer, path = self._inside[-1]
        call, source = self._draw or ("random numbers of Python or numpy", _definition(layer))
        self._draw = None
        own = is_library(layer) and (layer._seed_generators or hasattr(layer, "get_dropout_mask"))
        self._note("random", _in_training(layer) if own else call, path, source)

    def _note(self, kind: Any, call: str, path: str, source: str) -> None:
        self._found[Trace(kind, call, path, source)] = None

    @contextlib.contextmanager
    def _noting_draws(self) -> Iterator[None]:
        generator: Any = keras.random.SeedGenerator
        draw, make = generator.next, generator.__init__

        def note(call: str = "") -> None:
            # What draws through Keras on its way to the backend was noted by Keras' name.
            if not call or self._draw is None:
                self._draw = _user_line(call)

        def drawn(seed: Any, *args: Any, **kwargs: Any) -> Any:
            note()
            return draw(seed, *args, **kwargs)

        def made(seed: Any, *args: Any, **kwargs: Any) -> None:  # draws its seed from Python
            note()
            make(seed, *args, **kwargs)

        generator.next, generator.__init__ = drawn, made
        try:
            with self._backend.noting_draws(note):
                yield
        finally:
            generator.next, generator.__init__ = draw, make


def _user_line(call: str = "") -> tuple[str, str]:
    """The library's function that the user's innermost line called, and that line.

    `call` is its name where no frame tells it.
    """
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != _OUTSIDE:
        module = str(frame.f_globals.get("__name__", ""))
        ours = _PACKAGE in Path(frame.f_code.co_filename).parents
        if not ours and module.split(".")[0] not in _LIBRARIES:
            file, line = frame.f_code.co_filename, frame.f_lineno
            return call, f"{Path(file).name}:{line}: {linecache.getline(file, line).strip()}"
        public = next((name for start, name in _PUBLIC.items() if module.startswith(start)), None)
        owner = frame.f_locals.get("self")
        if isinstance(owner, keras.layers.Layer) and is_library(owner):
            call = _in_training(owner)
        elif public is not None and not frame.f_code.co_name.startswith("_"):
            call = f"{public}.{frame.f_code.co_name}(...)"
        frame = frame.f_back  # type: ignore[assignment]
    return call, ""


def _definition(layer: KerasLayer) -> str:
    """Where the layer's call is defined."""
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


# attributes ---------------------------------------------------------------------------------------


def plain_attributes(named: Named) -> dict[tuple[int, str], Any]:
    """Numbers, flags and texts among the layers' attributes."""
    return {
        (k, name): value
        for k, (layer, _) in enumerate(named)
        for name, value in vars(layer).items()
        if isinstance(value, _PLAIN)
    }


def sticky_attributes(
    named: Named,
    before: dict[tuple[int, str], Any],
    forward: Callable[[], Any],
    noise: float,
) -> list[str]:
    """Those that differ from `before` and with which a training pass gives something else.

    Parameters
    ----------
    forward
        One pass in training mode, which leaves all variables as they are.
    noise
        Relative difference of two outputs that rounding explains.
    """
    now = plain_attributes(named)
    changed = {
        key: (before[key], value)
        for key, value in now.items()
        if key in before and not _same(before[key], value)
    }

    def outputs(settings: dict[tuple[int, str], Any]) -> dict[str, Any]:
        for (k, name), value in settings.items():
            named[k][0].__dict__[name] = value
        random = RandomState.capture()
        try:
            return floating(forward(), None)
        finally:
            random.restore()

    if not changed:
        return []
    found = []
    old = {key: values[0] for key, values in changed.items()}
    try:
        first = outputs(old)
        for key, (_, new) in changed.items():
            if _differ(first, outputs({**old, key: new}), noise):
                layer_path = named[key[0]][1]
                found.append(f"{layer_path}.{key[1]}" if layer_path else key[1])
    finally:
        for (k, name), (_, new) in changed.items():
            named[k][0].__dict__[name] = new
    return found


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and (a == b or (a != a and b != b))


def _differ(a: dict[str, Any], b: dict[str, Any], noise: float) -> bool:
    if a.keys() != b.keys() or any(a[key].shape != b[key].shape for key in a):
        return True
    return any(not np.linalg.norm(a[key] - b[key]) <= noise * np.linalg.norm(a[key]) for key in a)
