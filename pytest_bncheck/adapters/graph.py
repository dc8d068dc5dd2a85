"""One walk over everything that a user's objects refer to, and how each object is put back.

Knows no framework; each adapter adds its own kinds. Objects get their state back in place, so that
every one keeps its identity, and only where it changed: memory may be read-only.
"""

from __future__ import annotations

import argparse
import contextvars
import functools
import io
import itertools
import queue
import socket
import sys
import tempfile
import threading
import types
import warnings
import weakref
from collections import ChainMap, UserDict, UserList, UserString, deque
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, ClassVar

import numpy as np

from pytest_bncheck.adapters.objects import remember, remember_class
from pytest_bncheck.adapters.references import (
    EMPTY,
    PLAIN,
    behind_proxy,
    children_of,
    is_foreign,
    is_of_a_package,
    is_plain_module,
    is_users_class,
    passes_for_another,
    slots_of,
)
from pytest_bncheck.adapters.switches import remember_switches
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
    threading.Barrier,
    BaseException,
    np.ma.MaskedArray,
    weakref.WeakKeyDictionary,
    weakref.WeakValueDictionary,
    weakref.WeakSet,
)
"""Classes of Python, apart from whole modules, whose objects are what is put into them."""

_CACHED = type(functools.lru_cache(print))


NOT_PUT_BACK: dict[str, tuple[type, ...]] = {
    "open files": (io.IOBase, tempfile._TemporaryFileWrapper),
    "running generators and coroutines": (
        types.GeneratorType,
        types.CoroutineType,
        types.AsyncGeneratorType,
    ),
    "queues": (queue.Queue, queue.SimpleQueue),
    "sockets": (socket.socket,),
    "caches of functools": (_CACHED,),
    "seed sequences": (np.random.SeedSequence,),
    "contexts": (contextvars.Context,),
    "hashes and compressors": (),
    "databases": (),
    "XML elements": (),
    "futures": (),
    "finalizers": (weakref.finalize,),
    "processes": (),
    "objects of multiprocessing": (),
    "objects of asyncio": (),
    "iterators": (),
}
"""What cannot be put back, by the name that users read."""

_BY_NAME = {
    ("_hashlib", "HASH"): "hashes and compressors",
    ("_hashlib", "HMAC"): "hashes and compressors",
    ("_blake2", "blake2b"): "hashes and compressors",
    ("_blake2", "blake2s"): "hashes and compressors",
    ("zlib", "Compress"): "hashes and compressors",
    ("zlib", "Decompress"): "hashes and compressors",
    ("sqlite3", "Connection"): "databases",
    ("sqlite3", "Cursor"): "databases",
    ("xml.etree.ElementTree", "Element"): "XML elements",
    ("_asyncio", "Future"): "futures",
    ("_asyncio", "Task"): "futures",
    ("concurrent.futures._base", "Future"): "futures",
}
"""Kinds of those classes that are not imported just to ask for them."""

_BY_MODULE: dict[str, str | None] = {
    "subprocess": "processes",
    "multiprocessing.process": "processes",
    "multiprocessing.context": None,  # how processes are started, which is no state
    "multiprocessing": "objects of multiprocessing",
    "asyncio": "objects of asyncio",
}
"""Kinds of all classes of a module."""


class NotPutBack(UserWarning):
    """A check cannot undo everything that a training can do."""


