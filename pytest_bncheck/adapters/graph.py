"""One walk over everything that a user's objects refer to, and how each object is put back.

Knows no framework; each adapter adds its own kinds. Objects get their state back in place, so that
every one keeps its identity, and only where it changed: memory may be read-only.
"""

from __future__ import annotations

import argparse
import array
import functools
import io
import itertools
import mmap
import queue
import random
import re
import socket
import sys
import tempfile
import threading
import types
import warnings
import weakref
from collections import ChainMap, UserDict, UserList, UserString, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import numpy as np

from pytest_bncheck.adapters.containers import container_type, members_of, refill
from pytest_bncheck.adapters.references import (
    EMPTY,
    PLAIN,
    cells_of,
    children_of,
    is_foreign,
    is_of_a_package,
    is_special,
    is_users_class,
    passes_for_another,
    slots_of,
    variables_of,
)
from pytest_bncheck.adapters.undo import Undo, run_all

_OPEN = (
    types.SimpleNamespace,
    argparse.Namespace,
    UserDict,
    UserList,
    UserString,
    ChainMap,
    threading.local,
    threading.Event,
    threading.Semaphore,
    np.ma.MaskedArray,
    weakref.WeakKeyDictionary,
    weakref.WeakValueDictionary,
    weakref.WeakSet,
)
"""Classes of the standard library whose objects are nothing but what is put into them."""

_CACHED = type(functools.lru_cache(print))
_POINTERS = frozenset("&OPXzZ")
"""In the formats of C's numbers, what nobody can put back: memory of others."""


NOT_PUT_BACK: dict[str, tuple[type, ...]] = {
    "open files": (io.IOBase, tempfile._TemporaryFileWrapper),
    "running generators and coroutines": (types.GeneratorType, types.CoroutineType),
    "queues": (queue.Queue, queue.SimpleQueue),
    "sockets": (socket.socket,),
    "caches of functools": (_CACHED,),
    "iterators": (),
}
"""What cannot be put back, by the name that users read."""


class NotPutBack(UserWarning):
    """A check cannot undo everything that a training can do."""


class Graph:
    """The state of everything reachable from `roots`, remembered by `walk`."""

    walked: ClassVar[tuple[type, ...]] = ()
    """Classes of the framework whose objects are walked into."""

    passed_by: ClassVar[tuple[type, ...]] = (types.ModuleType,)
    """Classes whose objects are no state of a training."""

    def __init__(self) -> None:
        self._seen: dict[int, Any] = {}
        self._undo: list[Undo] = []
        self._left: list[str] = []

    def walk(self, roots: Iterable[Any]) -> None:
        """Remember everything reachable."""
        waiting = deque((root, "") for root in roots)
        while waiting:
            item, path = waiting.popleft()
            if type(item) in PLAIN or id(item) in self._seen or passes_for_another(item):
                continue
            self._seen[id(item)] = item  # held, so that no other object gets its id
            kind = not_put_back(item)
            if kind is not None:
                self._left.append(f"{path.lstrip('.') or type(item).__name__} ({kind})")
            self.reached(item, path)
            self._add(self.remember(item) or remember(item))
            for attributes in self.attributes(item):
                self._seen[id(attributes)] = attributes
                self._add(remember(attributes))
            if self._is_open(item):
                self._add(_remember_class(item))
            waiting.extend((child, path + step) for step, child in self.children(item))

    def _add(self, undo: Undo | None) -> None:
        if undo is not None:
            self._undo.append(undo)

    def name_what_is_left(self) -> None:
        """Warn in one line of what cannot be put back, before anything is changed."""
        if self._left:
            names = ", ".join([*self._left[:_NAMED], "..."][: len(self._left)])
            warnings.warn(
                f"pytest-bncheck trains the model and cannot put back {names}; make them anew in "
                "the test",
                NotPutBack,
                stacklevel=2,
            )

    def undo_all(self) -> None:
        """Put everything back. May be called once."""
        try:
            run_all(reversed(self._undo))
        finally:
            self._undo.clear()
            self._seen.clear()

    # what an adapter adds ---------------------------------------------------------------------

    def reached(self, item: Any, path: str) -> None:
        """Take note of an object and the shortest path to it."""

    def remember(self, item: Any) -> Undo | None:
        """How to put back an object of the framework, None for all others."""
        return None

    def attributes(self, item: Any) -> list[dict[str, Any]]:
        """The dictionaries that hold an object's attributes, if it is walked into."""
        is_open = self._is_open(item) or isinstance(item, types.FunctionType)
        return [item.__dict__] if is_open else []

    def children(self, item: Any) -> Iterator[tuple[str, Any]]:
        """The objects that an object refers to, each with its part of the path."""
        known = children_of(item)
        if known is not None:
            yield from known
        for attributes in self.attributes(item):
            yield from ((f".{key}", value) for key, value in attributes.items())
        if self._is_open(item):
            yield from (("", base) for base in type(item).__mro__ if is_users_class(base))
        yield from ((f".{s.__name__}", value) for s, value in slots_of(item) if value is not EMPTY)

    def _is_open(self, item: Any) -> bool:
        return is_open(item, self.walked, self.passed_by)


