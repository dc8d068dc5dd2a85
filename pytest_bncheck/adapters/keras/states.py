"""What training moves besides the statistics of known layers: values, log, moves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import keras
import numpy as np

from pytest_bncheck.adapters.keras.backends.base import Backend, Tensor, Variable, split
from pytest_bncheck.adapters.keras.places import Place
from pytest_bncheck.adapters.keras.state import RESOLUTION, value_of, write_values
from pytest_bncheck.adapters.states import MOST_LOGGED
from pytest_bncheck.types import State

if TYPE_CHECKING:
    from pytest_bncheck.adapters.keras.modes import Ran
    from pytest_bncheck.types import Array


class States:
    """Floating variables and tensors that a forward can change, of no known layer.

    Parameters
    ----------
    places
        Where they are, in the order in which the layers run.
    """

    def __init__(self, places: Sequence[Place], backend: Backend) -> None:
        self._backend = backend
        kept = (p for p in places if keras.backend.is_float_dtype(_dtype(p)) and _has_shape(p))
        self._places = {p.name: p for p in kept}
        self.logs = sum(map(_size, self._places.values())) <= MOST_LOGGED
        self._start: list[Array] = []

    def begin(self) -> None:
        """Remember the values before the first training step, where no step is logged."""
        self._start = [] if self.logs else list(self.read().values())

    @property
    def variables(self) -> list[Variable]:
        """The variable of each."""
        return [place.variable for place in self._places.values()]

    def logged(self) -> list[Tensor]:
        """What the log of a step holds: the values, or their sums where that is too much."""
        values = list(map(value_of, self.variables))
        return values if self.logs else [keras.ops.sum(value) for value in values]

    def read(self) -> dict[str, Array]:
        """The values now, flat, by name."""
        values = list(map(value_of, self.variables))
        return dict(zip(self._places, self._backend.to_host(values), strict=True))

    def write(self, values: Mapping[str, Array]) -> None:
        """Set some of them."""
        places = [place for name, place in self._places.items() if name in values]
        arrays = [values[place.name] for place in places]
        write_values([place.variable for place in places], arrays, self._backend)

    def calls(self, ran: Ran) -> dict[str, int]:
        """Calls of each state's owner in training mode."""
        return {name: ran.calls[id(place.owner)] for name, place in self._places.items()}

    def found(self, log: Sequence[Sequence[Array]], ran: Ran) -> list[State]:
        """Those that training moved; without training all of them.

        Parameters
        ----------
        log
            What `logged` gave before the first step and after each.
        ran
            What all steps ran.
        """
        now, calls, made = self.read(), self.calls(ran), len(log) > 1
        found = []
        for k, (name, place) in enumerate(self._places.items()):
            each = [row[k] for row in log]
            moves = sum(not np.array_equal(*pair, equal_nan=True) for pair in pairwise(each))
            if (made and not moves) or now[name].size != _size(place):  # it grows
                continue
            dtype = _dtype(place)
            start = each[0] if self.logs else self._start[k]
            found.append(
                State(
                    name=name,
                    owner=place.path,
                    type=type(place.owner).__name__,
                    start=start if made else None,
                    stop=now[name],
                    log=each[1:] if self.logs else (),
                    moves=moves,
                    calls=calls[name],
                    resolution=RESOLUTION.get(dtype, 2.0**-23),
                    dtype=dtype,
                )
            )
        return found

    def unpacked(self, packed: Tensor) -> list[Array]:
        """What `logged` gave, from the end of a tensor."""
        if not self._places:
            return []
        shapes = self.variables if self.logs else [np.empty(())] * len(self._places)
        whole = sum(math.prod(each.shape) for each in shapes)
        return split(packed[-whole:], shapes)

    @property
    def owners(self) -> dict[str, int]:
        """Id of the owner of each, by name."""
        return {name: id(place.owner) for name, place in self._places.items()}


def _dtype(place: Place) -> str:
    return keras.backend.standardize_dtype(place.variable.dtype)  # type: ignore[no-any-return]


def _size(place: Place) -> int:
    return int(np.prod(place.variable.shape))


def _has_shape(place: Place) -> bool:
    """Whether a variable always has one shape: those of TensorFlow need not."""
    known = getattr(place.variable.shape, "is_fully_defined", None)
    return known is None or bool(known())
