"""What an object of Python or numpy refers to, and whose code its class is.

Everything goes through the methods of the plain types, since those of a subclass can do more.
"""

from __future__ import annotations

import functools
import gc
import sys
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

PLAIN: frozenset[type] = frozenset((str, int, bool, float, complex, bytes, type(None)))
"""Types whose objects refer to nothing and never change: most of what a vocabulary holds."""

EMPTY = object()
"""Stands for the value of a variable or slot that has none."""

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
_RUNNING = {
    "_frozen_importlib",
    "_frozen_importlib_external",
    "_io",
    "_thread",
    "abc",
    "asyncio",
    "builtins",
    "collections",
    "concurrent",
    "ctypes",
    "functools",
    "importlib",
    "io",
    "logging",
    "multiprocessing",
    "os",
    "queue",
    "socket",
    "ssl",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "types",
    "typing",
    "unittest",
    "weakref",
}
"""Modules of Python whose objects are more than their attributes: they run, or wrap others."""

_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_BOUND = (types.BuiltinMethodType, types.MethodWrapperType)


# what is the user's -------------------------------------------------------------------------------


def is_foreign(module: Any) -> bool:
    """Whether a ``__module__`` names Python, a framework or the plugin.

    Where it is no name at all, a compiled type describes it: Cython's metaclass, for one.
    """
    if not isinstance(module, str):
        return module is not None
    return module.split(".")[0] in _FOREIGN


def package_of(item: Any) -> str:
    """The package of an object's class, "" where the class gives none."""
    module = type(item).__module__
    return module.split(".")[0] if isinstance(module, str) else ""


def is_plain_module(module: Any) -> bool:
    """Whether objects of a module's classes, of Python or numpy, are nothing but what they hold."""
    package = module.split(".")[0] if isinstance(module, str) else ""
    return package == "numpy" or (package in sys.stdlib_module_names and package not in _RUNNING)


@functools.lru_cache(maxsize=4096)
def _is_installed(module: str) -> bool:
    """Whether a module lies where packages are installed: its code is not what a test is about."""
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file


def is_of_a_package(module: Any) -> bool:
    """Whether a module is foreign, or installed."""
    return is_foreign(module) or _is_installed(module)


def is_users_class(item: Any) -> bool:
    """Whether a class is the user's own, and not one of an installed package."""
    if not isinstance(item, type):
        return False
    module = item.__module__
    return isinstance(module, str) and not is_of_a_package(module)


def is_users_module(item: Any) -> bool:
    """Whether a Python module, of settings for example, is the user's own."""
    return isinstance(item, types.ModuleType) and not is_of_a_package(item.__name__)


def behind_proxy(item: Any) -> Any:
    """The object behind a weak proxy, None if it is gone; any other object as it is."""
    if type(item) not in weakref.ProxyTypes:
        return item
    try:
        return item.__init__.__self__
    except (AttributeError, ReferenceError):
        return None


def passes_for_another(item: Any) -> bool:
    """Whether an object is a proxy of one that is reached otherwise, or of none now."""
    try:
        return not isinstance(item.__class__, type)
    except Exception:  # a proxy outside of the context in which it points to something
        return True


# children -----------------------------------------------------------------------------------------


def children_of(item: Any) -> Iterator[tuple[str, Any]] | None:
    """What an object of Python or numpy refers to, besides its attributes."""
    kind = type(item)  # a proxy of TensorFlow passes for what it wraps
    if issubclass(kind, dict):
        return _of_dict(item)
    plain = next((each for each in (list, tuple, deque) if issubclass(kind, each)), None)
    if plain is not None:
        numbered = enumerate(plain.__iter__(item))
        return ((f"[{index}]", value) for index, value in numbered if type(value) not in PLAIN)
    if issubclass(kind, (set, frozenset)):
        members = set if issubclass(kind, set) else frozenset
        return (("", value) for value in members.__iter__(item))
    if issubclass(kind, weakref.ref):
        return iter((("", weakref.ref.__call__(item)),))
    if issubclass(kind, _VIEWS):
        return iter((("", item.mapping),))
    if kind is types.MappingProxyType:
        # Not the dictionary of a class, which nothing but the class itself may write.
        return iter([("", held) for held in gc.get_referents(item) if "__module__" not in held])
    if kind is memoryview:
        return iter((("", item.obj),))
    if isinstance(item, (functools.partial, functools.partialmethod)):
        return (("", part) for part in (item.func, item.args, item.keywords))
    if isinstance(item, types.MethodType):
        return (("", part) for part in (item.__self__, item.__func__))
    if issubclass(kind, _BOUND):  # a bound `list.append`
        return iter((("", item.__self__),))
    if isinstance(item, types.FunctionType):
        return (("", part) for part in _parts(item))
    if isinstance(item, types.CellType):
        return (("", value) for _, value in contents_of([item]) if value is not EMPTY)
    if isinstance(item, BaseException):
        return iter(((".args", item.args), (".__cause__", item.__cause__)))
    if isinstance(item, (staticmethod, classmethod)):
        return iter((("", item.__func__),))
    if isinstance(item, property):
        parts = item.fget, item.fset, item.fdel
        return (("", part) for part in parts if part is not None)
    if isinstance(item, functools.cached_property):
        return iter((("", item.func),))
    if isinstance(item, functools.singledispatchmethod):
        return iter((("", item.dispatcher), ("", item.func)))
    if kind is np.vectorize:
        return iter((("", item.pyfunc),))
    if isinstance(item, np.ndarray):
        return (("", part) for part in (*_objects_in(item), item.base) if part is not None)
    if isinstance(item, np.random.Generator):
        return iter(((".bit_generator", item.bit_generator),))
    if is_users_module(item):
        return ((f".{name}", value) for name, value in vars(item).items() if not is_special(name))
    if is_users_class(item):
        held = ((name, value) for name, value in vars(item).items() if _is_state(name, value))
        return (("", value) for value in (type(item), *(value for _, value in held)))
    return _of_wrapper(item)


