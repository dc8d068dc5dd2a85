"""Calls of Keras layers, seen and changed.

A layer gets another ``call`` on the instance for a while. Keras and its wrappers reach every layer
through that attribute, wherever it is nested.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import keras
import numpy as np

from pytest_bncheck.adapters.keras import internals
from pytest_bncheck.adapters.keras.backends.base import Backend
from pytest_bncheck.adapters.keras.layers import is_library, is_stock, statistics_of
from pytest_bncheck.adapters.keras.state import put_back, seed_variables
from pytest_bncheck.adapters.random_state import RandomState
from pytest_bncheck.maths.running import recover_calls
from pytest_bncheck.types import Calls, Layer, Statistics, Streams

Tensor: TypeAlias = Any
KerasLayer: TypeAlias = Any
Replacement: TypeAlias = tuple[KerasLayer, Callable[..., Any]]

_RESHAPING = {"Dropout", "Flatten", "Identity", "InputLayer", "Permute", "Reshape"}


@dataclass
class Record:
    """How one layer was called.

    Attributes
    ----------
    training, inference
        Calls with batch statistics and with running statistics.
    untold
        Of the latter those that were told no mode at all, by their caller or the context.
    values
        Values per channel of the smallest call.
    masked
        The same of calls under a mask in a trace, where it has no values yet.
    batches
        Batch mean and variance of each call, where they are collected.
    between
        Running mean and variance between the calls with batch statistics in the last step.
    samples
        Samples in each of those calls.
    """

    training: int = 0
    inference: int = 0
    untold: int = 0
    values: int | None = None
    masked: list[Tensor] = field(default_factory=list)
    batches: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    between: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)

    def add(self, other: Record) -> None:
        """Count the calls of another record too."""
        self.training += other.training
        self.inference += other.inference
        self.untold += other.untold
        self.note(other.values)

    def begin_step(self) -> None:
        """Forget what belongs to one step alone."""
        self.between, self.samples = [], []

    def clear(self) -> None:
        """Forget everything."""
        self.training, self.inference, self.untold, self.values = 0, 0, 0, None
        self.masked, self.batches, self.between, self.samples = [], [], [], []

    def count(self, values: int | Tensor, backend: Backend) -> None:
        """Note a call's values per channel, now or when a trace is run."""
        known = backend.concrete(values)
        if known is None:
            self.masked.append(values)
        else:
            self.note(int(known))

    def note_masked(self, values: Sequence[Tensor]) -> None:
        """Note what `masked` is in a run of the trace."""
        for each in values:
            self.note(int(each))

    def note(self, values: int | None) -> None:
        """Remember a call's values per channel if they are the fewest; of padding there are 0."""
        if values:
            self.values = values if self.values is None else min(values, self.values)


def calls_of(records: Sequence[Record]) -> Calls:
    """The counts of all layers."""
    return Calls(
        tuple(record.training for record in records),
        tuple(record.inference for record in records),
        tuple(record.values for record in records),
    )


def batch_statistics_of(
    layers: Sequence[KerasLayer], records: Sequence[Record], now: Statistics, backend: Backend
) -> Statistics:
    """What was collected; of c calls the value to which c calls a step lead.

    A layer that used no batch statistics gives its running ones, `now`.
    """
    tensors = [t for record in records for pair in record.batches for t in pair]
    values = iter(backend.to_host(tensors))
    mean, var = list(now.mean), list(now.var)
    for k, (layer, record) in enumerate(zip(layers, records, strict=True)):
        if record.batches:
            each = np.array([[next(values), next(values)] for _ in record.batches])
            decay = float(layer.momentum) ** np.arange(len(each))[::-1]
            mean[k], var[k] = np.tensordot(decay / decay.sum(), each, axes=1)
    return Statistics(tuple(mean), tuple(var))


def streams_of(
    layers: Sequence[Layer],
    records: Sequence[Record],
    around: Sequence[Statistics],
    backend: Backend,
) -> dict[str, Streams]:
    """Batch statistics of each call in the last step, of layers with several.

    Parameters
    ----------
    around
        Running statistics before and after that step.
    """
    found, (before, after) = {}, around
    for k, (layer, record) in enumerate(zip(layers, records, strict=True)):
        if record.between and layer.update_rate:
            values = backend.to_host([t for pair in record.between for t in pair])
            between = list(zip(values[0::2], values[1::2], strict=True))
            points = [(before.mean[k], before.var[k]), *between, (after.mean[k], after.var[k])]
            rates = [layer.update_rate] * len(record.samples)
            each = recover_calls(points, rates, layer.eps, layer.resolution)
            found[layer.name] = Streams(each, min(record.samples))
    return found


@contextlib.contextmanager
def replaced_calls(calls: Sequence[Replacement]) -> Iterator[None]:
    """Give layers another ``call`` each."""
    # Through the instance's dictionary: Keras' own setattr would look for something to track.
    own: list[tuple[dict[str, Any], Any]] = [(layer.__dict__, call) for layer, call in calls]
    before = [attributes.get("call") for attributes, _ in own]
    try:
        for attributes, call in own:
            attributes["call"] = call
        yield
    finally:
        for (attributes, _), call in zip(own, before, strict=True):
            if call is None:
                attributes.pop("call", None)
            else:
                attributes["call"] = call


