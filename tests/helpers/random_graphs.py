"""Random graphs of objects, as models and training code hold them, and random changes to them.

Each kind of object comes with how to read it and what changes it. The state of a graph is read
through the objects themselves, so that identity counts too.
"""

from __future__ import annotations

import array
import ctypes
import functools
import mmap
import random
import types
import weakref
from collections import ChainMap, Counter, OrderedDict, UserDict, defaultdict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Kind(NamedTuple):
    """A kind of leaf: how to make one, to read it bit by bit, and to change it in place."""

    make: Callable[[], Any]
    read: Callable[[Any], Any]
    change: Callable[[Any], object]


class Guarded(dict):
    """Does more in its methods than a dictionary, and less."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no updates")

    def __setitem__(self, key: Any, value: Any) -> None:
        dict.__setitem__(self, key, (value, 100))

    clear = update


class Sealed(list):
    """Refuses what changes it by a method of a list."""

    def extend(self, *args: Any) -> None:
        raise RuntimeError("sealed")

    clear = append = extend


class Holder:
    """An object of the user's."""


class Slotted:
    """An object without a dictionary, one of whose slots is empty."""

    __slots__ = ("empty", "held")


def _poke(item: Any) -> None:
    item[0] = item[0] + 1


PLAIN = {
    "numpy array": Kind(lambda: np.arange(4.0), lambda a: (a.tobytes(), a.shape), _poke),
    "array of objects": Kind(
        lambda: np.array([1, "a"], dtype=object), lambda a: a.tolist(), lambda a: a.fill(None)
    ),
    "bytearray": Kind(lambda: bytearray(3), bytes, lambda b: b.extend(b"x")),
    "array": Kind(lambda: array.array("d", [1.0]), list, lambda a: a.append(2.0)),
    "Python's generator": Kind(
        lambda: random.Random(0), lambda g: g.getstate(), lambda g: g.random()
    ),
    "generator of the system": Kind(random.SystemRandom, lambda _: None, lambda g: g.random()),
    "numpy's generator": Kind(
        lambda: np.random.default_rng(0),
        lambda g: repr(g.bit_generator.state),
        lambda g: g.random(),
    ),
    "numpy's old generator": Kind(
        lambda: np.random.RandomState(0),
        lambda g: repr(g.get_state(legacy=False)),
        lambda g: g.rand(),
    ),
    "bit generator": Kind(
        lambda: np.random.PCG64(0), lambda g: repr(g.state), lambda g: g.random_raw()
    ),
    "module of settings": Kind(
        lambda: types.ModuleType("settings_of_a_user"),
        lambda m: m.__dict__.get("rate"),
        lambda m: setattr(m, "rate", 1),
    ),
    "counter": Kind(lambda: Counter(a=5), dict, lambda c: c.update("ab")),
    "chain of maps": Kind(lambda: ChainMap({"a": 1}), dict, lambda c: c.update(b=2)),
    "own dictionary": Kind(
        lambda: Guarded(a=1), lambda d: list(dict.items(d)), lambda d: dict.update(d, a=2, b=3)
    ),
    "own list": Kind(lambda: Sealed([1]), list, lambda c: list.append(c, 2)),
    "memory": Kind(lambda: memoryview(bytearray(3)), bytes, _poke),
    "mapped memory": Kind(lambda: mmap.mmap(-1, 3), lambda m: m[:], _poke),
    "numbers of C": Kind(lambda: (ctypes.c_int * 2)(), list, _poke),
    "records": Kind(
        lambda: np.zeros(2, dtype=[("a", int), ("b", object)]),
        lambda a: a.tolist(),
        lambda a: a.fill(1),
    ),
}


def _function(inner: Any) -> Callable[[], Any]:
    def held() -> Any:
        return inner

    held.calls = 0  # type: ignore[attr-defined]
    return held


def _bound(inner: Any) -> Any:
    return types.MethodType(lambda self: self, _attribute(Holder(), inner))


def _attribute(holder: Any, inner: Any) -> Any:
    holder.held = inner
    return holder


