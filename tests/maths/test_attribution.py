"""Shares of layers in a difference of predictions: the way there, and the integral along it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_bncheck.maths import attribution, distances
from pytest_bncheck.types import Statistics

EPS = [1e-3]
numbers = st.floats(-3, 3)
variances = st.floats(1e-3, 30)


def statistics(mean: float, var: float) -> Statistics:
    return Statistics((np.array([mean]),), (np.array([var]),))


def reactions(seen: Statistics, x: np.ndarray, along: np.ndarray, gamma: float) -> list:
    """γ·∂/∂γ and γ·∂/∂β of ⟨γ·x̂ + β, along⟩."""
    normal = (x - seen.mean[0]) / np.sqrt(seen.var[0] + EPS[0])
    return [(gamma * (along * normal).sum(0), gamma * along.sum(0))]


@given(numbers, variances, numbers, variances)
def test_the_way_leads_from_the_batch_statistics_to_the_running_ones(
    rm: float, rv: float, bm: float, bv: float
) -> None:
    seen, batch = statistics(rm, rv), statistics(bm, bv)
    for alpha, expected in ((0.0, batch), (1.0, seen)):
        there = attribution.along(seen, batch, EPS, alpha)
        np.testing.assert_allclose(there.mean[0], expected.mean[0], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(there.var[0], expected.var[0], rtol=1e-9, atol=1e-9)


@given(numbers, variances, numbers, variances, st.floats(0, 1))
def test_every_point_distorts_by_its_share(
    rm: float, rv: float, bm: float, bv: float, alpha: float
) -> None:
    seen, batch = statistics(rm, rv), statistics(bm, bv)
    ((d, s),) = distances.shift_and_scale(seen, batch, EPS)
    there = attribution.along(seen, batch, EPS, alpha)
    ((d_there, s_there),) = distances.shift_and_scale(there, batch, EPS)
    np.testing.assert_allclose(d_there, alpha * d, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(s_there, 1 + alpha * (s - 1), rtol=1e-9)


@given(numbers, variances, st.floats(0.1, 3), st.integers(0, 100))
def test_a_single_layer_has_the_whole_difference(
    rm: float, rv: float, gamma: float, seed: int
) -> None:
    x = np.random.default_rng(seed).normal(1.0, 2.0, (8, 1))
    batch, seen = statistics(x.mean(), x.var()), statistics(rm, rv)

    def predict(used: Statistics) -> np.ndarray:
        return gamma * (x - used.mean[0]) / np.sqrt(used.var[0] + EPS[0])

    u = predict(seen) - predict(batch)
    total = float((u**2).sum())

    def slope_at(alpha: float) -> list[float | None]:
        there = attribution.along(seen, batch, EPS, alpha)
        parts = reactions(there, x, u, gamma)
        return attribution.slope(seen, batch, EPS, alpha, parts, total)

    if total > 1e-12:
        assert attribution.shares(slope_at) == pytest.approx([1.0], rel=1e-6)


@pytest.mark.parametrize("slopes", [[0.0, 0.0], [4e-4, -4e-4]])
def test_no_more_points_where_the_midpoint_is_flat(slopes: list[float | None]) -> None:
    seen = []

    def slope_at(alpha: float) -> list[float | None]:
        seen.append(alpha)
        return slopes

    assert attribution.shares(slope_at) == slopes
    assert len(seen) == 1


@pytest.mark.parametrize(("power", "points"), [(0, 1), (1, 1), (3, 3), (5, 3)])
def test_more_points_only_where_the_midpoint_is_not_enough(power: int, points: int) -> None:
    seen = []

    def slope_at(alpha: float) -> list[float | None]:
        seen.append(alpha)
        return [0.75 * (power + 1) * alpha**power, 0.25 * (power + 1) * alpha**power]

    assert attribution.shares(slope_at) == pytest.approx([0.75, 0.25])
    assert len(seen) == points


def test_an_unknown_layer_stays_unknown() -> None:
    seen = statistics(1.0, 2.0)
    assert attribution.slope(seen, statistics(0.0, 1.0), EPS, 0.5, [None], 1.0) == [None]
    assert attribution.shares(lambda alpha: [None, 3.0]) == [None, 3.0]
