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
    assert predictions.gap({"a": y + 1, "b": y[:1]}, good) == predictions.gap(bad, good)
    assert predictions.gap({"a": y[:1], "b": y[:1]}, good) is None
    assert predictions.gap({}, {}) is None


@given(outputs, st.sampled_from([0, 1, 2]))
def test_a_tensor_is_compared_with_the_first_output_of_its_shape(y: np.ndarray, k: int) -> None:
    several = {"[0]": y.T, "[1]": y, "[2]": y + 1}
    alone = several[f"[{k}]"]
    expected = 0.0 if k < 2 else predictions.relative_difference(y + 1, y)
    assert predictions.gap({"output": alone}, several) == pytest.approx(expected)
    (pair,) = predictions.aligned(several, {"output": alone})
    assert pair.path == ("[0]" if k == 0 else "[1]")
    assert predictions.gap({"output": y[:2]}, several) is None
    assert predictions.gap({"a": y, "b": y}, {"c": y, "d": y}) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_no_gap_of_zero(bad: float) -> None:
    y = np.array([[0.0], [1.0]])
    gap = predictions.gap({"a": np.array([[bad], [1.0]])}, {"a": y})
    assert gap is not None
    assert math.isnan(gap)
    assert not predictions.finite({"a": np.array([bad])}, {"a": np.array([1.0])})
    assert not predictions.finite({"a": np.array([bad])}, {})


masks = arrays(np.bool_, (6, 3)).filter(lambda mask: not mask.all())


@given(outputs, masks, st.sampled_from([math.nan, -math.inf, math.inf]))
def test_entries_that_neither_side_has_do_not_count(
    y: np.ndarray, mask: np.ndarray, hole: float
) -> None:
    other = y + 0.5 * np.roll(y, 1, axis=0) + 0.1
    holed, expected = (np.where(mask, hole, each) for each in (other, y))
    known = {"o": holed}, {"o": expected}
    gap = predictions.gap(*known)
    assert gap is not None
    kept = np.where(mask, math.nan, y)
    with np.errstate(all="ignore"):
        counts = np.maximum((~mask).sum(axis=0), 1)
        spread = np.sqrt(np.nansum((kept - np.nansum(kept, axis=0) / counts) ** 2))
    size = max(spread, 0.1 * np.sqrt(np.nansum(kept**2)))
    apart = np.linalg.norm((other - y)[~mask])
    assert gap == pytest.approx(apart / size if size else math.inf)
    assert predictions.finite(*known)
    assert predictions.gap({"o": expected}, {"o": expected}) == 0.0


@given(outputs, masks, st.integers(0, 17))
def test_one_entry_more_that_is_not_finite_counts(y: np.ndarray, mask: np.ndarray, k: int) -> None:
    mask = mask.copy()
    mask.flat[k] = False
    more = mask.copy()
    more.flat[k] = True
    full, holed = np.where(mask, -math.inf, y), np.where(more, -math.inf, y)
    for pair in ((full, holed), (holed, full)):
        assert math.isnan(predictions.relative_difference(*pair))
    assert not predictions.finite({"o": holed}, {"o": full})
    assert predictions.finite({"o": full}, {"o": holed})


def test_masked_decisions_are_not_made() -> None:
    y = np.array([[math.nan, 1.0, 2.0], [3.0, -math.inf, 1.0]])
    assert predictions.argmax_agreement({"o": y}, {"o": y}) == 1.0
    assert predictions.argmax_agreement({"o": y[:, [0, 2, 1]]}, {"o": y}) == 0.5


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
