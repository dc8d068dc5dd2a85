"""Where two passes of a Keras model part."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras

from pytest_bncheck.adapters.keras.backends.base import Backend, to_numpy
from pytest_bncheck.adapters.keras.calls import is_traced, replaced_calls
from pytest_bncheck.adapters.keras.layers import is_library
from pytest_bncheck.adapters.parting import Event, Recorded, first_difference, with_sizes
from pytest_bncheck.adapters.sources import frames_within, line_about_modes, line_of
from pytest_bncheck.types import Parting

KerasLayer: TypeAlias = Any
Named: TypeAlias = Sequence[tuple[KerasLayer, str]]


def part(
    training: Callable[[], object],
    evaluation: Callable[[], object],
    named: Named,
    backend: Backend,
) -> Parting | None:
    """The place at which the second pass begins to compute something else; None if nowhere."""
    event = first_difference(
        _recorded(training, named, backend), _recorded(evaluation, named, backend)
    )
    paths = {id(layer): path for layer, path in named}
    if event is None or id(event.around) not in paths:
        return None
    kind, library = type(event.around), is_library(event.around)
    source = "" if library else line_about_modes(kind.call) or event.source
    return Parting(paths[id(event.around)], kind.__name__, source, library)


def _recorded(run: Callable[[], object], named: Named, backend: Backend) -> Recorded:
    """The layers that a pass enters and leaves, and what goes in and comes out."""
    events: list[Event] = []
    sizes: list[list[Any]] = []
    running: list[KerasLayer] = []

    def recorded(layer: KerasLayer) -> Callable[..., Any]:
        original = layer.call

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if is_traced(args, backend):
                return original(*args, **kwargs)
            around = running[-1] if running else None
            frames = (
                f for f in frames_within(_recorded.__code__) if f.f_locals.get("self") is around
            )
            source = next(map(line_of, frames), "") if running else ""
            events.append(Event(layer, False, around, source))
            sizes.append(_sizes(args))
            running.append(layer)
            try:
                outputs = original(*args, **kwargs)
            finally:
                running.pop()
            events.append(Event(layer, True, layer))
            sizes.append(_sizes(outputs))
            return outputs

        return call

    with replaced_calls([(layer, recorded(layer)) for layer, _ in named]):
        run()
    flat = [size for of_event in sizes for size in of_event]
    host = to_numpy(keras.ops.stack(flat)) if flat else []
    return with_sizes(events, list(map(len, sizes)), host)


def _sizes(value: Any) -> list[Any]:
    leaves = (leaf for leaf in keras.tree.flatten(value) if keras.ops.is_tensor(leaf))
    return [_size(leaf) for leaf in leaves if _is_floating(leaf)]


def _is_floating(tensor: Any) -> bool:
    return "float" in keras.backend.standardize_dtype(tensor.dtype)


def _size(tensor: Any) -> Any:
    ops = keras.ops
    flat = ops.reshape(ops.cast(ops.stop_gradient(tensor), "float32"), (-1,))
    weights = ops.cos(ops.arange(flat.shape[0], dtype="float32"))
    return ops.stack([ops.norm(flat), ops.sum(flat * weights)])
