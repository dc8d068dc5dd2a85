"""How far running statistics are off, against the definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pytest_bncheck.maths import distances, running
from pytest_bncheck.types import Statistics

channels = 5
values = arrays(np.float64, channels, elements=st.floats(-10, 10))
positive = arrays(np.float64, channels, elements=st.floats(0.01, 10))
statistics = st.builds(lambda m, v: Statistics((m,), (v,)), values, positive)


@given(statistics, statistics, st.floats(1e-6, 0.1), st.integers(0, 2**31))
def test_distortion_is_the_root_mean_square_error_of_normalised_values(
    current: Statistics, batch: Statistics, eps: float, seed: int
) -> None:
    """Monte Carlo without noise: samples with exactly the batch's mean and variance."""
    raw = np.random.default_rng(seed).normal(size=(64, channels))
    raw = (raw - raw.mean(axis=0)) / raw.std(axis=0)
    x = batch.mean[0] + np.sqrt(batch.var[0]) * raw
    trained = (x - batch.mean[0]) / np.sqrt(batch.var[0] + eps)
    predicted = (x - current.mean[0]) / np.sqrt(current.var[0] + eps)
    expected = math.sqrt(((predicted - trained) ** 2).mean())
    assert distances.distortion(current, batch, [eps])[0] == pytest.approx(expected, rel=1e-6)
    ((d, s),) = distances.shift_and_scale(current, batch, [eps])
    np.testing.assert_allclose(predicted, s * trained + d, rtol=1e-6, atol=1e-6)


@given(statistics, st.floats(1e-6, 0.1))
def test_converged_statistics_do_not_distort(batch: Statistics, eps: float) -> None:
    assert distances.distortion(batch, batch, [eps])[0] == 0.0


def test_an_impossible_variance_is_not_a_number() -> None:
    good = Statistics((np.zeros(2),), (np.ones(2),))
    for bad in (-1.0, math.nan):
        wrong = Statistics((np.zeros(2),), (np.array([1.0, bad]),))
        assert math.isnan(distances.distortion(wrong, good, [1e-5])[0])


@pytest.mark.parametrize("rate", [0.05, 0.3, None])
def test_noise_is_the_scatter_of_the_average_whatever_the_drift(rate: float | None) -> None:
    rng = np.random.default_rng(0)
    steps, channels = 200, 2000  # channels are as good as repetitions
    drift = np.linspace(0.0, 30.0, steps)[:, None]
    values = 2.0 * rng.standard_normal((steps, channels))
    batches = [Statistics((v,), (np.full(channels, 4.0),)) for v in values + drift]
    target = Statistics((np.zeros(channels),), (np.full(channels, 4.0),))
    average = np.zeros(channels)
    for step, value in enumerate(values):
        kept = running.remaining_share(rate, step, 1)
        average = kept * average + (1.0 - kept) * value
    (found,) = distances.noise(batches, target, [0.0], [rate])
    assert found == pytest.approx(np.std(average) / 2.0, rel=0.1)


def test_two_batches_tell_no_noise() -> None:
    same = Statistics((np.zeros(1),), (np.ones(1),))
    assert distances.noise([same, same], same, [0.0], [0.1]).tolist() == [0.0]


@pytest.mark.parametrize(("values", "samples"), [(8, 8), (32, 8), (512, 8), (512, None)])
def test_what_chance_explains_is_taken_out(values: int, samples: int | None) -> None:
    counted = values if samples is None else min(values, 4 * samples)
    chance = math.sqrt(2.5 * 1.5 / counted)
    found = distances.beyond_chance(np.array([0.9 * chance, 5.0, np.nan]), [values] * 3, samples)
    assert found[0] == 0.0
    assert found[1] ** 2 + chance**2 == pytest.approx(25.0)
    assert np.isnan(found[2])


def test_spread_of_shifted_batches() -> None:
    """Means at ±δ and the same variance lie δ/σ around their mean."""
    apart = Statistics((np.array([3.0]), np.array([-3.0])), (np.array([4.0]),) * 2)
    assert distances.spread(apart, 0.0) == pytest.approx(1.5)


@pytest.mark.parametrize(("samples", "batches"), [(8, 2), (16, 4), (64, 8)])
def test_spread_of_one_distribution_is_that_of_chance(samples: int, batches: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(5.0, 2.0, (batches, samples, 4000))
    each = Statistics(tuple(values.mean(1)), tuple(values.var(1)))
    expected = distances.chance_spread(samples, batches)
    assert distances.spread(each, 0.0) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_layers_do_not_mix(layers: int) -> None:
    """Of different widths, with values without a variance among them, which distort nothing."""
    rng = np.random.default_rng(layers)

    def drawn() -> Statistics:
        widths = [5, 2, 3][:layers]
        mean = [rng.normal(size=width) for width in (*widths, 4)]
        return Statistics(tuple(mean), (*(rng.uniform(0.5, 2.0, w) for w in widths), np.empty(0)))

    current, batch = drawn(), drawn()
    eps = [0.1 * k for k in range(layers + 1)]
    together = distances.distortion(current, batch, eps)
    pairs = distances.shift_and_scale(current, batch, eps)
    for k in range(layers):
        row, target = (Statistics((s.mean[k],), (s.var[k],)) for s in (current, batch))
        assert distances.distortion(row, target, [eps[k]])[0] == together[k]
        np.testing.assert_array_equal(distances.shift_and_scale(row, target, [eps[k]])[0], pairs[k])
    assert together[-1] == 0.0
    assert [d.size for d, _ in pairs] == [*[5, 2, 3][:layers], 0]
    nothing = Statistics((), ())
    assert not len(distances.distortion(nothing, nothing, []))
    assert distances.shift_and_scale(nothing, nothing, []) == []
