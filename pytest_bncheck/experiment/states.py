"""Running state by what it does: found by training passes from several starts, whatever its name.

The weights stay as they are and every pass draws the same random numbers, so what a pass makes of a
state depends on the state alone. See `maths.settling`. The number of passes does not depend on the
number of layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pytest_bncheck.adapters.base import Stateful
from pytest_bncheck.maths import running, settling
from pytest_bncheck.types import Moved, Prediction, RunningState, State

if TYPE_CHECKING:
    from pytest_bncheck.types import Array

    Values = Mapping[str, Array]

LONGEST = 16
"""The most steps between two moves that are looked for."""

KINDS = 6
"""Kinds of states that are displaced one by one, where displacing all of them tells nothing."""

ROUNDS = 4
"""Times that the settled values are sought again, where states depend on each other."""

DRAWS = 4
"""Passes that the settled values are averaged over, where training draws random numbers."""

FIRST_UPDATE = 0.5
"""Share of the way in the first step from which on a state forgets its start with it."""

DIGITS = 4
"""Significant digits of a rate that was measured."""

FORGETS = 1.0 - 1e-6
"""Rate from which on a pass leaves nothing of what was there."""

ALIKE = 1e-3
"""Largest relative difference of two rates that count as one."""


PROBED = (1, 4, 16, 64)
"""Steps after which rates are measured, besides the last: some follow a schedule."""

CHANGED = 0.05
"""Relative difference from the last rate from which on a rate counts as changing."""

Probes = dict[int, dict[str, float]]
"""Rates of states over a pass, by the number of training steps before it."""


@dataclass(frozen=True)
class _Found:
    """One state with its rate over `passes` passes."""

    state: State
    rate: float
    calls: int


def probe(adapter: Stateful) -> dict[str, float]:
    """The rates at which a pass moves states now, of those that move in every step."""
    __tracebackhide__ = True
    states = {state.name: state for state in adapter.states() if state.moves}
    if not states:
        return {}
    first = adapter.train_from(0)
    return _rates(adapter, _movers(states, first), first, passes=1)


def find(
    adapter: Stateful, steps: int, *, stochastic: bool, probes: Probes | None = None
) -> list[RunningState]:
    """The running state of a model besides its known layers; empty where there is none.

    Parameters
    ----------
    steps
        Training steps that were made.
    stochastic
        Whether training draws random numbers: the settled values are then a mean over draws.
    probes
        Rates that were measured during the training.
    """
    __tracebackhide__ = True
    states = {state.name: state for state in adapter.states() if state.moves or not steps}
    if not states:
        return []
    passes = _between_moves(states.values(), steps)
    first = adapter.train_from(0, passes=passes)
    movers = _movers(states, first)
    if not movers:
        return []
    found = [
        _Found(movers[name], rate, first.calls.get(name, 0))
        for name, rate in _rates(adapter, movers, first, passes).items()
    ]
    settled = _settle(adapter, 0, found, passes, first.states)
    unsettled = [each for each in found if each.state.name not in settled]
    if other := _other_rates(adapter, unsettled, passes, first.states):
        found = [replace(each, rate=other.get(each.state.name, each.rate)) for each in found]
        settled = _settle(adapter, 0, found, passes, first.states)
    clean = settled
    if stochastic:
        rates = {each.state.name: each.rate for each in found}
        settled = _mean_over_draws(adapter, 0, rates, passes, clean)
    confirmed = _accumulating([each for each in found if each.state.name in settled])
    rows = _grouped(confirmed, settled, clean, passes, steps)
    return [_with_schedule(each, steps, probes or {}, states) for each in rows]


def settled_on(
    adapter: Stateful, index: int, found: Sequence[RunningState], *, stochastic: bool
) -> list[RunningState]:
    """What was found, with the values towards which another mini-batch moves it."""
    rates = {
        name: 1.0 - (1.0 - _rate(each)) ** max(each.calls, 1)
        for each in found
        for name in each.states
    }
    reached = dict(_apart(found))
    for _ in range(2):  # the second pass rounds less, which matters beside a variance of 0
        ends = adapter.train_from(index, reached).states
        reached = {
            name: settling.settled(reached[name], ends[name], rate) for name, rate in rates.items()
        }
    clean = reached
    if stochastic:
        reached = _mean_over_draws(adapter, index, rates, 1, clean)
    return [
        replace(
            each,
            settled=np.concatenate([reached[name] for name in each.states]),
            clean=np.concatenate([clean[name] for name in each.states]),
        )
        for each in found
    ]


def with_initial_value(
    adapter: Stateful, found: Sequence[RunningState], steps: int
) -> list[RunningState]:
    """The same where the settled values are mixed with what is left of the initial ones.

    Nothing is left of the initial value for one who reads them so. Empty where they are alike, or
    the start is not known.
    """
    starts = {state.name: state.start for state in adapter.states()}
    mixed = []
    for each in found:
        own = [starts.get(name) for name in each.states]
        first = [start for start in own if start is not None]
        if each.update_rate is None or len(first) < len(own) or not steps:
            return []
        shares = each.kept or [running.remaining_weight(each.update_rate, each.updates)]
        left = math.prod(shares)
        start = left * np.concatenate(first)
        settled, clean = (start + (1.0 - left) * values for values in (each.settled, each.clean))
        mixed.append(replace(each, settled=settled, clean=clean, kept=(0.0,) * steps))
    alike = all(_same(a.settled, b.settled) for a, b in zip(found, mixed, strict=True))
    return [] if alike else mixed


def predict_settled(adapter: Stateful, found: Sequence[RunningState]) -> Prediction | None:
    """What training mode predicts once the states have settled."""
    return adapter.train_from(0, dict(_apart(found))).prediction


def _rate(found: RunningState) -> float:
    if found.update_rate is not None:
        return found.update_rate
    return 1.0 / (found.updates + 1)


def _apart(found: Iterable[RunningState]) -> Iterable[tuple[str, Array]]:
    for each in found:
        yield from zip(each.states, running.parts(each.clean, each.sizes), strict=True)


# rates ------------------------------------------------------------------------------------------


def _between_moves(states: Iterable[State], steps: int) -> int:
    """Passes that let every state move once: more than one where some move every few steps."""
    seldom = [state.moves for state in states if 1 < state.moves < settling.SELDOM * steps]
    return min(LONGEST, round(steps / min(seldom))) if seldom else 1


def _rates(
    adapter: Stateful, movers: Mapping[str, State], first: Moved, passes: int
) -> dict[str, float]:
    """The rate of every state that moves like an average."""
    rates = _together(adapter, movers, first, passes)
    return rates | _one_by_one(
        adapter, {n: s for n, s in movers.items() if n not in rates}, first, passes
    )


def _movers(states: Mapping[str, State], first: Moved) -> dict[str, State]:
    """The states that a pass moves."""
    return {
        name: state
        for name, state in states.items()
        if name in first.states and not _same(first.states[name], state.stop)
    }


def _together(
    adapter: Stateful, movers: Mapping[str, State], first: Moved, passes: int
) -> dict[str, float]:
    """The rates that show where all states are displaced at once."""
    if not movers:
        return {}
    rates: dict[str, float] = {}
    zeros = {name: np.zeros_like(state.stop) for name, state in movers.items()}
    far = {name: settling.away(state.stop) for name, state in movers.items()}
    ends = [adapter.train_from(0, start, passes=passes).states for start in (zeros, far)]
    for name, state in movers.items():
        starts = (state.stop, zeros[name], far[name])
        rate = settling.rate(
            starts, (first.states[name], *(end[name] for end in ends)), state.resolution
        )
        if rate is not None:
            rates[name] = rate
    return rates


def _one_by_one(
    adapter: Stateful, doubtful: Mapping[str, State], first: Moved, passes: int
) -> dict[str, float]:
    """The rates of states that depend on each other: one of each kind is displaced alone.

    A mean and a variance may lie in one tensor, its halves; then each of them is displaced alone.
    """
    rates: dict[str, float] = {}
    kinds: dict[tuple[str, str, int], list[str]] = {}
    for name, state in doubtful.items():
        kind = state.type, name.rpartition(".")[2], first.calls.get(name, 0)
        kinds.setdefault(kind, []).append(name)
    for names in list(kinds.values())[:KINDS]:
        state = doubtful[names[0]]
        end, half = first.states[state.name], state.stop.size // 2
        rate = _alone(adapter, state, end, passes, slice(None))
        if rate is None and 2 * half == state.stop.size:
            upper = _alone(adapter, state, end, passes, slice(half))
            lower = upper and _alone(adapter, state, end, passes, slice(half, None))
            rate = upper if upper and lower and _alike(upper, lower) else None
        if rate is not None:
            rates.update(dict.fromkeys(names, rate))
    return rates


def _other_rates(
    adapter: Stateful, unsettled: Sequence[_Found], passes: int, first: Values
) -> dict[str, float]:
    """The rates of states that are not like the one of their kind that was displaced."""
    rates = {
        each.state.name: _alone(adapter, each.state, first[each.state.name], passes, slice(None))
        for each in unsettled[:KINDS]
    }
    return {name: rate for name, rate in rates.items() if rate is not None}


def _alone(adapter: Stateful, state: State, end: Array, passes: int, part: slice) -> float | None:
    """The rate of a part of a state, of which nothing else is displaced."""
    near, far = state.stop[part], settling.away(state.stop[part])
    starts, ends = [near], [end[part]]
    for values in (far, (near + far) / 2.0):
        start = state.stop.copy()
        start[part] = values
        moved = adapter.train_from(0, {state.name: start}, passes=passes)
        starts.append(values)
        ends.append(moved.states[state.name][part])
    return settling.rate(starts, ends, state.resolution)


# settled values ---------------------------------------------------------------------------------


def _settle(
    adapter: Stateful, index: int, found: Sequence[_Found], passes: int, first: Values
) -> dict[str, Array]:
    """The values at which passes leave the states; only of those that one more pass confirms."""
    here = {each.state.name: each.state.stop for each in found}
    ends: Values = first
    left = list(found)
    for _ in range(ROUNDS):
        if not left:
            return {}
        here = {
            each.state.name: settling.settled(
                here[each.state.name], ends[each.state.name], each.rate
            )
            for each in left
        }
        left = [each for each in left if np.isfinite(here[each.state.name]).all()]
        here = {each.state.name: here[each.state.name] for each in left}
        ends = adapter.train_from(index, here, passes=passes).states
        if all(_is_settled(each, here, ends) for each in left):
            break
    # A pass from there rounds less than those from afar, which may leave a variance below 0.
    return {
        each.state.name: settling.settled(here[each.state.name], ends[each.state.name], each.rate)
        for each in left
        if _is_settled(each, here, ends)
    }


def _is_settled(each: _Found, here: Values, ends: Values) -> bool:
    name, state = each.state.name, each.state
    far = max(float(np.linalg.norm(values)) for values in (here[name] - state.stop, here[name]))
    return settling.is_settled(here[name], ends[name], each.rate, far, state.resolution)


def _mean_over_draws(
    adapter: Stateful, index: int, rates: Mapping[str, float], passes: int, near: Values
) -> dict[str, Array]:
    """The values towards which passes with stochastic layers on move the states, on average."""
    draws = [adapter.train_from(index, near, passes=passes, draw=k).states for k in range(DRAWS)]
    return {
        name: np.mean([settling.settled(values, ends[name], rates[name]) for ends in draws], axis=0)
        for name, values in near.items()
    }


# rows -------------------------------------------------------------------------------------------


def _accumulating(found: Sequence[_Found]) -> list[_Found]:
    """Without the owners that only remember their last pass, as a cache does."""
    owners = {each.state.owner for each in found if each.rate < FORGETS}
    return [each for each in found if each.state.owner in owners]


def _grouped(
    found: Sequence[_Found], settled: Values, clean: Values, passes: int, steps: int
) -> list[RunningState]:
    """The states of each owner that move at one rate, as one running state."""
    groups: list[list[_Found]] = []
    for each in found:
        for group in groups:
            if group[0].state.owner == each.state.owner and _alike(group[0].rate, each.rate):
                group.append(each)
                break
        else:
            groups.append([each])
    owners = [group[0].state.owner for group in groups]
    return [
        _running_state(group, settled, clean, passes, steps, alone=owners.count(owner) == 1)
        for group, owner in zip(groups, owners, strict=True)
    ]


def _running_state(
    group: Sequence[_Found],
    settled: Values,
    clean: Values,
    passes: int,
    steps: int,
    *,
    alone: bool,
) -> RunningState:
    first = group[0]
    state = first.state
    seldom = passes > 1 and 1 < state.moves < settling.SELDOM * steps
    in_pass = 1 if seldom else max(first.calls, 1)
    made = state.moves * in_pass if state.as_in_pass else state.calls
    updates = state.moves if seldom else (made or state.moves)
    single = settling.per_update(first.rate, in_pass * (1 if seldom else passes))
    rate: float | None = float(f"{single:.{DIGITS}g}")
    if _is_cumulative(first, settled[state.name], single, updates):
        rate = None
    return RunningState(
        name=(state.owner or state.type) if alone else state.name,
        type=state.type,
        states=tuple(each.state.name for each in group),
        sizes=tuple(each.state.stop.size for each in group),
        update_rate=rate,
        updates=updates,
        calls=in_pass,
        settled=np.concatenate([settled[each.state.name] for each in group]),
        clean=np.concatenate([clean[each.state.name] for each in group]),
        resolution=state.resolution,
        dtype=state.dtype,
    )


def _with_schedule(
    found: RunningState, steps: int, probes: Probes, states: Mapping[str, State]
) -> RunningState:
    """A running state with what it kept in each step, where its rate changed."""
    if found.update_rate is None or not steps:
        return found
    last = 1.0 - (1.0 - found.update_rate) ** found.calls
    earlier = {done: rates[n] for done, rates in probes.items() for n in found.states if n in rates}
    second = earlier.get(1, last)
    first = _first_rate([states[name] for name in found.states], second)
    forgot = first is not None and first >= math.sqrt(second)  # nearer to 1 than to the second
    if not forgot and all(abs(rate - last) <= CHANGED * last for rate in earlier.values()):
        return found
    passes = found.updates / (steps * found.calls)
    kept = settling.kept_in_steps(earlier | {steps: last}, steps, passes)
    return replace(found, kept=(0.0, *kept[1:]) if forgot else kept)


def _first_rate(states: Sequence[State], second: float) -> float | None:
    """See `settling.first_rate`; None if the steps were not logged, or not each moved the state."""
    ways = [[each.start, *each.log, each.stop][:3] for each in states]
    if any(len(way) < 3 or way[0] is None for way in ways):
        return None
    if any(each.moves < len(each.log) for each in states):
        return None
    return settling.first_rate([np.concatenate(v) for v in zip(*ways, strict=True)], second)


def _is_cumulative(found: _Found, settled: Array, rate: float, updates: int) -> bool:
    """Whether the next update counts as much as each before: a mean over all of them.

    A constant rate can have the same value by chance; only a mean forgets its start at once.
    """
    state = found.state
    if not updates or abs(1.0 / rate - (updates + 1)) > 0.02 * (updates + 1):
        return False
    if not state.log or state.start is None:
        return False
    way = float(np.linalg.norm(settled - state.start))
    return float(np.linalg.norm(state.log[0] - state.start)) > FIRST_UPDATE * way


def _alike(one: float, other: float) -> bool:
    return abs(one - other) <= ALIKE * max(one, other)


def _same(one: Array, other: Array) -> bool:
    return np.array_equal(one, other, equal_nan=True)
