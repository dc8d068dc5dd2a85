"""Which layers ran, in which mode: as the training step gives it, and as a pass repeats it."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras

from pytest_bncheck.adapters.keras import internals
from pytest_bncheck.adapters.keras.backends.base import Backend
from pytest_bncheck.adapters.keras.calls import (
    KerasLayer,
    Replacement,
    in_mode,
    is_traced,
    mode_of,
    replaced_calls,
    signature_of,
)
from pytest_bncheck.adapters.keras.layers import is_library, trains_unless_told


class Ran:
    """The layers that ran, each with its mode.

    A layer that takes no mode is in that of the layer around it; without one it trains, since it
    runs in a training step.

    Attributes
    ----------
    modes
        Whether any call was in training mode, by the layer's id.
    calls
        Calls in training mode, by the layer's id.
    """

    def __init__(self) -> None:
        self.modes: dict[int, bool] = {}
        self.calls: Counter[int] = Counter()
        self._around: list[bool] = []

    def add(self, other: Ran) -> None:
        """Count the calls of another step, and take its modes for the last ones."""
        self.modes = other.modes
        self.calls += other.calls

    def clear(self) -> None:
        """Forget everything."""
        self.modes.clear()
        self.calls.clear()

    @contextlib.contextmanager
    def watching(self, layers: Iterable[Any], backend: Backend) -> Iterator[None]:
        """Watch calls for a while, of layers and of modules of the backend inside them."""
        with replaced_calls([(layer, self._noted(layer, backend)) for layer in layers]):
            yield

    def _noted(self, layer: Any, backend: Backend) -> Callable[..., Any]:
        if not isinstance(layer, keras.Layer):
            return self._noted_module(layer)
        original = layer.call
        signature = signature_of(original)
        takes = internals.takes_mode(layer)

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if is_traced(args, backend):
                return original(*args, **kwargs)
            around = not self._around or self._around[-1]
            mode = mode_of(signature, args, kwargs) if takes else around
            unset = mode is None
            if unset and trains_unless_told(layer):
                mode = True
            self._note(layer, bool(mode))
            # Without a mode nothing is known of what is inside.
            self._around.append(around if unset else bool(mode))
            try:
                return original(*args, **kwargs)
            finally:
                self._around.pop()

        return call

    def _noted_module(self, module: Any) -> Callable[..., Any]:
        original = module.forward

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            self._note(module, bool(module.training))
            return original(*args, **kwargs)

        return forward

    def _note(self, layer: Any, training: bool) -> None:
        self.modes[id(layer)] = self.modes.get(id(layer), False) or training
        self.calls[id(layer)] += training


def forced(layers: Sequence[KerasLayer], modes: Mapping[int, bool]) -> list[Replacement]:
    """The layers that take a mode in these modes, whatever their callers want.

    Those that no step ran are in training mode.
    """
    return [
        (layer, in_mode(layer, training=modes.get(id(layer), True)))
        for layer in layers
        if internals.takes_mode(layer)
    ]


def muted(layers: Sequence[KerasLayer]) -> list[Replacement]:
    """Inference mode for the layers of Keras that draw random numbers in training mode."""
    return [(layer, in_mode(layer, training=False)) for layer in layers if draws_for_keras(layer)]


def draws_for_keras(layer: KerasLayer) -> bool:
    """Whether this is a layer of Keras that draws, with nothing of the user's inside."""
    return (
        internals.takes_mode(layer)
        and (internals.draws(layer) or isinstance(layer, keras.layers.RNN))
        and not isinstance(layer, keras.Model)
        and all(map(is_library, internals.flat_layers(layer)))
    )
