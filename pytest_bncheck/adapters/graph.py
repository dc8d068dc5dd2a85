"""One walk over everything that a user's objects refer to, and how each object is put back.

Knows no framework; each adapter adds its own kinds. Objects get their state back in place, so that
every one keeps its identity, and only where it changed: memory may be read-only.
"""

from __future__ import annotations

import argparse
import array
import contextvars
import functools
import io
import itertools
import queue
import random
import socket
import sys
import threading
import types
import warnings
import weakref
from collections import ChainMap, UserDict, UserList, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, ClassVar, TypeAlias

import numpy as np

from pytest_bncheck.adapters.containers import container_type, members_of, refill

Undo: TypeAlias = Callable[[], object]

_FOREIGN = sys.stdlib_module_names | {
    "torch",
    "numpy",
    "keras",
    "tensorflow",
    "jax",
    "jaxlib",
    "matplotlib",
    "pytest",
    "_pytest",
    "pytest_bncheck",
}
_OPEN = (
    types.SimpleNamespace,
    argparse.Namespace,
    UserDict,
    UserList,
    ChainMap,
    threading.local,
    np.ma.MaskedArray,
    weakref.WeakKeyDictionary,
    weakref.WeakValueDictionary,
    weakref.WeakSet,
)
"""Classes of the standard library whose objects are nothing but what is put into them."""

_EMPTY = object()
_CACHED = type(functools.lru_cache(print))