CONTAINERS: dict[str, Callable[[Any], Any]] = {
    "list": lambda x: [0, x],
    "tuple": lambda x: (x, 1),
    "dict": lambda x: {"a": x},
    "ordered": lambda x: OrderedDict(a=x),
    "default": lambda x: defaultdict(list, a=x),
    "deque": lambda x: deque([x], maxlen=3),
    "own dictionary": lambda x: Guarded(a=x),
    "own list": lambda x: Sealed([x]),
    "UserDict": lambda x: UserDict(a=x),
    "namespace": lambda x: types.SimpleNamespace(held=x),
    "object": lambda x: _attribute(Holder(), x),
    "slots": lambda x: _attribute(Slotted(), x),
    "closure": _function,
    "method": _bound,
    "partial": lambda x: functools.partial(print, x, end=x),
    "object array": lambda x: _object_array(x),
    "key": lambda x: {_attribute(Holder(), x): None},
    "view": lambda x: {"a": x}.values(),
    "mapping proxy": lambda x: types.MappingProxyType({"a": x}),
    "method of a builtin": lambda x: [x].append,
    "weak reference": lambda x: weakref.ref(_kept(_attribute(Holder(), x))),
}


_KEPT: deque[Any] = deque(maxlen=100)


def _kept(item: Any) -> Any:
    """Hold what a weak reference points to."""
    _KEPT.append(item)
    return item


def _object_array(inner: Any) -> np.ndarray:
    held = np.empty(1, dtype=object)
    held[0] = inner
    return held


class World:
    """One random graph below `root`, the leaves in it, and all the holders."""

    def __init__(self, seed: int, kinds: dict[str, Kind]) -> None:
        self._dice = random.Random(seed)
        self._leaves: list[tuple[Kind, Any]] = []
        self._holders: list[Any] = []
        self.root = [self._grow(kinds, 4) for _ in range(3)]
        if self._dice.random() < 0.3:
            self.root.append(self.root)
        self.names = sorted(kinds)

    def _grow(self, kinds: dict[str, Kind], depth: int) -> Any:
        if depth == 0 or self._dice.random() < 0.2:
            kind = kinds[self._dice.choice(sorted(kinds))]
            leaf = kind.make()
            self._leaves.append((kind, leaf))
            return leaf
        make = CONTAINERS[self._dice.choice(sorted(CONTAINERS))]
        holder = make(self._grow(kinds, depth - 1))
        self._holders.append(holder)
        return holder

    def read(self) -> list[Any]:
        """Everything that a check has to put back."""
        return [
            *(kind.read(leaf) for kind, leaf in self._leaves),
            *(_identities(holder) for holder in [self.root, *self._holders]),
        ]

    def change(self) -> None:
        """Change about half of it, at least one thing, as a forward, a loss or a step could."""
        before = self.read()
        while self.read() == before:
            self._change()

    def _change(self) -> None:
        for kind, leaf in self._leaves:
            if self._dice.random() < 0.7:
                kind.change(leaf)
        for holder in self._holders:
            if self._dice.random() < 0.5:
                _disturb(holder)


def trial(
    seed: int, kinds: dict[str, Kind], remembered: Callable[[Any], Callable[[], None]]
) -> tuple[Any, Any, Any]:
    """What a random graph holds before its changes, after them, and put back."""
    world = World(seed, kinds)
    before, put_back = world.read(), remembered(world.root)
    world.change()
    changed = world.read()
    put_back()
    return before, changed, world.read()


def _identities(holder: Any) -> Any:
    if issubclass(type(holder), dict):
        return [(key, id(value)) for key, value in dict.items(holder)]
    if isinstance(holder, (list, tuple, deque)):
        return (
            [id(value) for value in list.__iter__(holder)]
            if isinstance(holder, list)
            else [id(value) for value in holder]
        )
    if isinstance(holder, np.ndarray):
        return [id(value) for value in holder]
    if isinstance(holder, Slotted):
        return id(holder.held), hasattr(holder, "empty")
    if isinstance(holder, functools.partial):
        return id(holder.args[0])
    held = getattr(holder, "__dict__", {})
    return type(holder), [(key, id(value)) for key, value in held.items()]


def _disturb(holder: Any) -> None:
    if issubclass(type(holder), dict):
        dict.update(holder, a=None, new=1)
    elif isinstance(holder, list):
        list.append(holder, None)
    elif isinstance(holder, deque):
        holder.appendleft(None)
    elif isinstance(holder, np.ndarray):
        holder[0] = None
    elif isinstance(holder, Slotted):
        holder.held, holder.empty = None, 1
    elif isinstance(holder, types.FunctionType):
        holder.calls += 1
    elif isinstance(holder, types.MethodType):
        holder.__self__.held = None
    elif isinstance(holder, (Holder, types.SimpleNamespace)):
        holder.held, holder.new = None, 1