def counted(
    layer: KerasLayer,
    record: Record,
    backend: Backend,
    *,
    force: bool = False,
    collect: bool = False,
) -> Replacement:
    """Count the layer's calls.

    Parameters
    ----------
    force
        Call the layer in training mode, whatever it is told.
    collect
        Record its batch statistics and leave its own as they are.
    """
    original = layer.call
    signature = inspect.signature(original)
    takes_mode = "training" in signature.parameters

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if traced(args, backend):
            return original(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        if takes_mode and force:
            bound.arguments["training"] = True
        bound.apply_defaults()
        training = bool(bound.arguments.get("training")) and layer.trainable
        changed = None if takes_mode else backend.change(statistics_of(layer))
        between = [backend.copy(v) for v in statistics_of(layer)] if record.samples else None
        with contextlib.ExitStack() as changes:
            if collect and training:
                changes.enter_context(_collected(layer, record, backend))
            outputs = original(*bound.args, **bound.kwargs)
        if changed is not None:  # no mode to see, but its effect
            training = changed()
        if training:
            record.samples.append(int(bound.args[0].shape[0]))
            if between is not None:
                record.between.append((between[0], between[1]))
        record.training += training
        record.inference += not training
        record.untold += takes_mode and bound.arguments.get("training") is None
        record.count(_values_per_channel(layer, bound), backend)
        return outputs

    return layer, call


@contextlib.contextmanager
def _collected(layer: KerasLayer, record: Record, backend: Backend) -> Iterator[None]:
    """Let one call leave its batch statistics in the record, and nothing in the layer.

    With momentum 0 a running statistic of 0 becomes the batch's own: free of rounding, and where
    the layer's momentum of 1 would hide it. Other layers than Keras' own may use their running
    statistics in training mode, so theirs stay for the call.
    """
    momentum = layer.momentum
    with put_back(internals.non_trainable_variables(layer), backend):
        if is_stock(layer):
            for variable in statistics_of(layer):
                variable.assign(keras.ops.zeros(variable.shape, variable.dtype))
        layer.momentum = 0.0
        try:
            yield
        finally:
            layer.momentum = momentum
        mean, var = (backend.copy(v) for v in statistics_of(layer))
        record.batches.append((mean, var))


def muted(model: Any, kept: Sequence[KerasLayer]) -> list[Replacement]:
    """Inference mode for the layers that Keras brings along, except `kept` and what holds them."""
    excepted = {id(layer) for layer in kept}
    return [
        (layer, _in_inference(layer.call))
        for layer in internals.flat_layers(model)
        if internals.takes_mode(layer)
        and not isinstance(layer, keras.Model)
        and all(
            is_library(inner) and id(inner) not in excepted
            for inner in internals.flat_layers(layer)
        )
    ]


def _in_inference(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        return original(*args, **{**kwargs, "training": False})

    return call


def without_idle_draws(layers: Sequence[KerasLayer], backend: Backend) -> list[Replacement]:
    """Recurrent layers that leave all random generators alone in inference mode.

    Those of Keras prepare their dropout in any mode, and ignore it in inference mode.
    """
    return [(layer, _undrawn(layer, backend)) for layer in layers]


def _undrawn(layer: KerasLayer, backend: Backend) -> Callable[..., Any]:
    original = layer.call
    signature = inspect.signature(original)

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if traced(args, backend) or mode_of(signature, args, kwargs):
            return original(*args, **kwargs)
        random = RandomState.capture()
        try:
            with put_back(seed_variables(internals.flat_layers(layer), backend), backend):
                return original(*args, **kwargs)
        finally:
            random.restore()

    return call


class Modes:
    """In which mode layers run.

    Attributes
    ----------
    training, inference
        Ids of the layers that ran in training mode, and in inference mode.
    """

    def __init__(self, layers: Sequence[KerasLayer], backend: Backend) -> None:
        self.training: set[int] = set()
        self.inference: set[int] = set()
        self._layers = layers
        self._backend = backend

    def watch(self) -> contextlib.AbstractContextManager[None]:
        """Look at the layers' calls for a while."""
        return replaced_calls([(layer, self._noted(layer)) for layer in self._layers])

    def _noted(self, layer: KerasLayer) -> Callable[..., Any]:
        original = layer.call
        signature = inspect.signature(original)

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if not traced(args, self._backend):
                mode = mode_of(signature, args, kwargs)
                (self.training if mode else self.inference).add(id(layer))
            return original(*args, **kwargs)

        return call


def mode_of(signature: inspect.Signature, args: Any, kwargs: Any) -> bool:
    """Whether a call with these arguments is one in training mode."""
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return bool(bound.arguments.get("training"))


class Order:
    """Which layer runs when.

    Attributes
    ----------
    places
        Place of each layer that ran, by its id.
    last
        The last layer that did more than reshape.
    """

    def __init__(self, model: Any, backend: Backend) -> None:
        self.places: dict[int, int] = {}
        self.last: KerasLayer = None
        self._model = model
        self._backend = backend

    def watch(self) -> contextlib.AbstractContextManager[None]:
        """Look at all calls for a while."""
        layers = internals.flat_layers(self._model, include_self=False)
        return replaced_calls([(layer, self._noted(layer)) for layer in layers])

    def _noted(self, layer: KerasLayer) -> Callable[..., Any]:
        original = layer.call

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if not traced(args, self._backend):
                self.places.setdefault(id(layer), len(self.places))
                if not internals.inner_layers(layer) and type(layer).__name__ not in _RESHAPING:
                    self.last = layer
            return original(*args, **kwargs)

        return call


def traced(args: Sequence[Any], backend: Backend) -> bool:
    """Whether a call only builds or traces the layer."""
    return not backend.eager() or any(isinstance(a, keras.KerasTensor) for a in args)


def _values_per_channel(layer: KerasLayer, bound: inspect.BoundArguments) -> int | Tensor:
    mask = bound.arguments.get("mask")
    if mask is not None:
        return keras.ops.sum(keras.ops.cast(mask, "int32"))
    channels = max(math.prod(layer.moving_mean.shape), 1)
    return math.prod(bound.args[0].shape) // channels