def is_open(item: Any, walked: tuple[type, ...], passed_by: tuple[type, ...]) -> bool:
    """Whether an object's attributes belong to the user's state."""
    if isinstance(item, (type, *passed_by)):
        return False
    if not isinstance(getattr(item, "__dict__", None), dict):
        return False
    known = isinstance(item, (*walked, *_OPEN)) or not is_foreign(type(item).__module__)
    return known or _is_mock(item)


def _is_mock(item: Any) -> bool:
    """Whether an object is a mock of unittest, which counts how it is called."""
    mock = sys.modules.get("unittest.mock")  # imported by whoever made one
    return mock is not None and issubclass(type(item), mock.NonCallableMock)


_NAMED = 5


def not_put_back(item: Any) -> str | None:
    """The kind of an object whose state cannot be read, or not be written; None for all others."""
    if isinstance(item, _CACHED) and is_of_a_package(item.__module__):
        return None  # its users know nothing of it
    kinds = (name for name, types_ in NOT_PUT_BACK.items() if issubclass(type(item), types_))
    return next(kinds, "iterators" if _is_iterator(item) else None)


def _is_iterator(item: Any) -> bool:
    """Whether an object counts up inside of Python or a framework, where it cannot be set back."""
    kind = type(item)
    if not is_foreign(kind.__module__) or kind is itertools.repeat or _is_mock(item):
        return False  # MagicMock's class would make the method that it is asked for
    return hasattr(kind, "__next__")


# how each is put back -----------------------------------------------------------------------------


def remember(item: Any) -> Undo | None:
    """How to put one object back, or None if it has no state besides its children's."""
    if isinstance(item, np.ndarray):
        return _remember_array(item) if item.flags.writeable or item.flags.owndata else None
    if container_type(item) is not None:
        return _remember_container(item)
    if isinstance(item, (bytearray, array.array)):
        return _remember_buffer(item)
    if isinstance(item, mmap.mmap) or any(b.__module__ == "_ctypes" for b in type(item).__mro__):
        return _remember_memory(item)
    if isinstance(item, types.FunctionType):
        cells, variables = list(cells_of(item)), list(variables_of(item))
        return lambda: _refill_variables(cells, variables)
    if is_users_class(item):
        return remember_class_attributes(item)
    generator = remember_generator(item)
    if generator is not None:
        return generator
    slots = list(slots_of(item))
    return (lambda: _refill_slots(item, slots)) if slots else None


def remember_generator(item: Any) -> Undo | None:
    """How to put back a generator of random numbers of Python or numpy; None for all others."""
    if isinstance(item, random.Random) and not isinstance(item, random.SystemRandom):
        inner = random.Random.getstate(item)
        return lambda: random.Random.setstate(item, inner)
    if isinstance(item, np.random.RandomState):
        legacy = item.get_state(legacy=False)
        return lambda: item.set_state(legacy)
    if isinstance(item, np.random.Generator):
        return remember_generator(item.bit_generator)
    if isinstance(item, np.random.BitGenerator):
        return _remember_bits(item)
    return None


def _remember_bits(item: np.random.BitGenerator) -> Undo:
    bits, seeds, setter = item.state, item.seed_seq, getattr(item, "__setstate__", None)
    spawned = getattr(seeds, "n_children_spawned", 0)

    def undo() -> None:
        item.state = bits
        if isinstance(seeds, np.random.SeedSequence) and seeds.n_children_spawned != spawned:
            first = np.random.SeedSequence(  # since the count itself cannot be set
                seeds.entropy,
                spawn_key=seeds.spawn_key,
                pool_size=seeds.pool_size,
                n_children_spawned=spawned,
            )
            if setter is not None:
                setter((bits, first))

    return undo


