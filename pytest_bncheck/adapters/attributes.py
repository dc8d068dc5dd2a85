"""Plain attributes of a model's parts that an eval pass leaves changed, and what that does."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from pytest_bncheck.adapters.random_state import RandomState
from pytest_bncheck.maths.predictions import gap

if TYPE_CHECKING:
    from pytest_bncheck.types import Array

Place: TypeAlias = tuple[int, str]
"""A part's position and the name of its attribute."""

_PLAIN = (bool, int, float, str, type(None))


class PlainAttributes:
    """Numbers, texts and flags among the attributes of a model's parts, at one moment.

    Parameters
    ----------
    parts
        Modules or layers, each with its path in the model.
    without
        Names of attributes to leave out.
    """

    def __init__(self, parts: Iterable[tuple[Any, str]], without: Container[str] = ()) -> None:
        self._parts = list(parts)
        self._before: dict[Place, Any] = {
            (k, name): value
            for k, (part, _) in enumerate(self._parts)
            for name, value in vars(part).items()
            if issubclass(type(value), _PLAIN) and name not in without
        }

    def changed(self) -> dict[Place, Any]:
        """The attributes that have another value now, with that value."""
        now = {
            (k, name): vars(self._parts[k][0])[name]
            for k, name in self._before
            if name in vars(self._parts[k][0])
        }
        return {place: v for place, v in now.items() if not _same(v, self._before[place])}

    def put_back(self) -> None:
        """Give changed attributes their first values back."""
        self._set(self._first(self.changed()))

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """Give changed attributes their first values back for the time of a ``with`` block.

        What the block changes goes back, too: the counter of a training pass is no trace of eval.
        """
        changed = self.changed()
        self._set(self._first(changed))
        try:
            yield
        finally:
            self.put_back()
            self._set(changed)

    def sticky(self, outputs: Callable[[], Mapping[str, Array]], noise: float) -> list[str]:
        """Changed attributes that change the outputs in training mode, by their paths.

        If only several together do, all of them.

        Parameters
        ----------
        outputs
            One pass in training mode, which leaves everything but attributes as it is.
        noise
            Relative difference of two outputs that rounding explains.
        """
        changed = self.changed()
        if not changed:
            return []
        first = self._first(changed)

        def differs(values: Mapping[Place, Any]) -> bool:
            self._set({**first, **values})
            apart = gap(run(), expected)
            return bool(expected) and (apart is None or not apart <= noise)

        def run() -> Mapping[str, Array]:
            state = RandomState.capture()
            try:
                return outputs()
            finally:
                state.restore()

        try:
            self._set(first)
            expected = run()
            if not differs(changed):
                return []
            alone = [place for place in changed if len(changed) > 1]
            alone = [place for place in alone if differs({place: changed[place]})]
        finally:
            self._set(changed)
        paths = [(self._parts[k][1], name) for k, name in alone or changed]
        return [f"{path}.{name}" if path else name for path, name in paths]

    def _first(self, places: Iterable[Place]) -> dict[Place, Any]:
        return {place: self._before[place] for place in places}

    def _set(self, values: Mapping[Place, Any]) -> None:
        for (k, name), value in values.items():  # past a framework's own `__setattr__`
            vars(self._parts[k][0])[name] = value


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and (a == b or (a != a and b != b)))
