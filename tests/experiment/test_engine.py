"""The experiment on the toy framework: steps, projection, verdict, what it leaves behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pytest_bncheck.experiment import diagnose, engine
from pytest_bncheck.maths.running import remaining_weight
from pytest_bncheck.report import Report
from pytest_bncheck.types import InputError, Recipe, Settings
from toy import ToyAdapter, ToyModel, toy_batch


def model(rate: float = 0.1) -> ToyModel:
    np.random.seed(0)
    return ToyModel(update_rate=rate)


def run(
    rate: float = 0.1, batches: Any = None, recipe: Recipe | None = None, **options: Any
) -> Report:
    return engine.run(
        model(rate), batches or [toy_batch()], Settings(**options), recipe or Recipe(), ToyAdapter
    )


def test_auto_stops_when_the_statistics_have_settled() -> None:
    report = run()
    assert report.verdict == "pass"
    assert 20 <= report.steps < 150
    assert (report.steps - 20) % 10 == 0
    assert report.predictions.distortion <= 0.05


def test_auto_ends_at_150_steps() -> None:
    assert run(rate=0.001).steps == 150


@pytest.mark.parametrize("steps", [1, 5, 33])
def test_given_steps_are_made(steps: int) -> None:
    report = run(steps=steps)
    assert report.steps == steps == len(report.training.loss)
    (layer,) = report.layers
    assert layer.updates == steps
    assert layer.initial_weight == pytest.approx(remaining_weight(0.1, steps))


def test_the_initial_value_is_named_with_its_numbers() -> None:
    report = run(rate=0.01, steps=5)
    (finding,) = report.findings
    assert (finding.code, finding.severity, report.verdict) == ("BN101", "error", "fail")
    assert finding.evidence["initial_weight"] == pytest.approx(0.99**5)
    assert finding.evidence["updates_to_settle"] == 459
    assert "After 5 updates at momentum 0.01, 95.1 %" in finding.cause
    more = report.remedies.further_updates
    assert f"at least {more} more updates, {5 + more} in all" in finding.remedy
    then = run(rate=0.01, steps=5, planned_updates=5 + more)
    assert then.predictions.projected.gap <= 0.2
    assert finding.layers == ["norm"]
    assert report.bn_verdict == "broken"
    assert report.predictions.train.accuracy == 1.0
    assert report.predictions.eval.accuracy < 0.9
    assert report.remedies.recalibrates


def test_projection_to_planned_updates() -> None:
    """The running statistics at P updates are b + (1-α)^(P-t)·(r-b), and the verdict is theirs."""
    assert run(rate=0.01, steps=5).verdict == "fail"
    report = run(rate=0.01, steps=5, planned_updates=2000)
    assert report.verdict == "pass"
    assert report.bn_verdict == "healthy"
    assert report.predictions.gap > 0.25
    assert report.predictions.projected.gap < 0.01
    assert report.predictions.projected.accuracy == 1.0
    near = run(rate=0.01, steps=5, planned_updates=6)
    assert near.verdict == "fail"
    assert "Projected to 6 updates" in near.findings[0].cause


def test_planned_updates_agree_with_making_them() -> None:
    """A learning rate of 0 keeps the weights, so that only the statistics move."""
    still = Recipe(optimizer=lambda model: 0.0)
    projected = run(rate=0.05, steps=10, planned_updates=40, recipe=still)
    made = run(rate=0.05, steps=40, recipe=still)
    assert projected.predictions.projected.gap == pytest.approx(made.predictions.gap, rel=1e-9)


@pytest.mark.parametrize("steps", [10, "auto"])
def test_fewer_planned_updates_than_steps(steps: Any) -> None:
    if steps == "auto":
        assert run(steps="auto", planned_updates=12).steps == 12
        return
    with pytest.raises(InputError, match="planned_updates: 5 is less than the 10 steps"):
        run(steps=10, planned_updates=5)


def test_no_steps_judge_the_model_as_it_is() -> None:
    report = run(steps=0)
    assert report.steps == 0
    assert report.predictions.retained is None
    assert report.layers[0].initial_weight is None
    assert {f.code for f in report.findings} <= {"BN102", "BN103"}


def test_no_batch() -> None:
    with pytest.raises(InputError, match="batches: there is none"):
        engine.run(model(), [], Settings(), Recipe(), ToyAdapter)


def test_strict_lets_warnings_fail() -> None:
    recipe = Recipe(optimizer=lambda model: 1e-12)  # BN202, a warning
    assert run(steps=20, recipe=recipe).verdict == "warn"
    assert run(steps=20, recipe=recipe, strict=True).verdict == "fail"


def test_ignored_findings_are_kept_with_their_reason() -> None:
    report = run(rate=0.01, steps=5, ignore={"BN101": "trained for longer elsewhere"})
    assert report.verdict == "pass"
    (hidden,) = report.suppressed
    assert (hidden.code, hidden.reason) == ("BN101", "ignored: trained for longer elsewhere")
    assert "trained for longer elsewhere" in " ".join(str(report).split())


def test_only_selected_rules_run() -> None:
    assert not run(rate=0.01, steps=5, select=("BN2", "BN3")).findings
    assert run(rate=0.01, steps=5, select=("running-stats-underconverged",)).verdict == "fail"


def test_tolerances_move_the_limits_and_are_quoted_with_their_source() -> None:
    options: dict[str, Any] = {"rate": 0.01, "steps": 40}
    assert run(**options).verdict == "fail"
    wide = run(**options, gap_tolerance=50.0, origins={"gap_tolerance": "marker"})
    assert wide.verdict == "warn"
    assert "up to 50 allowed, from marker" in " ".join(str(wide).split())


def test_several_batches_are_judged_as_a_stream() -> None:
    batches = [toy_batch(seed=seed) for seed in range(2)]
    healthy = run(batches=batches, steps=100)
    assert healthy.ok
    slow = run(rate=0.01, batches=batches, steps=20)
    assert [finding.code for finding in slow.findings] == ["BN101"]
    assert "doubled for several mini-batches" in " ".join(str(slow).split())


def test_everything_goes_back_and_can_be_kept() -> None:
    toy = model()
    before = {key: np.copy(value) for key, value in vars(toy).items()}
    state = np.random.get_state()[1].copy()
    engine.run(toy, [toy_batch()], Settings(steps=5), Recipe(), ToyAdapter)
    assert all(np.array_equal(before[key], value) for key, value in vars(toy).items())
    assert np.array_equal(np.random.get_state()[1], state)
    engine.run(toy, [toy_batch()], Settings(steps=5, restore=False), Recipe(), ToyAdapter)
    assert not np.array_equal(before["weight"], toy.weight)
    assert toy.updates == 5


@pytest.mark.parametrize("fault", [ValueError("mine"), KeyboardInterrupt()])
def test_a_fault_of_the_user_s_comes_through_and_leaves_the_model(fault: BaseException) -> None:
    toy, calls = model(), []
    weight = toy.weight.copy()

    def forward(model: Any, batch: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise fault
        return model(batch[0])

    with pytest.raises(type(fault)) as caught:
        engine.run(toy, [toy_batch()], Settings(steps=9), Recipe(forward=forward), ToyAdapter)
    assert caught.value is fault
    assert np.array_equal(weight, toy.weight)
    if isinstance(fault, ValueError):
        assert "training step 3 of 9" in fault.__notes__[0]


def test_seconds_add_up() -> None:
    seconds = run(steps=20).seconds
    parts = seconds.train + seconds.measure + seconds.diagnose
    assert 0 < parts <= seconds.total


@pytest.mark.parametrize(("rate", "passes"), [(0.01, 1), (0.5, 0)])
def test_a_forgotten_initial_value_takes_no_pass(
    rate: float, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    class Counting(ToyAdapter):
        def predict(self, batch: int, *, observe: bool = True) -> Any:
            made.append(batch)
            return super().predict(batch, observe=observe)

    def drift(toy: ToyModel, batch: Any) -> float:
        """Training goes well, and the running statistics are no longer those of the batch."""
        made.clear()
        features = toy.normalise(batch[0])
        toy.weight = toy.weight + 0.1 * features.T @ np.eye(3)[batch[1]]
        toy.mean = toy.mean + 60.0
        return float(np.exp(-toy.updates))

    def count() -> int:
        settings = Settings(steps=40)
        engine.run(model(rate), [toy_batch()], settings, Recipe(train_step=drift), Counting)
        return len(made)

    fewest = count()
    monkeypatch.setattr(diagnose, "FORGOTTEN", -1.0)
    assert count() == fewest + 1 - passes