def _of_wrapper(item: Any) -> Iterator[tuple[str, Any]] | None:
    """The function that a framework compiled, or of which functools keeps the results."""
    held = getattr(item, "__dict__", None)
    if isinstance(held, dict) and callable(item) and is_foreign(type(item).__module__):
        wrapped = held.get("__wrapped__")
        return None if wrapped is None else iter((("", wrapped),))
    return None


def _of_dict(item: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in dict.items(item):
        is_plain = type(key) in PLAIN
        if type(value) not in PLAIN:  # a vocabulary has a million of them
            yield (f"[{key!r}]" if is_plain else ""), value
        if not is_plain:
            yield "", key


def _objects_in(item: np.ndarray[Any, Any]) -> list[Any]:
    if not item.dtype.hasobject:
        return []
    return list(np.asarray(item).ravel().tolist())


def _parts(function: types.FunctionType) -> Iterator[Any]:
    yield from (function.__defaults__, function.__kwdefaults__)
    yield from (value for _, value in cells_of(function) if value is not EMPTY)
    named = (value for *_, value in variables_of(function) if value is not EMPTY)
    # Of a module only what the code names: the rest of it is nobody's.
    yield from (value for value in named if not isinstance(value, types.ModuleType))


def cells_of(function: types.FunctionType) -> Iterator[tuple[types.CellType, Any]]:
    """The variables that a function closes over, with their values."""
    yield from contents_of(function.__closure__ or ())


def contents_of(cells: Iterable[types.CellType]) -> Iterator[tuple[types.CellType, Any]]:
    """Cells with the values of their variables."""
    for cell in cells:
        try:
            yield cell, cell.cell_contents
        except ValueError:  # a variable that is not assigned yet
            yield cell, EMPTY


def variables_of(function: types.FunctionType) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """The variables that a user's function names: an optimizer, a scaler, ``settings.rate``.

    Those of its own module, and those of the user's modules that it names, each with the
    dictionary that it is in.
    """
    if is_foreign(function.__module__):
        return
    names = set(names_of(function.__code__))
    waiting, seen = [function.__globals__], {id(function.__globals__)}
    while waiting:
        variables = waiting.pop()
        for name in sorted(names):
            value = variables.get(name, EMPTY)
            yield variables, name, value
            if is_users_module(value):
                inner = vars(value)
                if id(inner) not in seen:
                    seen.add(id(inner))
                    waiting.append(inner)


def names_of(code: types.CodeType) -> Iterator[str]:
    """The names that some code uses, and the functions written inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_of(constant)


def slots_of(item: Any) -> Iterator[tuple[types.MemberDescriptorType, Any]]:
    """The slots of an object of a user's class, or of a plain one of Python, with their values."""
    if isinstance(item, (type, types.ModuleType)) or not _has_own_slots(type(item)):
        return
    for base in type(item).__mro__:
        # Compiled types have members too, which nobody can set.
        written = "__slots__" in vars(base) and _has_own_slots(base)
        for slot in vars(base).values() if written else ():
            if isinstance(slot, types.MemberDescriptorType):
                try:
                    yield slot, slot.__get__(item)
                except AttributeError:
                    yield slot, EMPTY


def _has_own_slots(kind: type) -> bool:
    return not is_foreign(kind.__module__) or is_plain_module(kind.__module__)


KEPT_BY_PYTHON = frozenset(
    {"__annotations__", "__annotations_cache__", "__annotate_func__", "__slotnames__"}
)
"""Attributes of a class that Python makes when it first needs them."""


def is_special(name: str) -> bool:
    """Whether Python gives a meaning to an attribute of a class."""
    return name.startswith("__") and name.endswith("__") and name != "__call__"


def _is_state(name: str, value: Any) -> bool:
    """Whether an attribute of a class can lead to what its objects change while they work."""
    if not is_special(name):
        return True
    return isinstance(value, types.FunctionType) and name not in ("__init__", "__new__")
