"""A check's lines in the summary: at most 80 columns, more of them the more is asked for."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pytest_bncheck.report import LayerReport, Predictions, Projected, Report, Scored
from pytest_bncheck.reports import summary
from pytest_bncheck.types import Finding, Suppressed


def layer(name: str, distortion: float | None) -> LayerReport:
    return LayerReport(name, "BatchNorm2d", 0.9, 0.1, 5, 0.59, 147, 0.5, 0.3, distortion)


FINDING = Finding(
    "BN101", "running-stats-underconverged", "error", "Wrong. Very.", "Cause.", ["bn"], "- Do.", {}
)
REPORT = Report(
    nodeid="test_model.py::test_resnet",
    framework="torch",
    backend="torch",
    device="cpu",
    verdict="fail",
    steps=5,
    batch_size=3,
    findings=[FINDING],
    predictions=Predictions(
        1.05, distortion=3.5, train=Scored(1e-7, 1.0), eval=Scored(10.7, 1 / 3)
    ),
    layers=[layer(f"block{k}.bn", d) for k, d in enumerate([0.1, None, float("nan"), 3.5, 2, 1])],
)


def entry(report: Report = REPORT, **options: Any) -> list[str]:
    made = summary.entry(report.to_dict(), **options)
    return made.lines if made else []


def test_one_line_if_it_fits_and_two_if_not() -> None:
    said = "BN101 running-stats-underconverged; train 100 %, eval 33 %"
    assert entry(width=100) == [f"FAIL  test_model.py::test_resnet: {said}"]
    assert entry(width=80) == ["FAIL  test_model.py::test_resnet", f"      {said}"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"index": 1}, "FAIL  test_model.py::test_resnet #2: BN101"),
        ({"verdict": "pass", "findings": [], "layers": []}, "no layer with running statistics"),
        ({"verdict": "error", "findings": [], "error": "ValueError: bad\nmore"},
         "ERROR test_model.py::test_resnet: ValueError: bad"),
        ({"predictions": Predictions(0.5)}, "gap 0.5"),
        ({"predictions": Predictions(float("nan"))}, "gap nan"),
        ({"predictions": Predictions()}, "gap unknown"),
        ({"predictions": Predictions(1, train=Scored(0.1), eval=Scored(float("inf")))},
         "train loss 0.1, eval loss inf"),
        ({"predictions": Predictions(1, train=Scored(0.1, 1.0), eval=Scored(2.0, 0.5),
                                      projected=Projected(0.2, 0.9)), "planned_updates": 250},
         "train 100 %, eval 90 % projected to 250 updates (measured after 5 steps: 50 %)"),
        ({"suppressed": [Suppressed("BN106", "too-few", "ignored", "Few.")]}, "(BN106 suppressed)"),
    ],
)  # fmt: skip
def test_what_was_found(changes: dict[str, Any], expected: str) -> None:
    (line,) = entry(dataclasses.replace(REPORT, **changes), width=200)
    assert expected in line


def test_quiet_shows_one_line_for_what_did_not_pass() -> None:
    assert entry(verbosity=-1) == ["FAIL  test_model.py::test_resnet: BN101"]
    assert entry(verbosity=-1, expected=True) == [
        "FAIL  test_model.py::test_resnet: BN101 (expected)"
    ]
    assert entry(dataclasses.replace(REPORT, verdict="pass", findings=[]), verbosity=-1) == []
    error = dataclasses.replace(REPORT, verdict="error", findings=[], error="E: " + "word " * 90)
    (line,) = entry(error, verbosity=-1)
    assert len(line) == 80
    assert line.endswith("...")


def test_quiet_keeps_the_figures_of_a_warning() -> None:
    (line,) = entry(dataclasses.replace(REPORT, verdict="warn"), verbosity=-1, width=100)
    assert line == "WARN  test_model.py::test_resnet: BN101; train 100 %, eval 33 %; -v says more"


def test_planned_figures_say_what_they_are() -> None:
    projected = Projected(0.2, 0.9, 0.1, 0.05, 0.02, 0.99)
    measured = dataclasses.replace(REPORT.predictions, projected=projected)
    lines = entry(
        dataclasses.replace(REPORT, predictions=measured, planned_updates=250), verbosity=1
    )
    assert "      projected to 250 updates: gap 0.1, distortion 0.02, retained 0.99" in lines
    assert "      measured after 5 steps: gap 1.05, distortion 3.5" in lines


def names(lines: list[str]) -> list[str]:
    return [line.split()[0] for line in lines if "block" in line]


def test_verbose_shows_the_worst_layers_first() -> None:
    lines = entry(verbosity=1)
    assert "      gap 1.05, distortion 3.5" in lines
    assert "      torch, cpu, 5 steps on 3 samples" in lines
    assert names(lines) == [f"block{k}.bn" for k in (2, 3, 4, 5, 0)]
    assert lines[-1] == "      and 1 more"
    assert max(map(len, lines)) <= 80


def test_shares_of_the_layers_where_they_are_known() -> None:
    shared = [dataclasses.replace(one, attribution=0.5) for one in REPORT.layers[:2]]
    lines = entry(dataclasses.replace(REPORT, layers=shared), verbosity=1)
    assert lines[-4:] == [
        "      layer                       momentum updates  initial distortion share",
        "      block0.bn                        0.9       5   59.0 %       0.10  50 %",
        "      block1.bn                        0.9       5   59.0 %             50 %",
        "      share: the part of the difference that a layer's statistics make",
    ]
    assert not any("share" in line for line in entry(verbosity=1))


def test_notes_are_for_verbose_output_alone() -> None:
    note = dataclasses.replace(FINDING, code="BN106", severity="note")
    report = dataclasses.replace(REPORT, verdict="pass", findings=[], notes=[note])
    assert not any(
        "BN106" in line for verbosity in (-1, 0) for line in entry(report, verbosity=verbosity)
    )
    assert "      Note BN106 running-stats-underconverged: Wrong. Very. Cause." in entry(
        report, verbosity=1
    )
    assert "BN106" not in str(report)


def test_very_verbose_shows_all_layers_what_is_suppressed_and_times() -> None:
    hidden = Suppressed("BN106", "too-few-values-per-channel", "ignored: " + "tiny " * 20, "Few.")
    report = dataclasses.replace(REPORT, suppressed=[hidden], not_checked=["BN108 needs streams."])
    lines = entry(report, verbosity=2)
    assert "      BN108 needs streams." in lines
    assert "      BN108 needs streams." not in entry(report, verbosity=1)
    assert names(lines) == [f"block{k}.bn" for k in (2, 3, 4, 5, 0, 1)]
    assert "      seconds: train 0.00, measure 0.00, diagnose 0.00, total 0.00" in lines
    assert any("BN106 too-few-values-per-channel is ignored: tiny" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_verbose_says_what_a_warning_is_about() -> None:
    finding = dataclasses.replace(FINDING, severity="warning")
    report = dataclasses.replace(REPORT, verdict="warn", findings=[finding])
    assert not any("Cause." in line for line in entry(report))
    assert entry(report, verbosity=1)[2:4] == ["      Wrong. Very. Cause.", "      - Do."]
    # A failure says so itself.
    assert not any("Cause." in line for line in entry(verbosity=2))
