"""Axes of the HTML report: round ticks that their labels tell apart, names that do not touch."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_bncheck.reports import plots
from pytest_bncheck.reports.plots import LINE, Plot, Scale

VALUES = st.floats(-1e30, 1e30, allow_subnormal=False)
SOME = st.lists(VALUES, min_size=1, max_size=5)


def plot(low: float, high: float) -> Plot:
    return Plot(Scale(0, 1, 46, 264), Scale(low, high, 162, 10), "step")


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (-3.2, 2.1, [-2, 0, 2]),
        (1, 151, [50, 100, 150]),
        (0.98, 1.0, [0.98, 0.985, 0.99, 0.995, 1.0]),
    ],
)
def test_ticks_are_round(low, high, ticks):
    assert Scale(low, high, 0, 100).ticks() == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.003, 40, [0.01, 0.1, 1, 10]),
        (1e-8, 10, [1e-8, 1e-5, 1e-2, 10]),
        (1.1, 33, [2, 5, 10, 20]),
    ],
)
def test_ticks_of_ratios_are_decades(low, high, ticks):
    assert Scale(low, high, 0, 100, is_log=True).ticks() == pytest.approx(ticks)


@given(SOME, st.booleans())
def test_an_axis_holds_its_values(values, is_log):
    values = [abs(value) + 1e-30 for value in values] if is_log else values
    scale = Scale.around(values, 0, 100, margin=0.1, is_log=is_log)
    assert all(-1e-6 <= scale(value) <= 100 + 1e-6 for value in values)
    ticks = scale.ticks()
    assert len(ticks) <= 6
    assert all(-1e-3 <= scale(tick) <= 100.001 for tick in ticks)


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_labels_tell_ticks_apart(low, share):
    more = share * low
    ticks = Scale(low, low + more, 0, 100).ticks()
    labels = plots._labels(ticks)
    assert len(set(labels)) == len(labels)
    assert [float(label) for label in labels] == pytest.approx(ticks, rel=0, abs=more / 50)


@given(st.lists(st.floats(0, 1), max_size=5))
def test_names_of_lines_do_not_touch(values):
    drawn = plot(0, 1)
    before = len(drawn.texts)
    drawn.names((value, f"line {value}", "") for value in values)
    places = sorted(float(y) for _, _, y, _ in drawn.texts[before:])
    assert all(b - a >= LINE - 0.11 for a, b in pairwise(places))
    assert all(place >= 10 for place in places)


def test_one_loss_is_a_dot():
    drawn = plots.training([0.5], {})
    assert [style for style, *_ in drawn.dots] == ["train"]
    assert ("middle", "1") in {(style, words) for style, _, _, words in drawn.texts}


def test_layers_over_the_limit_are_red():
    drawn = plots.depth([0.05, 0.2, math.nan, None, "Infinity"], 0.1)
    assert [style for style, *_ in drawn.dots] == ["train", "bad", "bad", "bad"]


def test_the_proposal_stands_out():
    drawn = plots.updates([(0, 1.0), (10, 0.2), (20, 0.1)], 0.25, 0.01, 10)
    assert [words for style, _, _, words in drawn.texts if style == "middle good"] == ["10"]
    assert [words for _, _, _, words in drawn.texts][4:6] == ["recalibrated", "limit 0.25"]


def test_the_smallest_numbers_have_an_axis():
    drawn = plots.training([1e-300, 0.2], {"training": 1e-308})
    assert len(drawn.lines) > 2
