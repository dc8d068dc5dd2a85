"""Predictions compared with that of training mode, on all mini-batches and on the typical one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pytest_bncheck.evidence import Comparison
from pytest_bncheck.experiment.panel import joined
from pytest_bncheck.types import Prediction

TRAIN = np.array([[1.0], [-1.0], [2.0], [-2.0]])


def prediction(offset: float) -> Prediction:
    return Prediction({"output": TRAIN + offset}, "array", loss=offset)


def several(*offsets: float) -> Prediction:
    return joined([prediction(offset) for offset in offsets])


def comparison() -> Comparison:
    return Comparison(several(0.0, 0.0, 0.0), several(0.1, 1.0, 3.0))


def test_the_typical_mini_batch_has_the_gap_of_all_of_them() -> None:
    compared = comparison()
    typical = compared.typical
    assert compared.typical_index == 1
    assert typical.eval is not None
    assert typical.eval.loss == 1.0
    assert typical.scale != 1.0
    assert typical.judged_gap == pytest.approx(compared.judged_gap)


def test_gaps_on_the_typical_mini_batch_are_scaled_alike() -> None:
    typical = comparison().typical
    assert typical.judged_gap is not None
    twice = typical.gap(prediction(2.0), typical.train)
    assert twice == pytest.approx(2.0 * typical.judged_gap)


def test_a_single_batch_is_typical_of_itself() -> None:
    compared = Comparison(prediction(0.0), prediction(1.0), recalibrated=prediction(0.5))
    assert compared.typical == compared
    assert compared.floor == pytest.approx(compared.judged_gap / 2)


@pytest.mark.parametrize("offset", [np.nan, np.inf])
def test_a_gap_that_is_no_number_scales_nothing(offset: float) -> None:
    compared = Comparison(several(0.0, 0.0), several(offset, offset))
    assert compared.typical.scale == 1.0


def test_planned_updates_are_judged_in_place_of_eval_mode() -> None:
    compared = Comparison(prediction(0.0), prediction(3.0), projected=prediction(0.5))
    assert compared.judged is compared.projected
    assert compared.judged_gap == pytest.approx(compared.gap(prediction(0.5), prediction(0.0)))


def test_a_record_cannot_be_written_into() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        comparison().scale = 2.0  # type: ignore[misc]
