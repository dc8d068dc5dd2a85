"""What a finding hides, and what comes back when it does not count itself."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import numpy as np
import pytest

from pytest_bncheck import rules
from pytest_bncheck.evidence import Evidence
from pytest_bncheck.experiment import engine
from pytest_bncheck.report import Report
from pytest_bncheck.rules._base import Rule
from pytest_bncheck.types import Finding, Recipe, Settings, Severity
from toy import ToyAdapter, ToyModel, toy_batch


def made(number: int, grade: Severity) -> Rule:
    """A rule that has something to say about a layer, unless that is explained."""

    class Made(Rule):
        code = f"BN90{number}"
        name = f"rule-{number}"
        severity = grade
        intended = frozenset({"frozen-batchnorm"}) if number == 1 else frozenset()

        def find(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
            if "norm" in explained:
                return None
            return self.finding("Said.", cause="c", remedy="r", layers=["norm"])

    return Made()


def run(monkeypatch: pytest.MonkeyPatch, first: Severity, **options: Any) -> Report:
    """A check with two rules about the same layer."""
    order = (made(1, first), made(2, "error"))
    monkeypatch.setattr(rules, "ORDER", order)
    monkeypatch.setattr(rules, "RULES", {rule.code: rule for rule in order})
    np.random.seed(0)
    settings = Settings(steps=5, **options)
    return engine.run(ToyModel(), [toy_batch()], settings, Recipe(), ToyAdapter)


def codes(report: Report) -> list[list[str]]:
    return [[each.code for each in part] for part in (report.findings, report.notes)]


def test_only_an_error_hides_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert codes(run(monkeypatch, "error")) == [["BN901"], []]
    assert codes(run(monkeypatch, "warning")) == [["BN902", "BN901"], []]
    assert codes(run(monkeypatch, "note")) == [["BN902"], ["BN901"]]


@pytest.mark.parametrize(
    "options", [{"ignore": {"BN901": "known"}}, {"intended": ("frozen-batchnorm",)}]
)
def test_what_does_not_count_hides_nothing(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = run(monkeypatch, "error", **options)
    assert codes(report) == [["BN902"], []]
    assert [hidden.code for hidden in report.suppressed] == ["BN901"]


def test_a_note_that_is_ignored_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(monkeypatch, "note", ignore={"BN9": None})
    assert codes(report) == [[], []]
    assert [hidden.code for hidden in report.suppressed] == ["BN902"]


def test_a_note_is_no_part_of_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(monkeypatch, "note", ignore={"BN902": None}, strict=True)
    assert report.verdict == "pass"
    assert [note.severity for note in report.notes] == ["note"]
