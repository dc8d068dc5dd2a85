"""What a model holds, of whatever framework: read before and after, and compared bit for bit."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, TypeAlias

import numpy as np

State: TypeAlias = Mapping[str, Any]
"""Arrays and plain values by name."""

_NO_STATE = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)


def reachable(model: Any) -> dict[str, Any]:
    """Every array and plain value that attributes, lists and dicts of a model lead to.

    Returns
    -------
    dict
        By the path as Python writes it: ``model.layers[0].weight``. Arrays are copies in numpy.
    """
    found: dict[str, Any] = {}
    waiting: deque[tuple[str, Any]] = deque([("model", model)])
    seen: dict[int, Any] = {}
    while waiting:
        path, thing = waiting.popleft()
        if thing is None or isinstance(thing, (bool, int, float, complex, str, bytes)):
            found[path] = thing
            continue
        if id(thing) in seen or isinstance(thing, _NO_STATE):
            continue
        seen[id(thing)] = thing  # keeps it alive, so that no other object takes its id
        array = _array(thing)
        if array is not None:
            found[path] = array
        elif isinstance(thing, Mapping):
            waiting += [(f"{path}[{key!r}]", value) for key, value in thing.items()]
        elif isinstance(thing, (list, tuple, deque)):
            waiting += [(f"{path}[{k}]", value) for k, value in enumerate(thing)]
        else:
            waiting += [(f"{path}.{name}", value) for name, value in _attributes(thing).items()]
    return found


def _attributes(thing: Any) -> dict[str, Any]:
    """What an object holds itself, in its dict and its slots."""
    slots = [getattr(kind, "__slots__", ()) for kind in type(thing).__mro__]
    names = [name for each in slots for name in ([each] if isinstance(each, str) else each)]
    found = {
        name: getattr(thing, name) for name in names if name[:2] != "__" and hasattr(thing, name)
    }
    return {**found, **getattr(thing, "__dict__", {})}


def _array(thing: Any) -> Any:
    """A copy of an array or tensor in numpy; None of anything else."""
    if not hasattr(type(thing), "__array__"):
        return None
    with warnings.catch_warnings(), suppress(Exception):
        warnings.simplefilter("ignore")
        try:
            array = np.array(thing)
        except Exception:  # on a GPU, with a gradient, or of a type that numpy does not have
            host = thing.detach().cpu()
            array = np.array(host.tolist()) if host.dtype.itemsize < 4 else host.numpy().copy()
        return None if array.dtype == object else array
    return None


def changed(before: State, after: State) -> str | None:
    """The first value that is not bit for bit what it was, as a message says it.

    New values do not count: a model may be built in the meantime.
    """
    for path, old in before.items():
        if path not in after:
            return f"{path} is gone"
        new = after[path]
        if isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
            if (old.dtype, old.shape, old.tobytes()) != (new.dtype, new.shape, new.tobytes()):
                return f"{path} holds other numbers than before"
        elif isinstance(old, np.ndarray) or isinstance(new, np.ndarray) or repr(old) != repr(new):
            return f"{path} is {_short(new)} and was {_short(old)}"
    return None


def _short(value: Any) -> str:
    return f"an array of shape {value.shape}" if isinstance(value, np.ndarray) else repr(value)


def numbers(state: State) -> State:
    """Arrays of floating-point numbers: parameters and statistics, no counters or seeds."""
    return {
        path: value
        for path, value in state.items()
        if isinstance(value, np.ndarray) and value.dtype.kind == "f"
    }


def modes(state: State) -> State:
    """Switches and names, among which are the modes."""
    return {k: v for k, v in state.items() if v is None or isinstance(v, (bool, str))}
