"""The weight of the initial value, fitted from running and batch statistics."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pytest_bncheck.maths import initial, running
from pytest_bncheck.types import Statistics

EPS = [1e-5, 1e-3]


def nets(seed: int, channels: int = 24) -> Statistics:
    """Batch statistics of two layers, far from mean 0 and variance 1."""
    rng = np.random.default_rng(seed)
    mean = tuple(rng.normal(0.0, 2.0, channels) for _ in EPS)
    var = tuple(rng.lognormal(0.5, 1.0, channels) for _ in EPS)
    return Statistics(mean, var)


def held(batch: Statistics, weight: float, start: float = 1.0) -> Statistics:
    """Running statistics that hold so much of their initial 0 and `start`."""
    return Statistics(
        tuple((1.0 - weight) * mean for mean in batch.mean),
        tuple(weight * start + (1.0 - weight) * var for var in batch.var),
    )


@given(st.integers(0, 10_000), st.floats(0.02, 0.995), st.sampled_from([1.0, 0.9]))
def test_the_weight_is_found(seed: int, weight: float, start: float) -> None:
    batch = nets(seed)
    found = initial.fit(held(batch, weight, start), batch, EPS, [start, start])
    assert found.weight == pytest.approx(weight, abs=1e-4)
    assert found.share == pytest.approx(1.0, abs=1e-3)


@given(st.integers(0, 10_000), st.floats(0.1, 0.95), st.floats(0.0, 0.03))
def test_noise_moves_the_weight_little(seed: int, weight: float, noise: float) -> None:
    rng, batch = np.random.default_rng(seed), nets(seed)
    pairs = list(zip(batch.mean, batch.var, strict=True))
    seen = Statistics(
        tuple(m + noise * np.sqrt(v) * rng.normal(size=m.shape) for m, v in pairs),
        tuple(v * np.exp(noise * rng.normal(size=v.shape)) for v in batch.var),
    )
    found = initial.fit(held(batch, weight), seen, EPS, [1.0, 1.0])
    assert found.weight == pytest.approx(weight, abs=0.1)


@given(st.integers(0, 10_000))
def test_other_statistics_are_not_the_initial_value(seed: int) -> None:
    """Unrelated statistics: the initial value explains at most part of the distance."""
    batch, other = nets(seed), nets(seed + 10_001)
    found = initial.fit(other, batch, EPS, [1.0, 1.0])
    assert found.share < 0.8


@given(st.integers(0, 10_000), st.floats(0.0, 0.999))
def test_no_variance_falls_below_what_is_left(seed: int, weight: float) -> None:
    batch = nets(seed)
    found = initial.fit(held(batch, weight), batch, EPS, [1.0, 1.0])
    least = min(float(var.min()) for var in held(batch, weight).var)
    assert 0.0 <= found.weight <= min(least, 1.0) + 1e-9
    assert 0.0 <= found.share <= 1.0 + 1e-12


@given(st.integers(0, 10_000), st.integers(1, 60), st.sampled_from([0.1, 0.03, 0.01]))
def test_it_is_what_training_leaves(seed: int, updates: int, rate: float) -> None:
    """A recursion with a fixed batch leaves (1-α)^t, which the fit finds without knowing α or t."""
    assume(running.remaining_weight(rate, updates) > 0.02)
    batch = nets(seed)
    now = held(batch, 1.0)
    for _ in range(updates):
        now = running.project(now, batch, [1.0 - rate] * len(EPS))
    found = initial.fit(now, batch, EPS, [1.0, 1.0])
    assert found.weight == pytest.approx(running.remaining_weight(rate, updates), abs=1e-3)


def test_converged_statistics_hold_nothing() -> None:
    batch = nets(0)
    assert initial.fit(batch, batch, EPS, [1.0, 1.0]) == initial.InitialFit(0.0, 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_impossible_statistics_hold_nothing(bad: float) -> None:
    batch = nets(0)
    broken = Statistics(batch.mean, (np.full(24, bad), batch.var[1]))
    assert initial.fit(broken, batch, EPS, [1.0, 1.0]).share == 0.0


def test_nothing_at_all() -> None:
    empty = Statistics((), ())
    assert initial.fit(empty, empty, [], []) == initial.InitialFit(0.0, 0.0)
