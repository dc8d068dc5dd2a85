"""Running state that was found by what it does, as rows beside the layers that are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pytest_bncheck.maths import running
from pytest_bncheck.types import Calls, Layer, RunningState, State, Statistics

if TYPE_CHECKING:
    from pytest_bncheck.types import Array

MOST_LOGGED = 131_072
"""Values of all states together up to which every step is logged."""


class Adopted:
    """Running states that count as layers.

    Parameters
    ----------
    found
        What was found.
    states
        The states that it consists of, and perhaps others.
    """

    def __init__(self, found: Sequence[RunningState] = (), states: Sequence[State] = ()) -> None:
        self._found = list(found)
        self._states = {state.name: state for state in states}

    @property
    def names(self) -> list[str]:
        """Names of all states."""
        return [name for each in self._found for name in each.states]

    def layers(self, momentum_of: Callable[[float], float]) -> list[Layer]:
        """A layer for each; `momentum_of` is that of `Dialect`."""
        return [
            Layer(
                name=each.name,
                type=each.type,
                momentum=None if each.update_rate is None else momentum_of(each.update_rate),
                update_rate=each.update_rate,
                eps=0.0,
                stock=False,
                resolution=each.resolution,
                dtype=each.dtype,
                states=tuple(name.rpartition(".")[2] for name in each.states),
                sizes=each.sizes,
            )
            for each in self._found
        ]

    def calls(self, known: Calls) -> Calls:
        """Calls over all training steps, after those of the known layers."""
        return known.beside([each.updates for each in self._found])

    def kept(self, known: list[list[float]]) -> list[list[float]]:
        """The share that each layer kept in each step, after those of the known layers."""
        count = len(known)
        rows = [
            running.remaining_share(each.update_rate, each.updates, each.updates / count)
            for each in (self._found if count else ())
        ]
        return [[*row, *rows] for row in known] if rows else known

    def after(self, known: Statistics, values: Mapping[str, Array]) -> Statistics:
        """The statistics of known layers and of these.

        Parameters
        ----------
        values
            Flat values of every state, by its name.
        """
        rows = [np.concatenate([values[name] for name in each.states]) for each in self._found]
        return running.joined(known, rows)

    def history(self, known: list[Statistics]) -> list[Statistics]:
        """The history of known layers and of these.

        Where a state was not logged, it has only two entries, the start and the end.
        """
        own = [self._states[name] for name in self.names]
        if not own:
            return known
        if not all(len(state.log) == len(known) - 1 for state in own):
            known, logs = [known[0], known[-1]], [[state.stop] for state in own]
        else:
            logs = [list(state.log) for state in own]
        starts = [state.stop if state.start is None else state.start for state in own]
        each = [
            dict(zip(self.names, values, strict=True))
            for values in (starts, *zip(*logs, strict=True))
        ]
        return [self.after(*pair) for pair in zip(known, each, strict=True)]

    def apart(self, statistics: Statistics) -> tuple[Statistics, dict[str, Array]]:
        """The statistics of the known layers, and the values of every state by its name."""
        count = len(statistics) - len(self._found)
        values: dict[str, Array] = {}
        for each, row in zip(self._found, statistics.mean[count:], strict=True):
            values.update(zip(each.states, running.parts(row, each.sizes), strict=True))
        return Statistics(statistics.mean[:count], statistics.var[:count]), values
