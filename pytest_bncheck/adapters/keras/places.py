"""Where the variables and tensors of a model hang: also those that Keras does not track."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import keras

from pytest_bncheck.adapters.containers import container_type, with_item
from pytest_bncheck.adapters.keras import internals
from pytest_bncheck.adapters.keras.backends.base import Backend, Variable
from pytest_bncheck.adapters.references import (
    PLAIN,
    is_of_a_package,
    package_of,
    passes_for_another,
)

KerasLayer: TypeAlias = Any

_DEEPEST = 4
_LIBRARIES = ("keras", "tensorflow", "torch", "jax", "numpy", "builtins", "collections", "wrapt")


@dataclass(frozen=True)
class Place:
    """A variable or tensor of a layer, or of a module of the backend inside it.

    Attributes
    ----------
    name
        Path in the model: ``base/norm.moving_mean``.
    owner, path
        The layer or module that it hangs on, and its path.
    variable
        Its value, as a variable of Keras has it.
    """

    name: str
    owner: Any
    path: str
    variable: Variable


def places(named: Iterable[tuple[KerasLayer, str]], backend: Backend) -> list[Place]:
    """Everything that no optimizer moves, seeds aside: tracked variables, and what hangs loose.

    The weights of a frozen layer are not among them: Keras lists a variable by its purpose.
    """
    layers = list(named)
    known = {id(v) for layer, _ in layers for v in internals.trainable_variables(layer)}
    known |= {id(g.state) for layer, _ in layers for g in internals.seed_generators(layer)}
    known |= {
        id(v) for layer, _ in layers for m in internals.metrics_of(layer) for v in m.variables
    }
    found: list[Place] = []
    for layer, path in layers:
        by_id = {id(v): name for name, v in vars(layer).items() if isinstance(v, keras.Variable)}
        tracked = [
            (layer, path, by_id.get(id(v), v.name), v)
            for v in internals.non_trainable_variables(layer)
        ]
        for owner, place, name, variable in [*tracked, *_loose(layer, path, backend)]:
            if id(variable) not in known:
                known.add(id(variable))
                found.append(Place((place and f"{place}.{name}") or name, owner, place, variable))
    return _with_unique_names(found)


def loose_variables(layers: Iterable[KerasLayer], backend: Backend) -> list[Variable]:
    """What hangs on layers without being tracked by Keras: variables, tensors, buffers."""
    tracked: set[int] = set()
    owned = list(layers)
    for layer in owned:
        tracked |= {id(v) for v in internals.trainable_variables(layer)}
        tracked |= {id(v) for v in internals.non_trainable_variables(layer)}
        tracked |= {id(generator.state) for generator in internals.seed_generators(layer)}
    found = {id(v): v for layer in owned for _, _, _, v in _loose(layer, "", backend)}
    return [v for key, v in found.items() if key not in tracked]


def _loose(
    layer: KerasLayer, path: str, backend: Backend
) -> Iterator[tuple[Any, str, str, Variable]]:
    """Owner, its path, name in it, and variable."""
    seen: set[int] = set()
    for name, value in vars(layer).items():
        if name not in _attributes_of_keras() and not name.startswith(internals.TRACKING):
            for inner, variable in _held(vars(layer), name, value, name, backend, seen):
                yield layer, path, inner, variable
    for module, inside, name, variable in backend.buffers(layer):
        yield module, "/".join(filter(None, (path, inside))), name, variable


def _held(
    holder: Any, key: Any, value: Any, name: str, backend: Backend, seen: set[int], depth: int = 0
) -> Iterator[tuple[str, Variable]]:
    """Variables and tensors in an attribute, in containers and in helper objects of the user."""
    if type(value) in PLAIN or passes_for_another(value):
        return
    if isinstance(value, keras.Variable):
        yield name, value
        return
    variable = backend.loose(holder, key)
    if variable is not None:
        yield name, variable
        return
    if depth == _DEEPEST or id(value) in seen:
        return
    seen.add(id(value))
    inside = _Inside(holder, key)
    for inner, (place, item) in _members(value, name):
        yield from _held(inside, place, item, inner, backend, seen, depth + 1)


class _Inside:
    """What a place holds now, container or object: a call can put another one there."""

    def __init__(self, holder: Any, key: Any) -> None:
        self._holder, self._key = holder, key

    def _now(self) -> Any:
        value = self._holder[self._key]
        plain = isinstance(value, tuple) or container_type(value) is not None
        return value if plain else vars(value)

    def __getitem__(self, key: Any) -> Any:
        try:
            return self._now()[key]
        except TypeError as error:  # something else was put there
            raise LookupError(key) from error

    def __setitem__(self, key: Any, item: Any) -> None:
        now = self._now()
        if isinstance(now, tuple):
            self._holder[self._key] = with_item(now, key, item)
        else:
            now[key] = item


def _members(value: Any, name: str) -> list[tuple[str, tuple[Any, Any]]]:
    plain = container_type(value)
    if plain is not None and issubclass(plain, dict):
        pairs = dict.items(value)
        return [(f"{name}[{k!r}]", (k, v)) for k, v in pairs if type(v) not in PLAIN]
    if plain is list or isinstance(value, tuple):
        # A list of TensorFlow's keeps its members elsewhere; a user's iterator may do anything.
        asked = plain is not list or is_of_a_package(type(value).__module__)
        numbered = enumerate(value if asked else list.__iter__(value))
        return [(f"{name}[{k}]", (k, v)) for k, v in numbered if type(v) not in PLAIN]
    own = package_of(value) not in _LIBRARIES
    if own and not isinstance(value, (type, keras.Layer)) and hasattr(value, "__dict__"):
        return [(f"{name}.{key}", (key, item)) for key, item in vars(value).items()]
    return []


@cache
def _attributes_of_keras() -> frozenset[str]:
    """Attributes in which every layer keeps what Keras and its backend need."""
    named = keras.layers.Layer(name="any")  # without a name a counter of Keras would move
    return frozenset(vars(named)) | internals.NOTES


def _with_unique_names(found: list[Place]) -> list[Place]:
    used: set[str] = set()
    unique = []
    for place in found:
        name = place.name if place.name not in used else f"{place.name}#{len(used)}"
        used.add(name)
        unique.append(Place(name, place.owner, place.path, place.variable))
    return unique