def _remember_array(item: np.ndarray[Any, Any]) -> Undo:
    values, shape, dtype, writeable = item.copy(), item.shape, item.dtype, item.flags.writeable
    strides = item.strides

    def undo() -> None:
        laid_out = item.dtype == dtype and item.shape == shape and item.strides == strides
        same = laid_out and _same_array(item, values)
        if same and item.flags.writeable == writeable:
            return
        with _writeable_bases(item):  # a view of what was made read-only cannot be written
            item.flags.writeable = True
            if not same:
                rewrite()
            item.flags.writeable = writeable

    def rewrite() -> None:
        if item.size != values.size:
            item.resize(shape, refcheck=False)
        if item.dtype != dtype:
            item.dtype = dtype  # type: ignore[misc]
        if item.shape != shape:
            item.shape = shape
        if item.strides != strides:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # there is no other way
                item.strides = strides
        np.copyto(item, values)

    return undo


@contextmanager
def _writeable_bases(item: np.ndarray[Any, Any]) -> Iterator[None]:
    """Let the arrays that this one is a view of be written for a while."""
    bases, base = [], item.base
    while isinstance(base, np.ndarray):
        bases.append((base, base.flags.writeable))
        base = base.base
    for each, _ in reversed(bases):
        each.flags.writeable = True
    try:
        yield
    finally:
        for each, writeable in bases:
            each.flags.writeable = writeable


def _same_array(now: np.ndarray[Any, Any], then: np.ndarray[Any, Any]) -> bool:
    if now.dtype == object:
        return all(a is b for a, b in zip(now.ravel(), then.ravel(), strict=True))
    return now.tobytes() == then.tobytes()


def _remember_container(item: Any) -> Undo:
    held = members_of(item)
    if not isinstance(item, defaultdict):
        return lambda: refill(item, held)
    factory = item.default_factory

    def undo() -> None:
        refill(item, held)
        item.default_factory = factory

    return undo


def _remember_buffer(item: Any) -> Undo:
    plain: Any = bytearray if isinstance(item, bytearray) else array.array
    values = plain.__getitem__(item, slice(None))

    def undo() -> None:
        if plain.__getitem__(item, slice(None)) != values:
            plain.__setitem__(item, slice(None), values)

    return undo


def _remember_memory(item: Any) -> Undo | None:
    """How to put back a file mapped into memory, or numbers as C has them."""
    try:
        with memoryview(item) as view:
            kinds = re.sub(":[^:]*:", "", view.format)  # without the names of fields
        values = np.frombuffer(item, np.uint8)
    except (TypeError, ValueError):  # a type of C, a closed file, nothing at all
        return None
    if not values.flags.writeable or set(kinds) & _POINTERS:
        return None
    before = values.copy()

    def undo() -> None:
        now = np.frombuffer(item, np.uint8)  # made anew: one that is held keeps a file from closing
        if not np.array_equal(now, before):
            now[:] = before

    return undo


def _remember_class(item: Any) -> Undo:
    kind, attributes = type(item), item.__dict__

    def undo() -> None:
        if type(item) is not kind:
            object.__setattr__(item, "__class__", kind)
        if item.__dict__ is not attributes:
            object.__setattr__(item, "__dict__", attributes)

    return undo


def remember_class_attributes(item: type) -> Undo:
    """How to put back what a class holds."""
    before = {name: value for name, value in vars(item).items() if not is_special(name)}

    def undo() -> None:
        now = {name: value for name, value in vars(item).items() if not is_special(name)}
        for name in now.keys() - before.keys():
            if not name.startswith("_abc"):
                type.__delattr__(item, name)
        for name, value in before.items():
            if name not in now or now[name] is not value:
                type.__setattr__(item, name, value)

    return undo


def _refill_variables(
    cells: list[tuple[types.CellType, Any]], variables: list[tuple[dict[str, Any], str, Any]]
) -> None:
    for cell, value in cells:
        if value is not EMPTY:
            cell.cell_contents = value
        else:
            del cell.cell_contents
    for held, name, value in variables:
        if value is EMPTY:
            held.pop(name, None)
        elif held.get(name, EMPTY) is not value:
            held[name] = value


def _refill_slots(item: Any, slots: list[tuple[types.MemberDescriptorType, Any]]) -> None:
    for slot, value in slots:  # past the `__setattr__` of a frozen dataclass
        if value is not EMPTY:
            slot.__set__(item, value)
        else:
            with suppress(AttributeError):
                slot.__delete__(item)
