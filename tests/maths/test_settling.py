"""Rates and settled values of states, from what one pass makes of several starts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_bncheck.maths import initial, settling

SEEDS = st.integers(0, 10_000)
RATES = st.floats(1e-3, 1.0)
FLOAT32 = 2.0**-23


def state_and_batch(seed: int, size: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(0.0, 2.0, size), rng.normal(1.0, 2.0, size)


def starts_of(state: np.ndarray) -> list[np.ndarray]:
    return [state, np.zeros_like(state), settling.away(state)]


@given(SEEDS, RATES)
def test_the_rate_of_an_average_is_found(seed: int, alpha: float) -> None:
    state, batch = state_and_batch(seed)
    starts = starts_of(state)
    ends = [start + alpha * (batch - start) for start in starts]
    found = settling.rate(starts, ends, FLOAT32)
    assert found == pytest.approx(alpha, rel=1e-6)
    assert settling.settled(state, ends[0], found) == pytest.approx(batch, abs=1e-6)


@given(SEEDS, RATES)
def test_rounding_of_single_precision_leaves_the_rate(seed: int, alpha: float) -> None:
    state, batch = (values.astype(np.float32) for values in state_and_batch(seed))
    starts = [start.astype(np.float32) for start in starts_of(state)]
    ends = [start + np.float32(alpha) * (batch - start) for start in starts]
    wide = ([each.astype(float) for each in values] for values in (starts, ends))
    found = settling.rate(*wide, FLOAT32)
    assert found == pytest.approx(alpha, rel=0.02)


@given(SEEDS, st.floats(0.05, 0.95))
def test_what_is_not_affine_has_no_rate(seed: int, alpha: float) -> None:
    state, batch = state_and_batch(seed)
    starts = starts_of(state)
    assert settling.rate(starts, [np.tanh(start + batch) for start in starts], FLOAT32) is None
    rates = np.linspace(0.2, 1.0, len(state)) * alpha  # one for each value
    ends = [start + rates * (batch - start) for start in starts]
    assert settling.rate(starts, ends, FLOAT32) is None


@pytest.mark.parametrize("factor", [0.0, -0.2, 1.5])
def test_a_rate_outside_of_0_to_1_is_no_average(factor: float) -> None:
    state, batch = state_and_batch(3)
    starts = starts_of(state)
    ends = [start + factor * (batch - start) for start in starts]
    assert settling.rate(starts, ends, FLOAT32) is None


def test_values_that_are_not_finite_have_no_rate() -> None:
    state, batch = state_and_batch(1)
    starts = starts_of(state)
    ends = [start + 0.1 * (batch - start) for start in starts]
    ends[1][0] = np.nan
    assert settling.rate(starts, ends, FLOAT32) is None


@given(SEEDS, st.floats(0.01, 0.9))
def test_settled_is_what_a_pass_leaves_alone(seed: int, alpha: float) -> None:
    state, batch = state_and_batch(seed)
    way = float(np.linalg.norm(batch - state))
    assert settling.is_settled(batch, batch, alpha, way, FLOAT32)
    beside = batch + 0.1 * (state - batch)
    end = beside + alpha * (batch - beside)
    assert not settling.is_settled(beside, end, alpha, way, FLOAT32)


@given(st.floats(0.001, 0.9), st.integers(1, 8))
def test_the_rate_of_one_of_several_updates(alpha: float, updates: int) -> None:
    together = 1.0 - (1.0 - alpha) ** updates
    assert settling.per_update(together, updates) == pytest.approx(alpha, rel=1e-6)


@given(SEEDS, st.floats(0.05, 0.95))
def test_the_initial_weight_of_states_from_0_and_from_1(seed: int, weight: float) -> None:
    rng = np.random.default_rng(seed)
    settled = [rng.normal(2.0, 1.0, 8), rng.lognormal(1.5, 0.5, 8)]
    began = [np.zeros(8), np.ones(8)]
    now = [b + weight * (r - b) for r, b in zip(began, settled, strict=True)]
    found, starts = initial.fit_values(list(zip(now, settled, strict=True)))
    assert found.weight == pytest.approx(weight, abs=1e-6)
    assert found.share == pytest.approx(1.0, abs=1e-6)
    assert [start[0] for start in starts] == [0.0, 1.0]


def test_settled_states_hold_nothing_of_their_start() -> None:
    settled = np.array([2.0, 3.0])
    assert initial.fit_values([(settled, settled)])[0].weight == 0.0


@given(SEEDS, st.sampled_from([0.001, 0.003, 0.01, 0.1]))
def test_a_small_rate_hides_no_dependence(seed: int, alpha: float) -> None:
    """What is displaced beside a state moves it too, in proportion to the rate as all does."""
    state, batch = state_and_batch(seed)
    starts = starts_of(state)
    beside = [settling.away(start) for start in starts]  # as the mean beside a variance
    ends = [
        start + alpha * (batch + 0.3 * other - start)
        for start, other in zip(starts, beside, strict=True)
    ]
    assert settling.rate(starts, ends, FLOAT32) is None


@given(st.floats(0.001, 0.9), st.floats(0.9, 1.0), st.integers(1, 3))
def test_what_is_kept_while_a_rate_decays(first: float, factor: float, passes: int) -> None:
    steps = 40
    rates = [1.0 - (1.0 - first) ** (factor**k) for k in range(steps + 1)]
    kept = settling.kept_in_steps({k: rates[k] for k in (0, 4, 16, steps)}, steps, passes)
    assert kept == pytest.approx([(1.0 - rate) ** passes for rate in rates[:-1]], abs=1e-9)


def test_what_is_kept_before_the_first_and_at_a_rate_of_1() -> None:
    assert settling.kept_in_steps({1: 0.5}, 3, 1.0) == pytest.approx((0.5, 0.5, 0.5))
    assert settling.kept_in_steps({0: 1.0, 1: 1.0}, 2, 1.0) == pytest.approx((0.0, 0.0))


@given(st.floats(0.01, 1.0), st.floats(0.01, 0.9), st.integers(0, 100))
def test_the_rate_of_a_first_step(first: float, second: float, seed: int) -> None:
    start, batch = np.random.default_rng(seed).normal(size=(2, 8))
    way = [start]
    for rate in (first, second):
        way.append(way[-1] + rate * (batch - way[-1]))
    assert settling.first_rate(way, second) == pytest.approx(first, rel=1e-6)


def test_a_first_step_that_moved_nothing_has_no_rate() -> None:
    assert settling.first_rate([np.ones(3)] * 3, 0.1) is None


@given(st.floats(1e-3, 0.3), st.integers(0, 100))
def test_a_state_that_starts_near_its_batch_forgets_nothing_at_once(rate: float, seed: int) -> None:
    start, *batches = np.random.default_rng(seed).normal(scale=0.1, size=(3, 64)) + 1.0
    way = [start]
    for batch in batches:
        way.append(way[-1] + rate * (batch - way[-1]))
    found = settling.first_rate(way, rate)
    assert found is not None
    assert found < rate**0.5
