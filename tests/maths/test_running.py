"""The formulas on running statistics, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pytest_bncheck.maths import distances, running
from pytest_bncheck.types import Statistics

rates = st.floats(0.001, 0.999)
channels = 5
values = arrays(np.float64, channels, elements=st.floats(-10, 10))
positive = arrays(np.float64, channels, elements=st.floats(0.01, 10))
statistics = st.builds(lambda m, v: Statistics((m,), (v,)), values, positive)


def ema(start: Statistics, batches: list[Statistics], rate: float) -> Statistics:
    """The recursion itself."""
    mean, var = start.mean[0], start.var[0]
    for batch in batches:
        mean = (1 - rate) * mean + rate * batch.mean[0]
        var = (1 - rate) * var + rate * batch.var[0]
    return Statistics((mean,), (var,))


def close(left: Statistics, right: Statistics, tolerance: float = 1e-9) -> bool:
    return np.allclose(left.mean[0], right.mean[0], atol=tolerance) and np.allclose(
        left.var[0], right.var[0], atol=tolerance
    )


@given(rates, st.integers(0, 500))
def test_remaining_weight_is_what_the_recursion_leaves(rate: float, updates: int) -> None:
    value = 1.0
    for _ in range(updates):
        value *= 1 - rate
    assert running.remaining_weight(rate, updates) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("momentum", "updates"), [(0.5, 7), (0.1, 44), (0.03, 152), (0.01, 459), (0.001, 4603)]
)
def test_updates_until_one_percent(momentum: float, updates: int) -> None:
    assert running.updates_until(momentum, 0.01) == updates


@given(rates, st.floats(0.001, 0.9))
def test_updates_until_is_the_first_that_suffices(rate: float, weight: float) -> None:
    updates = running.updates_until(rate, weight)
    assert updates is not None
    assert running.remaining_weight(rate, updates) <= weight * (1 + 1e-9)
    assert running.remaining_weight(rate, updates - 1) > weight * (1 - 1e-9)


def test_rates_at_the_border() -> None:
    assert running.remaining_weight(None, 1) == 0.0
    assert running.remaining_weight(0.0, 100) == 1.0
    assert running.updates_until(0.0, 0.01) is None
    assert running.updates_until(1.0, 0.01) == 1
    assert running.updates_until(None, 0.01) == 1
    with pytest.raises(ValueError, match="updates"):
        running.remaining_weight(0.1, -1)
    with pytest.raises(ValueError, match="weight"):
        running.updates_until(0.1, 1.0)


@given(statistics, st.lists(statistics, min_size=1, max_size=6), rates)
def test_debias_takes_out_the_start(
    start: Statistics, batches: list[Statistics], rate: float
) -> None:
    weight = running.remaining_weight(rate, len(batches))
    other = Statistics((start.mean[0] + 3,), (start.var[0] + 3,))
    one, two = (running.debias(ema(s, batches, rate), s, [weight]) for s in (start, other))
    assert close(one, two, 1e-6 / (1 - weight))


@given(statistics, statistics, rates, st.integers(1, 50))
def test_project_is_the_recursion_towards_one_batch(
    current: Statistics, batch: Statistics, rate: float, updates: int
) -> None:
    share = running.remaining_share(rate, 7, updates)
    assert close(running.project(current, batch, [share]), ema(current, [batch] * updates, rate))


def test_projection_of_a_cumulative_average() -> None:
    seen = [np.full(3, float(k)) for k in range(4)]
    current = Statistics((np.mean(seen, axis=0),), (np.ones(3),))
    batch = Statistics((np.full(3, 10.0),), (np.ones(3),))
    share = running.remaining_share(None, 4, 6)
    projected = running.project(current, batch, [share])
    expected = np.mean([*seen, *[batch.mean[0]] * 6], axis=0)
    np.testing.assert_allclose(projected.mean[0], expected)


@given(statistics, statistics, st.floats(0.05, 0.95), st.integers(1, 4))
def test_recover_batch_inverts_one_step(
    start: Statistics, batch: Statistics, rate: float, calls: int
) -> None:
    after = ema(start, [batch] * calls, rate)
    assert close(running.recover_batch(start, after, [(1 - rate) ** calls]), batch, 1e-6)


def test_readable_leaves_out_channels_that_rounding_hides() -> None:
    """At α = 0.001 a variance of 1e-4 cannot be read next to a running variance of 1."""
    current = Statistics((np.zeros(2),), (np.ones(2),))
    batch = Statistics((np.zeros(2),), (np.array([1.0, 1e-4]),))
    (mask,) = running.readable(current, batch, [1e-5], [0.001], [2.0**-23])
    assert mask.tolist() == [True, False]
    (mask,) = running.readable(current, batch, [1e-5], [0.1], [2.0**-23])
    assert mask.tolist() == [True, True]
    hidden = distances.distortion(current, batch, [1e-5], [np.array([False, False])])
    assert hidden[0] == 0.0


@pytest.mark.parametrize(("n", "factor"), [(2, 2.0), (8, 8 / 7), (1, 1.0), (None, 1.0)])
def test_bessel(n: int | None, factor: float) -> None:
    assert running.bessel(n) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("mean", "var", "possible"),
    [(0.0, 0.0, True), (-1.0, 2.0, True), (0.0, -1.0, False), (math.inf, 1.0, False),
     (0.0, math.nan, False)],
)  # fmt: skip
def test_possible(mean, var, possible):
    fine = np.ones(2)
    statistics = Statistics((fine, np.array([mean])), (fine, np.array([var])))
    assert running.is_possible(statistics) is possible


@given(rates, st.integers(1, 20), statistics)
def test_batch_statistics_are_read_from_what_a_start_at_zero_becomes(
    rate: float, updates: int, batch: Statistics
) -> None:
    zero = Statistics((np.zeros(channels),), (np.zeros(channels),))
    left = ema(zero, [batch] * updates, rate)
    mean = running.from_zero(left.mean[0], rate, updates)
    var = running.from_zero(left.var[0], rate, updates)
    assert close(Statistics((mean,), (var,)), batch, 1e-6)


def test_a_cumulative_average_from_zero_is_the_batch_s_already() -> None:
    assert running.from_zero(np.array([3.0]), None, 2).tolist() == [3.0]


def test_an_update_below_the_spacing_is_lost() -> None:
    resolution = 2.0**-7  # bfloat16
    statistic = np.array([1.0, 1.0, 100.0, 0.0])
    batch = np.array([1.5, 3.0, 140.0, 0.1])
    kept = running.rounds_away(0.01, resolution, statistic, batch)
    assert kept.tolist() == [True, False, True, False]
    assert running.loses_updates(0.01, resolution)
    assert not running.loses_updates(0.1, resolution)
