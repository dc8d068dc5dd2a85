"""Differences of predictions, and what is retained."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pytest_bncheck.maths import predictions

outputs = arrays(np.float64, (6, 3), elements=st.floats(-5, 5)).filter(
    lambda y: np.linalg.norm(y - y.mean(axis=0)) > 1e-3
)


@given(outputs, st.floats(0.1, 100))
def test_gap_is_free_of_scale(y: np.ndarray, scale: float) -> None:
    other = np.roll(y, 1, axis=0)
    gap = predictions.relative_difference(other, y)
    assert predictions.relative_difference(other * scale, y * scale) == pytest.approx(gap)


@given(outputs)
def test_gap_squared_is_one_minus_r_squared(y: np.ndarray) -> None:
    y = y - y.mean(axis=0)
    noisy = y + 0.1 * np.roll(y, 1, axis=0)
    residual = ((noisy - y) ** 2).sum() / (y**2).sum()
    assert predictions.relative_difference(noisy, y) ** 2 == pytest.approx(residual)


def test_gap_sees_a_constant_shift_and_equal_arrays_have_none() -> None:
    y = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert predictions.relative_difference(y, y) == 0.0
    assert predictions.relative_difference(y + 1, y) == pytest.approx(2.0)


def test_near_constant_outputs_have_a_floor() -> None:
    y = np.full((4, 2), 100.0)
    assert predictions.relative_difference(y + 1, y) == pytest.approx(0.1)
    zero = np.zeros((4, 2))
    assert predictions.relative_difference(zero, zero) == 0.0
    assert predictions.relative_difference(zero + 1, zero) == math.inf


def test_the_worst_output_decides_and_structure_must_agree() -> None:
    y = np.array([[0.0], [1.0]])
    good, bad = {"a": y, "b": y}, {"a": y, "b": y + 1}
    assert predictions.gap(bad, good) == predictions.relative_difference(y + 1, y)
    assert predictions.gap({"a": y}, good) is None
    assert predictions.gap({"a": y, "b": y[:1]}, good) is None
    assert predictions.gap({}, {}) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_no_gap_of_zero(bad: float) -> None:
    y = np.array([[0.0], [1.0]])
    gap = predictions.gap({"a": np.array([[bad], [1.0]])}, {"a": y})
    assert gap is not None
    assert math.isnan(gap)
    assert not predictions.finite({"a": np.array([bad])})


def test_argmax_agreement() -> None:
    y = np.eye(4)
    assert predictions.argmax_agreement({"o": y}, {"o": y}) == 1.0
    assert predictions.argmax_agreement({"o": np.roll(y, 1, axis=1)}, {"o": y}) == 0.0
    assert predictions.argmax_agreement({"o": y[:, :1]}, {"o": y[:, :1]}) is None


@pytest.mark.parametrize(
    ("first", "constant", "train", "other", "expected"),
    [
        (1.1, 1.1, 0.1, 0.1, 1.0),
        (1.1, 1.1, 0.1, 1.1, 0.0),
        (1.1, 1.1, 0.1, 10.1, -9.0),
        (5.0, 1.1, 0.1, 0.6, 0.5),  # a bad start does not flatter: the constant is the base
        (5.0, 0.2, 0.1, 0.1 + 0.49, 0.9),  # a constant as good as training is no base
        (1.0, 1.0, 0.95, 0.95, None),  # training achieved nothing
        (1.0, 1.0, math.nan, 0.5, None),
        (None, 1.0, 0.1, 0.5, None),
        (1.1, None, 0.1, 0.6, 0.5),
        (1.1, 1.1, 0.1, math.nan, None),
    ],
)
def test_retained(
    first: float | None,
    constant: float | None,
    train: float | None,
    other: float | None,
    expected: float | None,
) -> None:
    value = predictions.retained(first, constant, train, other)
    assert value == (None if expected is None else pytest.approx(expected))
