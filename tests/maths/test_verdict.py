"""What makes a verdict broken or degraded, and that NaN never passes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_bncheck.maths.verdict import Scores, decides_worse, decisions_suffer, judge
from pytest_bncheck.types import Prediction

BROKEN = {"gap": 1.0, "excess": 1.0, "distortion": 0.5, "retained": 0.1, "accuracy": 0.3}
CALM = {"gap": 0.05, "excess": None, "distortion": 0.01, "retained": 1.0, "accuracy": 1.0}


def verdict(converged: float | None = 1.0, **changes: float | None) -> str | None:
    return judge(Scores(**{**BROKEN, **changes}), best(converged), 0.25, 0.10)  # type: ignore[arg-type]


def best(accuracy: float | None, loss: float | None = None) -> Scores:
    return Scores(gap=None, distortion=None, loss=loss, accuracy=accuracy)


def test_all_conditions_make_it_broken() -> None:
    assert verdict() == "broken"


@pytest.mark.parametrize(
    ("spared", "expected"),
    [
        ({"gap": 0.2, "excess": 0.2}, "degraded"),
        ({"excess": 0.2}, "degraded"),  # converged statistics are hardly another prediction
        ({"distortion": 0.08, "accuracy": 0.93}, "degraded"),
        ({"retained": 0.96, "accuracy": 0.99}, "healthy"),  # hardly a decision is another
    ],
)
def test_each_condition_alone_spares_it(spared: dict[str, float], expected: str) -> None:
    assert verdict(**spared) == expected


def test_depth_amplifies_small_distortions() -> None:
    assert verdict(distortion=0.08, accuracy=0.9) == "broken"
    assert verdict(distortion=0.08, accuracy=0.91) == "degraded"
    assert verdict(distortion=0.08, gap=0.2) == "degraded"  # it has to show in the prediction


def test_without_layers_settling_shows_whose_fault_it_is() -> None:
    state = {"distortion": None, "accuracy": None, "retained": 0.5}
    assert verdict(None, **state, floor=0.5) == "broken"
    assert verdict(None, **state, floor=0.6) == "healthy"


@pytest.mark.parametrize("name", ["gap", "excess", "distortion"])
def test_nan_never_passes(name: str) -> None:
    assert verdict(**{name: math.nan}) == "broken"
    one = Scores(**{**CALM, "finite": False})  # type: ignore[arg-type]
    assert judge(one, best(1.0), 0.25, 0.10) == "degraded"


def test_without_a_gap_distortion_and_decisions_decide() -> None:
    assert verdict(gap=None) == "broken"
    assert verdict(gap=None, distortion=math.nan) == "broken"
    assert verdict(gap=None, distortion=0.08, accuracy=0.99) == "healthy"
    assert verdict(gap=None, retained=0.96, accuracy=1.0) == "healthy"


def test_where_nobody_knows_what_it_costs_it_is_degraded() -> None:
    unknown = {"retained": None, "accuracy": None}
    assert verdict(**unknown) == verdict(gap=None, **unknown) == "degraded"
    assert verdict(gap=None, distortion=0.08, **unknown) == "healthy"


@pytest.mark.parametrize(
    ("changes", "train_loss", "samples", "expected"),
    [
        ({}, 0.1, 64, "healthy"),
        ({"accuracy": 0.96}, 0.1, 64, "degraded"),
        ({"accuracy": 0.985}, 0.1, 64, "healthy"),
        ({"accuracy": 0.96}, 0.1, 25, "healthy"),  # one sample
        ({"accuracy": 0.96}, 0.2, 64, "healthy"),  # the loss is no higher than in training
        ({"retained": 0.89}, 0.1, 64, "degraded"),
        ({"retained": 0.91}, 0.1, 64, "healthy"),
    ],
)
def test_degraded(
    changes: dict[str, float], train_loss: float, samples: int, expected: str
) -> None:
    scores = Scores(**{**CALM, "loss": 0.2, **changes})  # type: ignore[arg-type]
    converged = Scores(gap=None, distortion=None, retained=1.0, accuracy=1.0)
    train = Prediction({}, "", loss=train_loss)
    assert judge(scores, converged, 0.25, 0.10, train=train, samples=samples) == expected


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


@given(st.integers(1, 200), st.integers(0, 200))
def test_one_sample_is_chance(samples: int, wrong: int) -> None:
    wrong = min(wrong, samples)
    less = decides_worse(best((samples - wrong) / samples), best(1.0), 0.05, samples)
    assert less is (wrong >= 2 and 20 * wrong >= samples)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(-2, 1))
def test_a_loss_that_is_no_larger_never_suffers(loss: float, more: float, retained: float) -> None:
    scores = Scores(1, 1, loss=loss, accuracy=0.2, retained=retained)
    assert decisions_suffer(scores, best(1.0, loss + more)) is False
    assert decisions_suffer(Scores(1, 1, loss=loss, finite=False), best(1.0, loss)) is True


@given(st.floats(0, 3), st.floats(0, 3), st.floats(0, 3), st.floats(0, 1))
def test_a_larger_gap_never_makes_it_better(
    gap: float, more: float, distortion: float, accuracy: float
) -> None:
    order = ["healthy", "degraded", "broken"]
    scores = {"distortion": distortion, "accuracy": accuracy}
    first = verdict(gap=gap, excess=gap, **scores)
    second = verdict(gap=gap + more, excess=gap + more, **scores)
    assert order.index(str(first)) <= order.index(str(second))
