"""What rules need of an adapter, and which designs they can be silenced for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pytest_bncheck import rules, settings
from pytest_bncheck.adapters.base import CAPABILITIES, Watching
from pytest_bncheck.experiment import engine
from pytest_bncheck.report import Report
from pytest_bncheck.types import Capability, Recipe, Settings
from toy import ToyAdapter, ToyModel, toy_batch


class Watched(ToyAdapter, Watching):
    """Says that its layer idled in some training step."""

    @property
    def idle(self) -> list[str]:
        return ["norm"]

    def trace(self, index: int) -> list[Any]:
        return []

    def sticky(self, index: int) -> list[str]:
        return []


class Blind(Watched):
    """The same, but it offers nothing."""

    @property
    def offers(self) -> frozenset[Capability]:
        return frozenset()


def run(adapter: Any, *select: str) -> Report:
    np.random.seed(0)
    options = Settings(steps=100, select=select)
    return engine.run(ToyModel(), [toy_batch()], options, Recipe(), adapter)


def test_a_rule_runs_only_where_the_adapter_offers_what_it_needs() -> None:
    assert [finding.code for finding in run(Watched).findings] == ["BN305"]
    blind = run(Blind)
    assert blind.ok
    assert not blind.findings
    missing = [code for code, rule in rules.RULES.items() if rule.needs]
    assert [line[:5] for line in blind.not_checked] == missing


def test_the_report_says_what_was_not_checked() -> None:
    report = run(ToyAdapter, "BN101", "BN108", "BN109")
    expected = ["BN108 mixed-streams needs streams, which this adapter does not offer."]
    assert report.not_checked == report.to_dict()["not_checked"] == expected


def test_a_complete_report_does_not_speak_of_it() -> None:
    assert "not_checked" not in run(ToyAdapter, "BN101", "BN109").to_dict()


def test_of_a_finished_program_nothing_is_missed() -> None:
    class Program(Blind):
        program = "a program"

    assert not run(Program).not_checked


@pytest.mark.parametrize("code", rules.RULES)
def test_needs_and_designs_are_known_words(code: str) -> None:
    rule = rules.RULES[code]
    assert rule.needs <= set(CAPABILITIES)
    assert rule.intended <= set(settings.INTENDED)


def test_every_design_that_can_be_declared_silences_some_rule() -> None:
    assert set(settings.INTENDED) == set(rules.INTENDED)
    assert all(rules.INTENDED.values())
