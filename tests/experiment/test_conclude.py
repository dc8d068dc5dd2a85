"""What the plots of a report are made from: few numbers, and few passes more."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pytest_bncheck.experiment import engine
from pytest_bncheck.report import Report
from pytest_bncheck.types import Recipe, Settings
from toy import ToyAdapter, ToyModel, toy_batch


def run(rate: float = 0.01, batch: Any = None, adapter: Any = ToyAdapter, **options: Any) -> Report:
    np.random.seed(0)
    inputs, labels = batch or toy_batch()
    model = ToyModel(update_rate=rate, features=inputs.shape[1], classes=labels.max() + 1)
    return engine.run(model, [(inputs, labels)], Settings(**options), Recipe(), adapter)


def test_a_passing_check_has_its_limits_and_nothing_else() -> None:
    report = run(rate=0.1, steps=100, gap_tolerance=0.3, distortion_tolerance=0.2)
    assert report.verdict == "pass"
    assert report.to_dict()["curves"] == {
        "gap_limit": 0.3, "distortion_limit": 0.2, "samples": None, "updates": [], "momentum": [],
    }  # fmt: skip


def test_samples_are_the_outputs_of_both_modes() -> None:
    seen: list[Any] = []

    class Watched(ToyAdapter):
        def predict(self, batch: int, **options: Any) -> Any:
            seen.append(super().predict(batch, **options))
            return seen[-1]

    report = run(steps=5, adapter=Watched)
    samples = report.curves.samples
    assert np.shape(samples.train) == np.shape(samples.eval) == (24, 3)
    np.testing.assert_allclose(samples.eval, seen[0].outputs["output"], rtol=1e-3)
    same = np.argmax(samples.train, 1) == np.argmax(samples.eval, 1)
    assert list(same) == samples.same_decision
    assert np.mean(same) == pytest.approx(report.predictions.argmax_agreement)


def test_of_many_samples_and_outputs_only_some_are_kept() -> None:
    batch = toy_batch(size=500, features=40, classes=40)
    samples = run(steps=3, batch=batch).curves.samples
    assert np.shape(samples.train) == np.shape(samples.eval) == (32, 8)
    assert len(samples.same_decision) == 32


def test_gaps_that_were_predicted_on_the_way_are_kept() -> None:
    report = run(steps=5)
    updates = {point.updates: point.gap for point in report.curves.updates}
    more = report.remedies.further_updates
    assert list(updates) == sorted(updates)
    assert len(updates) >= 3
    fewer = max(n for n in updates if n < more)
    assert updates[more] <= report.curves.gap_limit
    assert updates[more] < updates[fewer] < report.predictions.gap
    momentum = {point.momentum: point.gap for point in report.curves.momentum}
    assert momentum[report.remedies.momentum] < report.predictions.gap


def test_the_predicted_gap_is_the_one_that_comes_true() -> None:
    report = run(steps=5)
    assert report.curves.momentum
    for point in report.curves.momentum:
        assert run(rate=point.update_rate, steps=5).predictions.gap == pytest.approx(point.gap)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_outputs_that_are_not_finite_make_samples_too(bad: float) -> None:
    inputs, labels = toy_batch()

    class Poisoned(ToyAdapter):
        def predict(self, batch: int, **options: Any) -> Any:
            prediction = super().predict(batch, **options)
            prediction.outputs["output"][0, 0] = bad
            return prediction

    report = run(steps=5, batch=(inputs, labels), adapter=Poisoned)
    assert report.to_dict()["curves"]["samples"]["eval"][0][0] == str(bad)
