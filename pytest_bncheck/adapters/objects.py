"""How each object of Python and numpy is put back: in place, and only where it changed.

Objects keep their identity; memory may be read-only.
"""

from __future__ import annotations

import array
import decimal
import mmap
import random
import re
import types
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from pytest_bncheck.adapters.containers import container_type, members_of, refill
from pytest_bncheck.adapters.references import (
    EMPTY,
    KEPT_BY_PYTHON,
    cells_of,
    contents_of,
    is_users_class,
    is_users_module,
    slots_of,
    variables_of,
)
from pytest_bncheck.adapters.undo import Undo, run_all

_POINTERS = frozenset("&OPXzZ")
"""In the formats of C's numbers, what nobody can put back: memory of others."""


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
        return _remember_function(item)
    if isinstance(item, types.CellType):
        cells = list(contents_of([item]))
        return lambda: _refill_variables(cells, [])
    if isinstance(item, BaseException):
        return _remember_attributes(item, _OF_EXCEPTIONS, BaseException.__setattr__)
    if isinstance(item, decimal.Context):
        return _remember_attributes(item, _OF_DECIMALS)
    if is_users_class(item):
        return remember_class_attributes(item)
    if is_users_module(item):
        return _remember_module(item)
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
    values, shape, strides, dtype = _plain(item).copy(), item.shape, item.strides, item.dtype
    writeable = item.flags.writeable

    def undo() -> None:
        laid_out = item.dtype == dtype and item.shape == shape and item.strides == strides
        same = laid_out and _same_array(_plain(item), values)
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
        np.copyto(_plain(item), values)

    return undo


def _plain(item: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same memory without the methods of a subclass, which may refuse; not to be kept."""
    return np.ndarray.view(item, np.ndarray)


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
    if values.flags.writeable and set(kinds) & _POINTERS:
        return _remember_fields(item)
    if not values.flags.writeable:
        return None
    before = values.copy()

    def undo() -> None:
        now = np.frombuffer(item, np.uint8)  # made anew: one that is held keeps a file from closing
        if not np.array_equal(now, before):
            now[:] = before

    return undo


def _remember_fields(item: Any) -> Undo:
    """How to put back the numbers of a structure of C beside its pointers."""
    fields = (vars(base).get("_fields_", ()) for base in type(item).__mro__)
    kinds = {name: kind for each in fields for name, kind, *_ in each}
    numbers = [name for name, kind in kinds.items() if _is_number(kind)]
    inner = (_remember_memory(getattr(item, n)) for n in kinds if n not in numbers)
    undos = [undo for undo in inner if undo is not None]
    before = {name: getattr(item, name) for name in numbers}

    def undo() -> None:
        for name, value in before.items():
            setattr(item, name, value)
        run_all(undos)

    return undo


def _is_number(kind: Any) -> bool:
    sign = getattr(kind, "_type_", None)
    return isinstance(sign, str) and sign not in _POINTERS


def remember_class(item: Any) -> Undo:
    """How to give an object the class and the dictionary of attributes that it has now."""
    kind, attributes = type(item), item.__dict__

    def undo() -> None:
        if type(item) is not kind:
            object.__setattr__(item, "__class__", kind)
        if item.__dict__ is not attributes:
            object.__setattr__(item, "__dict__", attributes)

    return undo


def remember_class_attributes(item: type) -> Undo:
    """How to put back what a class holds."""
    before = {name: value for name, value in vars(item).items() if name not in KEPT_BY_PYTHON}

    def undo() -> None:
        now = {name: value for name, value in vars(item).items() if name not in KEPT_BY_PYTHON}
        for name in now.keys() - before.keys():
            if not name.startswith("_abc"):
                type.__delattr__(item, name)
        for name, value in before.items():
            if name not in now or now[name] is not value:
                type.__setattr__(item, name, value)

    return undo


def _remember_module(item: types.ModuleType) -> Undo:
    variables = [(vars(item), name, value) for name, value in vars(item).items()]
    names = {*vars(item)}

    def undo() -> None:
        _refill_variables([], variables)
        for name, value in [*vars(item).items()]:
            if name not in names and not isinstance(value, types.ModuleType):  # an import stays
                del vars(item)[name]

    return undo


_OF_FUNCTIONS = ("__code__", "__defaults__", "__kwdefaults__")
_OF_EXCEPTIONS = ("args", "__cause__", "__suppress_context__")
_OF_DECIMALS = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp")


def _remember_attributes(
    item: Any, names: Iterable[str], write: Callable[[Any, str, Any], None] = setattr
) -> Undo:
    before = {name: getattr(item, name) for name in names}

    def undo() -> None:
        for name, value in before.items():
            if getattr(item, name) is not value:
                write(item, name, value)

    return undo


def _remember_function(item: types.FunctionType) -> Undo:
    cells, variables = list(cells_of(item)), list(variables_of(item))
    itself = _remember_attributes(item, _OF_FUNCTIONS)

    def undo() -> None:
        itself()
        _refill_variables(cells, variables)

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
