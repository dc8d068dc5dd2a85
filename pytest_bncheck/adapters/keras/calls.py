"""Another ``call`` on a layer for a while, to see or change how the layer runs.

It is set on the instance. Keras and its wrappers reach every layer through that attribute,
wherever it is nested.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import keras

from pytest_bncheck.adapters.keras import internals
from pytest_bncheck.adapters.keras.backends.base import Backend
from pytest_bncheck.adapters.keras.state import put_back, seed_variables
from pytest_bncheck.adapters.random_state import RandomState

KerasLayer: TypeAlias = Any
Replacement: TypeAlias = tuple[KerasLayer, Callable[..., Any]]

_RESHAPING = {"Dropout", "Flatten", "Identity", "InputLayer", "Permute", "Reshape"}


@contextlib.contextmanager
def replaced_calls(calls: Sequence[Replacement]) -> Iterator[None]:
    """Give each layer another ``call``, each module of torch another ``forward``."""
    # Through the instance's dictionary: Keras' setattr would look for something to track.
    names = ["call" if isinstance(layer, keras.Layer) else "forward" for layer, _ in calls]
    attributes: list[dict[str, Any]] = [layer.__dict__ for layer, _ in calls]
    before = [each.get(name) for each, name in zip(attributes, names, strict=True)]
    try:
        for each, name, (_, new) in zip(attributes, names, calls, strict=True):
            each[name] = new
        yield
    finally:
        for each, name, old in zip(attributes, names, before, strict=True):
            if old is None:
                each.pop(name, None)
            else:
                each[name] = old


def is_traced(args: Sequence[Any], backend: Backend) -> bool:
    """Whether a call with these arguments only builds or traces the layer."""
    return not backend.eager() or any(isinstance(a, keras.KerasTensor) for a in args)


_SIGNATURES: WeakKeyDictionary[Callable[..., Any], dict[bool, inspect.Signature]]
_SIGNATURES = WeakKeyDictionary()
"""What was asked for already: of functions, as they are and as methods."""


def signature_of(call: Callable[..., Any]) -> inspect.Signature:
    """The signature of a ``call``; each training step wraps those of all layers."""
    function = getattr(call, "__func__", call)
    if not isinstance(function, types.FunctionType):
        return inspect.signature(call)
    known = _SIGNATURES.setdefault(function, {})
    is_method = function is not call
    if is_method not in known:
        known[is_method] = inspect.signature(call)
    return known[is_method]


def mode_of(signature: inspect.Signature, args: Any, kwargs: Any) -> bool | None:
    """Whether a call with these arguments runs in training mode; None where nothing says so."""
    if "training" in kwargs and "training" in signature.parameters:
        mode = kwargs["training"]  # as Keras gives it: most calls need not be bound
    else:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        mode = bound.arguments.get("training")
    return None if mode is None else bool(mode)


# changed calls ------------------------------------------------------------------------------------


def in_mode(layer: KerasLayer, *, training: bool) -> Callable[..., Any]:
    """Another ``call``: the same in this mode, whatever the caller wants."""
    original = layer.call
    signature = signature_of(original)

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        bound = signature.bind(*args, **kwargs)
        bound.arguments["training"] = training
        return original(*bound.args, **bound.kwargs)

    return call


def without_idle_draws(layers: Sequence[KerasLayer], backend: Backend) -> list[Replacement]:
    """Recurrent layers that leave all random generators alone in inference mode.

    Those of Keras draw their dropout masks in every mode, and ignore them in inference mode.
    """
    return [(layer, _undrawn(layer, backend)) for layer in layers]


def _undrawn(layer: KerasLayer, backend: Backend) -> Callable[..., Any]:
    original = layer.call
    signature = signature_of(original)

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if is_traced(args, backend) or mode_of(signature, args, kwargs):
            return original(*args, **kwargs)
        random = RandomState.capture()
        try:
            with put_back(seed_variables(internals.flat_layers(layer), backend), backend):
                return original(*args, **kwargs)
        finally:
            random.restore()

    return call


# watched calls ------------------------------------------------------------------------------------


class Modes:
    """In which mode layers run.

    Attributes
    ----------
    training, inference
        Ids of the layers that ran in training mode, and in inference mode.
    unset
        Those in inference mode because neither the caller nor the context gave a mode.
    """

    def __init__(self, layers: Sequence[KerasLayer], backend: Backend) -> None:
        self.training: set[int] = set()
        self.inference: set[int] = set()
        self.unset: set[int] = set()
        self._layers = layers
        self._backend = backend

    def watch(self) -> contextlib.AbstractContextManager[None]:
        """Watch the layers' calls for a while."""
        return replaced_calls([(layer, self._noted(layer)) for layer in self._layers])

    def _noted(self, layer: KerasLayer) -> Callable[..., Any]:
        original = layer.call
        signature = signature_of(original)

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if not is_traced(args, self._backend):
                mode = mode_of(signature, args, kwargs)
                (self.training if mode else self.inference).add(id(layer))
                if mode is None:
                    self.unset.add(id(layer))
            return original(*args, **kwargs)

        return call


class Order:
    """The order in which layers run.

    Attributes
    ----------
    places
        Position of each layer that ran, by its id.
    shapes
        Shape of the first argument of each layer that ran, by its id.
    last
        The last layer that did more than reshape.
    """

    def __init__(self, model: Any, backend: Backend) -> None:
        self.places: dict[int, int] = {}
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.last: KerasLayer = None
        self._model = model
        self._backend = backend

    def watch(self) -> contextlib.AbstractContextManager[None]:
        """Watch the calls of all layers for a while."""
        layers = internals.flat_layers(self._model, include_self=False)
        return replaced_calls([(layer, self._noted(layer)) for layer in layers])

    def _noted(self, layer: KerasLayer) -> Callable[..., Any]:
        original = layer.call

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if not is_traced(args, self._backend):
                self.places.setdefault(id(layer), len(self.places))
                shape = getattr(args[0] if args else None, "shape", None)
                if shape is not None:
                    self.shapes.setdefault(id(layer), tuple(shape))
                if not internals.inner_layers(layer) and type(layer).__name__ not in _RESHAPING:
                    self.last = layer
            return original(*args, **kwargs)

        return call
