"""Functions of a framework that are replaced for the time of a session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_MISSING = object()


class Replaced:
    """What is replaced, and what stood there.

    Parameters
    ----------
    prepare
        Called with each new function.
    """

    def __init__(self, prepare: Callable[[Any], None] | None = None) -> None:
        self._prepare = prepare
        self._undo: list[tuple[Any, str, Any, Any]] = []

    def replace(self, place: Any, name: str, new: Any) -> None:
        """Put something in the place of an attribute of a module or class."""
        if self._prepare is not None:
            self._prepare(new)
        self._undo.append((place, name, vars(place).get(name, _MISSING), new))
        setattr(place, name, new)

    def remove(self) -> None:
        """Put back what is still in its place."""
        for place, name, old, new in reversed(self._undo):
            if vars(place).get(name) is not new:
                continue
            if old is _MISSING:
                delattr(place, name)
            else:
                setattr(place, name, old)
        self._undo = []