NOT_PUT_BACK: dict[str, tuple[type, ...]] = {
    "open files": (io.IOBase,),
    "running generators and coroutines": (types.GeneratorType, types.CoroutineType),
    "iterators": (itertools.count, itertools.cycle, type(iter([])), type(iter(())), zip, enumerate),
    "queues": (queue.Queue, queue.SimpleQueue),
    "sockets": (socket.socket,),
    "caches of functools": (_CACHED,),
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
            if id(item) in self._seen or type(item) in weakref.ProxyTypes:
                continue  # a proxy passes for what it points to, which is reached otherwise
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
        yield from ((f".{s.__name__}", value) for s, value in _slots(item) if value is not _EMPTY)

    def _is_open(self, item: Any) -> bool:
        return is_open(item, self.walked, self.passed_by)


def is_open(item: Any, walked: tuple[type, ...], passed_by: tuple[type, ...]) -> bool:
    """Whether an object's attributes belong to the user's state."""
    if isinstance(item, (type, *passed_by)):
        return False
    if not isinstance(getattr(item, "__dict__", None), dict):
        return False
    return isinstance(item, (*walked, *_OPEN)) or not is_foreign(type(item).__module__)


def run_all(undos: Iterable[Undo]) -> None:
    """Run all, whatever one of them raises; then raise the first error."""
    first: BaseException | None = None
    for undo in undos:
        try:
            undo()
        except BaseException as error:
            first = first or error
    try:
        if first is not None:
            raise first
    finally:
        first = None  # else the error would hold this frame, and its frame the error


_NAMED = 5


def not_put_back(item: Any) -> str | None:
    """The kind of an object whose state cannot be read, or not be written; None for all others."""
    if isinstance(item, _CACHED) and _is_of_a_package(item.__module__):
        return None  # its users know nothing of it
    kinds = (name for name, types_ in NOT_PUT_BACK.items() if issubclass(type(item), types_))
    return next(kinds, None)


# what is the user's -------------------------------------------------------------------------------


def is_foreign(module: str | None) -> bool:
    """Whether a module belongs to Python, to a framework or to the plugin."""
    return (module or "").split(".")[0] in _FOREIGN


@functools.lru_cache(maxsize=4096)
def _is_installed(module: str) -> bool:
    """Whether a module lies where packages are installed: its code is not what a test is about."""
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file


def _is_of_a_package(module: str) -> bool:
    return is_foreign(module) or _is_installed(module)


def is_users_class(item: Any) -> bool:
    """Whether a class is the user's own, and not one of an installed package."""
    if not isinstance(item, type):
        return False
    module = item.__module__
    return isinstance(module, str) and not _is_of_a_package(module)


# children -----------------------------------------------------------------------------------------


def children_of(item: Any) -> Iterator[tuple[str, Any]] | None:
    """What an object of Python or numpy refers to, besides its attributes."""
    kind = type(item)  # a proxy of TensorFlow passes for what it wraps
    if issubclass(kind, dict):
        return ((f"[{key!r}]" if _is_plain(key) else "", v) for key, v in dict.items(item))
    if issubclass(kind, (list, tuple, deque)):
        return ((f"[{index}]", value) for index, value in enumerate(item))
    if issubclass(kind, (set, frozenset)):
        return (("", value) for value in item)
    if isinstance(item, functools.partial):
        return (("", part) for part in (item.func, item.args, item.keywords))
    if isinstance(item, types.MethodType):
        return (("", part) for part in (item.__self__, item.__func__))
    if isinstance(item, types.FunctionType):
        return (("", part) for part in _parts(item))
    if isinstance(item, (staticmethod, classmethod)):
        return iter((("", item.__func__),))
    if isinstance(item, property):
        return (("", part) for part in (item.fget, item.fset) if part is not None)
    if isinstance(item, np.ndarray):
        held = item.ravel().tolist() if item.dtype == object else []
        return (("", part) for part in [*held, item.base] if part is not None)
    if isinstance(item, np.random.Generator):
        return iter(((".bit_generator", item.bit_generator),))
    if is_users_class(item):
        return (("", value) for name, value in vars(item).items() if not _is_special(name))
    return None


def _is_plain(key: Any) -> bool:
    return type(key) in (str, int, bool, float, bytes)


def _parts(function: types.FunctionType) -> Iterator[Any]:
    yield from (function.__defaults__, function.__kwdefaults__)
    yield from (value for _, value in _cells(function))
    yield from (value for _, value in _globals(function))


def _cells(function: types.FunctionType) -> Iterator[tuple[Any, Any]]:
    for cell in function.__closure__ or ():
        try:
            yield cell, cell.cell_contents
        except ValueError:  # a variable that is not assigned yet
            continue


def _globals(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """The variables of its module that a user's function uses: an optimizer, a scaler."""
    if is_foreign(function.__module__):
        return
    for name in names_of(function.__code__):
        if name in function.__globals__:
            yield name, function.__globals__[name]


def names_of(code: types.CodeType) -> Iterator[str]:
    """The names that some code uses, and the functions written inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_of(constant)


def _slots(item: Any) -> Iterator[tuple[types.MemberDescriptorType, Any]]:
    """The slots of an object of a user's class, with their values."""
    if isinstance(item, (type, types.ModuleType)) or is_foreign(type(item).__module__):
        return
    for base in type(item).__mro__:
        # Compiled types have members too, which nobody can set.
        written = "__slots__" in vars(base) and not is_foreign(base.__module__)
        for slot in vars(base).values() if written else ():
            if isinstance(slot, types.MemberDescriptorType):
                try:
                    yield slot, slot.__get__(item)
                except AttributeError:
                    yield slot, _EMPTY


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__") and name != "__call__"


# how each is put back -----------------------------------------------------------------------------


def remember(item: Any) -> Undo | None:
    """How to put one object back, or None if it has no state besides its children's."""
    if isinstance(item, np.ndarray):
        return _remember_array(item) if item.flags.writeable else None
    if container_type(item) is not None:
        return _remember_container(item)
    if isinstance(item, (bytearray, array.array)):
        return _remember_buffer(item)
    if isinstance(item, contextvars.ContextVar):
        try:
            value = item.get()  # its default, which does as well, where nothing was set
        except LookupError:
            return None
        return lambda: item.set(value)
    if isinstance(item, types.FunctionType):
        cells, names = list(_cells(item)), list(_globals(item))
        return lambda: _refill_variables(item, cells, names)
    if is_users_class(item):
        return _remember_class_attributes(item)
    generator = remember_generator(item)
    if generator is not None:
        return generator
    slots = list(_slots(item))
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
        bits = item.state
        return lambda: setattr(item, "state", bits)
    return None


def _remember_array(item: np.ndarray[Any, Any]) -> Undo:
    values, shape, dtype = item.copy(), item.shape, item.dtype

    def undo() -> None:
        if item.dtype == dtype and item.shape == shape and _same_array(item, values):
            item.flags.writeable = True
            return
        item.flags.writeable = True
        if item.size != values.size:
            item.resize(shape, refcheck=False)
        if item.dtype != dtype:
            item.dtype = dtype  # type: ignore[misc]
        if item.shape != shape:
            item.shape = shape
        np.copyto(item, values)

    return undo


def _same_array(now: np.ndarray[Any, Any], then: np.ndarray[Any, Any]) -> bool:
    if now.dtype == object:
        return all(a is b for a, b in zip(now.ravel(), then.ravel(), strict=True))
    return now.tobytes() == then.tobytes()


def _remember_container(item: Any) -> Undo:
    held = members_of(item)
    return lambda: refill(item, held)


def _remember_buffer(item: Any) -> Undo:
    plain: Any = bytearray if isinstance(item, bytearray) else array.array
    values = plain.__getitem__(item, slice(None))

    def undo() -> None:
        if plain.__getitem__(item, slice(None)) != values:
            plain.__setitem__(item, slice(None), values)

    return undo


def _remember_class(item: Any) -> Undo:
    kind, attributes = type(item), item.__dict__

    def undo() -> None:
        if type(item) is not kind:
            object.__setattr__(item, "__class__", kind)
        if item.__dict__ is not attributes:
            object.__setattr__(item, "__dict__", attributes)

    return undo


def _remember_class_attributes(item: type) -> Undo:
    before = {name: value for name, value in vars(item).items() if not _is_special(name)}

    def undo() -> None:
        now = {name: value for name, value in vars(item).items() if not _is_special(name)}
        for name in now.keys() - before.keys():
            if not name.startswith("_abc"):
                type.__delattr__(item, name)
        for name, value in before.items():
            if name not in now or now[name] is not value:
                type.__setattr__(item, name, value)

    return undo


def _refill_variables(
    function: types.FunctionType, cells: list[tuple[Any, Any]], names: list[tuple[str, Any]]
) -> None:
    for cell, value in cells:
        cell.cell_contents = value
    for name, value in names:
        if function.__globals__.get(name, _EMPTY) is not value:
            function.__globals__[name] = value


def _refill_slots(item: Any, slots: list[tuple[types.MemberDescriptorType, Any]]) -> None:
    for slot, value in slots:  # past the `__setattr__` of a frozen dataclass
        if value is not _EMPTY:
            slot.__set__(item, value)
        else:
            with suppress(AttributeError):
                slot.__delete__(item)
