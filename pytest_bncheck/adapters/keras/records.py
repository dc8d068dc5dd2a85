"""How layers with running statistics were called, and what their calls computed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import keras
import numpy as np

from pytest_bncheck.adapters.keras import internals
from pytest_bncheck.adapters.keras.backends.base import Backend
from pytest_bncheck.adapters.keras.calls import (
    KerasLayer,
    Modes,
    Replacement,
    is_traced,
    replaced_calls,
    signature_of,
)
from pytest_bncheck.adapters.keras.data import by_sample, rows_of
from pytest_bncheck.adapters.keras.layers import Layers, is_stock, statistics_of
from pytest_bncheck.adapters.keras.modes import Ran
from pytest_bncheck.adapters.keras.state import put_back
from pytest_bncheck.adapters.keras.subject import Subject
from pytest_bncheck.maths.running import recover_calls
from pytest_bncheck.types import Calls, Layer, Statistics, Streams

Tensor: TypeAlias = Any


@dataclass
class Record:
    """How one layer was called.

    Attributes
    ----------
    training, inference
        Calls with batch statistics, and calls with running statistics.
    without_mode
        Calls with running statistics for which neither the caller nor the context gave a mode.
    values
        Values per channel in the smallest call.
    masked
        Value counts of masked calls while tracing: symbolic, known only when the program runs.
    batches
        Batch mean and variance of each call, where they are collected.
    between
        Running mean and variance between the calls with batch statistics in the last step.
    samples
        Samples in each of those calls.
    """

    training: int = 0
    inference: int = 0
    without_mode: int = 0
    values: int | None = None
    masked: list[Tensor] = field(default_factory=list)
    batches: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    between: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)

    def add(self, other: Record) -> None:
        """Add the counts of another record."""
        self.training += other.training
        self.inference += other.inference
        self.without_mode += other.without_mode
        self.note(other.values)

    def begin_step(self) -> None:
        """Forget what belongs to one step."""
        self.between, self.samples = [], []

    def clear(self) -> None:
        """Forget everything."""
        self.training, self.inference, self.without_mode, self.values = 0, 0, 0, None
        self.masked, self.batches, self.between, self.samples = [], [], [], []

    def count(self, values: int | Tensor, backend: Backend) -> None:
        """Note a call's values per channel, now or when the traced program runs."""
        known = backend.concrete(values)
        if known is None:
            self.masked.append(values)
        else:
            self.note(int(known))

    def note_masked(self, values: Sequence[Tensor]) -> None:
        """Note the values of `masked` in one run of the traced program."""
        for each in values:
            self.note(int(each))

    def note(self, values: int | None) -> None:
        """Remember a call's values per channel if they are the fewest, and not all padding."""
        if values:
            self.values = values if self.values is None else min(values, self.values)


@dataclass(frozen=True)
class TrainingModes:
    """The layers that a training step runs in training mode.

    Attributes
    ----------
    normalising
        Those with running statistics, which use the batch's.
    by_layer
        Whether each layer that ran did so in training mode, by its id.
    follow
        Whether they get the mode from the model, as in ``fit``: then a forward in training mode
        runs them so by itself.
    """

    normalising: Sequence[KerasLayer] = ()
    by_layer: Mapping[int, bool] = field(default_factory=dict)
    follow: bool = True

    @property
    def told(self) -> Hashable:
        """What passes in these modes have in common."""
        forced = () if self.follow else frozenset(self.by_layer.items())
        return tuple(map(id, self.normalising)), forced


NO_LAYERS = TrainingModes()


@dataclass
class Outcome:
    """Outputs of one forward pass, and what was seen in it.

    Attributes
    ----------
    outputs
        What the model returned.
    records, ran
        The calls of each layer with running statistics, and all that ran, in training mode.
    random
        Whether random numbers were drawn.
    mutated, rewritten
        Names of the buffers, and of the weights, that changed.
    """

    outputs: Any
    records: list[Record]
    ran: Ran = field(default_factory=Ran)
    random: bool = False
    mutated: tuple[str, ...] = ()
    rewritten: tuple[str, ...] = ()

    def first(self, samples: int, size: int | None) -> Outcome:
        """The outcome with the outputs of the first samples only, in a batch of `size`."""
        cut = by_sample(lambda leaf: rows_of(leaf, slice(samples)), self.outputs, size)
        return dataclasses.replace(self, outputs=cut)


# seeing calls -------------------------------------------------------------------------------------


class Watch:
    """The modes in which a model is called in training steps.

    Attributes
    ----------
    layers, model
        Modes of `Layers.moded`, and of the model itself.
    """

    def __init__(self, subject: Subject, layers: Layers) -> None:
        self.layers = Modes(layers.moded, subject.backend)
        self.model = Modes([subject.model], subject.backend)
        self._all, self._backend = layers.owners, subject.backend

    @contextlib.contextmanager
    def during(self, calls: Sequence[Replacement]) -> Iterator[Ran]:
        """Watch for a while, with these replaced calls; yields what runs meanwhile."""
        ran = Ran()
        with (
            replaced_calls(calls),
            self.layers.watch(),
            self.model.watch(),
            ran.watching(self._all, self._backend),
        ):
            yield ran


def all_counted(
    layers: Sequence[KerasLayer], records: Sequence[Record], backend: Backend
) -> list[Replacement]:
    """Count the calls of several layers, as they are; see `counted`."""
    return [counted(*pair, backend) for pair in zip(layers, records, strict=True)]


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
        Call the layer in training mode, whatever its caller wants.
    collect
        Record batch statistics, and leave the running statistics as they are.
    """
    original = layer.call
    signature = signature_of(original)
    takes_mode = "training" in signature.parameters

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if is_traced(args, backend):
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
        record.without_mode += takes_mode and bound.arguments.get("training") is None
        record.count(_values_per_channel(layer, bound), backend)
        return outputs

    return layer, call


@contextlib.contextmanager
def _collected(layer: KerasLayer, record: Record, backend: Backend) -> Iterator[None]:
    """Let one call leave its batch statistics in the record, and nothing in the layer.

    With momentum 0 a running statistic of 0 becomes that of the batch: free of rounding, and also
    where the layer's momentum is 1. Layers of the user may use their running statistics in
    training mode, so these keep their values during the call.
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


def _values_per_channel(layer: KerasLayer, bound: inspect.BoundArguments) -> int | Tensor:
    mask = bound.arguments.get("mask")
    if mask is not None:
        return keras.ops.sum(keras.ops.cast(mask, "int32"))
    channels = max(math.prod(layer.moving_mean.shape), 1)
    return math.prod(bound.args[0].shape) // channels


# reading records ----------------------------------------------------------------------------------


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
    """The collected batch statistics; of c calls the value to which c calls a step lead.

    A layer without batch statistics gives its running ones, `now`.
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
    """Batch statistics of each call in the last step, for layers with several calls.

    Parameters
    ----------
    around
        Running statistics before and after that step.
    """
    streams, (before, after) = {}, around
    for k, (layer, record) in enumerate(zip(layers, records, strict=True)):
        if record.between and layer.update_rate:
            values = backend.to_host([t for pair in record.between for t in pair])
            between = list(zip(values[0::2], values[1::2], strict=True))
            points = [(before.mean[k], before.var[k]), *between, (after.mean[k], after.var[k])]
            rates = [layer.update_rate] * len(record.samples)
            each = recover_calls(points, rates, layer.eps, layer.resolution)
            streams[layer.name] = Streams(each, min(record.samples))
    return streams
