"""Lists, dictionaries and sets of the user's code: what they hold, and how they get it back.

Everything goes through the methods of the plain types, since those of a subclass can do more.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any

_TYPES = (OrderedDict, dict, list, deque, set)


def container_type(value: Any) -> Any:
    """The plain mutable container type that `value` is an instance of, or None."""
    kind = type(value)
    if kind in _TYPES:
        return kind
    if not issubclass(kind, _TYPES):  # nearly all, and all are asked
        return None
    return next(plain for plain in _TYPES if issubclass(kind, plain))


def members_of(container: Any) -> list[tuple[Any, ...]]:
    """The members in order: ``(key, value)`` of a dictionary, ``(element,)`` of all others."""
    if container_type(container) is OrderedDict:  # has an order of its own
        keys = OrderedDict.__iter__(container)
        return [(key, dict.__getitem__(container, key)) for key in keys]
    if issubclass(container_type(container), dict):
        return list(dict.items(container))
    return [(element,) for element in container_type(container).__iter__(container)]


def holds(container: Any, wanted: list[tuple[Any, ...]]) -> bool:
    """Whether a container has exactly these members, the same objects in the same order."""
    now = members_of(container)
    length = container_type(container).__len__(container)
    return length == len(now) == len(wanted) and all(
        a is b
        for one, other in zip(now, wanted, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def refill(container: Any, wanted: list[tuple[Any, ...]]) -> None:
    """Give a container its members back, unless it still has them."""
    if holds(container, wanted):
        return
    plain = container_type(container)
    plain.clear(container)
    if issubclass(plain, dict):
        plain.update(container, wanted)
    elif plain is set:
        set.update(container, (element for (element,) in wanted))
    else:
        plain.extend(container, (element for (element,) in wanted))


def with_item(items: tuple[Any, ...], index: int, item: Any) -> tuple[Any, ...]:
    """A tuple of the same class, which may be a named one, with another item at a place."""
    make = getattr(type(items), "_make", tuple)
    changed: tuple[Any, ...] = make([*items[:index], item, *items[index + 1 :]])
    return changed
