"""The generators of random numbers that a loader of batches draws from."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pytest_bncheck.adapters.objects import remember_generator
from pytest_bncheck.adapters.references import children_of, names_of
from pytest_bncheck.adapters.undo import Undo, run_all

_MOST, _MOST_MEMBERS = 10_000, 100
"""Objects that are looked at, and members of a container: data sets are large."""


@contextmanager
def generators_kept(root: Any) -> Iterator[None]:
    """Put back every generator of random numbers that a loader holds, or what it is made of."""
    undos = remember_generators(root)
    try:
        yield
    finally:
        run_all(undos)


def remember_generators(root: Any) -> list[Undo]:
    """How to put back each of these generators."""
    undos: list[Undo] = []
    seen: dict[int, Any] = {}
    waiting = deque([root])
    while waiting and len(seen) < _MOST:
        item = waiting.popleft()
        if id(item) in seen or isinstance(item, (type, types.ModuleType, str, bytes)):
            continue
        seen[id(item)] = item
        undo = remember_generator(item) or _remember_other_generator(item)
        if undo is not None:
            undos.append(undo)
        elif isinstance(item, types.GeneratorType) and item.gi_frame is not None:
            waiting.extend(item.gi_frame.f_locals.values())
            waiting.extend(_named_globals(item.gi_frame))
        elif not (isinstance(item, (dict, list, tuple)) and len(item) > _MOST_MEMBERS):
            known = children_of(item)
            waiting.extend(child for _, child in known or ())
            held = getattr(item, "__dict__", None)
            waiting.extend(held.values() if isinstance(held, dict) else ())
    return undos


def _named_globals(frame: types.FrameType) -> list[Any]:
    named = (name for name in names_of(frame.f_code) if name in frame.f_globals)
    return [frame.f_globals[name] for name in named]


def _remember_other_generator(item: Any) -> Undo | None:
    """How to put back a generator that has the methods of PyTorch's."""
    if not all(callable(getattr(type(item), name, None)) for name in ("get_state", "set_state")):
        return None
    state = item.get_state()
    return lambda: item.set_state(state)