class Graph:
    """The state of everything reachable from `roots`, remembered by `walk`, and of the process."""

    walked: ClassVar[tuple[type, ...]] = ()
    """Classes of the framework whose objects are walked into."""

    passed_by: ClassVar[tuple[type, ...]] = (types.ModuleType,)
    """Classes whose objects are no state of a training."""

    def __init__(self) -> None:
        self._seen: dict[int, Any] = {}
        self._undo: list[Undo] = []
        self._left: list[str] = []
        # What is known of a class: a large net has thousands of objects of a few.
        self._open: dict[tuple[type, type], bool] = {}
        self._kinds: dict[type, str | None] = {}
        self._put_switches_back = remember_switches()

    def walk(self, roots: Iterable[Any]) -> None:
        """Remember everything reachable."""
        waiting = deque((root, "") for root in roots)
        while waiting:
            item, path = waiting.popleft()
            item = behind_proxy(item)
            if type(item) in PLAIN or id(item) in self._seen or passes_for_another(item):
                continue
            self._seen[id(item)] = item  # held, so that no other object gets its id
            kind = self.not_put_back(item)
            if kind is not None:
                self._left.append(f"{path.lstrip('.') or type(item).__name__} ({kind})")
            self.reached(item, path)
            self._add(item, self.remember(item) or remember(item))
            for attributes in self.attributes(item):
                self._seen[id(attributes)] = attributes
                self._add(item, remember(attributes))
            if self._is_open(item):
                self._add(item, remember_class(item))
            waiting.extend((child, path + step) for step, child in self.children(item))

    def _add(self, item: Any, undo: Undo | None) -> None:
        if undo is not None and isinstance(item, BaseException):
            self._undo.append(partial(_unless_raised, item, undo))
        elif undo is not None:
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
        """Put everything back for good: what was remembered is let go."""
        try:
            self.undo_so_far()
        finally:
            for held in (self._undo, self._seen, self._open, self._kinds):
                held.clear()

    def undo_so_far(self) -> None:
        """Put everything back; more can be done, and undone."""
        run_all([self._put_switches_back, *reversed(self._undo)])

    # what an adapter adds ---------------------------------------------------------------------

    def reached(self, item: Any, path: str) -> None:
        """Take note of an object and the shortest path to it."""

    def remember(self, item: Any) -> Undo | None:
        """How to put back an object of the framework, None for all others."""
        return None

    def not_put_back(self, item: Any) -> str | None:
        """The kind of an object that cannot be put back; None for all others."""
        kind = type(item)
        if issubclass(kind, _CACHED):
            return not_put_back(item)
        if kind not in self._kinds:
            self._kinds[kind] = not_put_back(item)
        return self._kinds[kind]

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
        kinds = type(item), item.__class__  # a mock passes for what it stands for
        if kinds not in self._open:
            self._open[kinds] = _is_of_open_kind(item, self.walked, self.passed_by)
        return self._open[kinds] and _has_attributes(item)


def is_open(item: Any, walked: tuple[type, ...], passed_by: tuple[type, ...]) -> bool:
    """Whether an object's attributes belong to the user's state."""
    return _is_of_open_kind(item, walked, passed_by) and _has_attributes(item)


def _has_attributes(item: Any) -> bool:
    return isinstance(getattr(item, "__dict__", None), dict)


def _is_of_open_kind(item: Any, walked: tuple[type, ...], passed_by: tuple[type, ...]) -> bool:
    if isinstance(item, (type, *passed_by)):
        return False
    module = type(item).__module__
    known = isinstance(item, (*walked, *_OPEN)) or not is_foreign(module)
    return known or is_plain_module(module) or _is_mock(item)


def _is_mock(item: Any) -> bool:
    """Whether an object is a mock of unittest, which counts how it is called."""
    mock = sys.modules.get("unittest.mock")  # imported by whoever made one
    return mock is not None and issubclass(type(item), mock.NonCallableMock)


def _unless_raised(error: BaseException, undo: Undo) -> None:
    """Leave the error that ends a check as it was raised: with its cause and its notes."""
    if sys.exc_info()[1] is not error:
        undo()


_NAMED = 5


def not_put_back(item: Any) -> str | None:
    """The kind of an object whose state cannot be read, or not be written; None for all others."""
    if isinstance(item, _CACHED) and is_of_a_package(item.__module__):
        return None  # its users know nothing of it
    kind = type(item)
    kinds = (name for name, types_ in NOT_PUT_BACK.items() if issubclass(kind, types_))
    known = next(kinds, None) or _BY_NAME.get((kind.__module__, kind.__qualname__))
    modules = (base.__module__ for base in kind.__mro__)
    known = known or next(filter(None, map(_kind_of_module, modules)), None)
    return known or ("iterators" if _is_iterator(item) else None)


def _kind_of_module(module: Any) -> str | None:
    if not isinstance(module, str):
        return None
    package = module.partition(".")[0]
    return _BY_MODULE.get(module, _BY_MODULE.get(package))


def _is_iterator(item: Any) -> bool:
    """Whether an object counts up inside of Python or a framework, where it cannot be set back."""
    kind = type(item)
    if not is_foreign(kind.__module__) or kind is itertools.repeat or _is_mock(item):
        return False  # MagicMock's class would make the method that it is asked for
    return hasattr(kind, "__next__")
