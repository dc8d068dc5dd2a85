"""The four conditions of a broken verdict, and that NaN never passes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_bncheck.maths.verdict import Scores, decisions_suffer, judge
from pytest_bncheck.types import Prediction

BROKEN = {"gap": 1.0, "excess": 1.0, "distortion": 0.5, "retained": 0.1, "accuracy": 0.3}


def verdict(reference: float | None = 1.0, **changes: float | None) -> str | None:
    return judge(Scores(**{**BROKEN, **changes}), best(reference), 0.25, 0.10)  # type: ignore[arg-type]


def best(accuracy: float | None, loss: float | None = None) -> Prediction:
    return Prediction({}, "", loss=loss, accuracy=accuracy)


def test_all_four_conditions_make_it_broken() -> None:
    assert verdict() == "broken"


@pytest.mark.parametrize(
    "spared",
    [
        {"gap": 0.2, "excess": 0.2},
        {"excess": 0.2},  # converged statistics could not do better
        {"distortion": 0.08},
        {"retained": 0.96, "accuracy": 1.0},  # everything is still decided right
    ],
)
def test_each_condition_alone_spares_it(spared: dict[str, float]) -> None:
    assert verdict(**spared) == "degraded"


@pytest.mark.parametrize("name", ["gap", "excess", "distortion"])
def test_nan_never_passes(name: str) -> None:
    assert verdict(**{name: math.nan}) == "broken"
    calm = {"gap": 0.0, "excess": 0.0, "distortion": 0.0, "retained": 1.0, "accuracy": 1.0}
    if name != "excess":  # looked at only beyond a gap
        assert verdict(**{**calm, name: math.nan}) != "healthy"


def test_without_a_gap_distortion_and_decisions_decide() -> None:
    assert verdict(gap=None) == "broken"
    assert verdict(gap=None, distortion=math.nan) == "broken"
    assert verdict(gap=None, distortion=0.08) == "healthy"
    assert verdict(gap=None, retained=0.96, accuracy=1.0) == "healthy"
    assert verdict(gap=None, retained=None, accuracy=None) == "degraded"
    assert verdict(gap=None, retained=None, accuracy=None, distortion=0.08) == "healthy"


def test_healthy() -> None:
    calm = {"gap": 0.05, "excess": None, "distortion": 0.01, "retained": 1.0, "accuracy": 1.0}
    assert verdict(**calm) == "healthy"
    assert verdict(**{**calm, "retained": 0.85}) == "degraded"


@pytest.mark.parametrize(
    ("scores", "reference", "expected"),
    [
        (Scores(1, 1, accuracy=0.9, retained=0.9), 1.0, True),
        (Scores(1, 1, accuracy=0.95, retained=0.9), 1.0, True),
        (Scores(1, 1, accuracy=0.96, retained=0.6), 1.0, False),
        (Scores(1, 1, accuracy=1.0, retained=0.4), 1.0, True),
        (Scores(1, 1, accuracy=1.0), 1.0, False),
        (Scores(1, 1, retained=0.85), None, True),
        (Scores(1, 1, retained=0.95), None, False),
        (Scores(1, 1), None, None),
        (Scores(1, 1, accuracy=1.0, retained=1.0, finite=False), 1.0, True),
    ],
)
def test_decisions(scores: Scores, reference: float | None, expected: bool | None) -> None:
    assert decisions_suffer(scores, best(reference)) is expected


@given(st.floats(0, 1), st.floats(0, 1), st.floats(-2, 1))
def test_a_loss_that_is_no_larger_never_suffers(loss: float, more: float, retained: float) -> None:
    scores = Scores(1, 1, loss=loss, accuracy=0.2, retained=retained)
    assert decisions_suffer(scores, best(1.0, loss + more)) is False
    assert decisions_suffer(Scores(1, 1, loss=loss, finite=False), best(1.0, loss)) is True


@given(st.floats(0, 3), st.floats(0, 3), st.floats(0, 3))
def test_a_larger_gap_never_makes_it_better(gap: float, more: float, distortion: float) -> None:
    order = ["healthy", "degraded", "broken"]
    first = verdict(gap=gap, excess=gap, distortion=distortion)
    second = verdict(gap=gap + more, excess=gap + more, distortion=distortion)
    assert order.index(str(first)) <= order.index(str(second))
