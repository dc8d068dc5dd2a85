"""A test that kills its worker process loses its own checks and no others."""

from __future__ import annotations

import pytest

from project import BROKEN
from pytest_bncheck.plugin.collected import CRASHED

pytest.importorskip("xdist")

TESTS = (
    BROKEN
    + """
import os

class Deadly(ToyModel):
    def __call__(self, inputs):
        os._exit(7)

class TestDeadly:
    @pytest.fixture
    def bncheck_model(self):
        return Deadly()

    @pytest.mark.bn_consistency(steps=5)
    def test_in_the_check(self): ...

class TestHealthy:
    @pytest.fixture
    def bncheck_model(self):
        return ToyModel()

    def test_after_the_check(self, bncheck_report):
        os._exit(7)

def test_without_a_check():
    os._exit(7)

@pytest.mark.bn_consistency(steps=5)
def test_bad(): ...

@pytest.mark.bn_consistency
def test_good(bncheck):
    bncheck(ToyModel(), toy_batch(), steps=80)
"""
)


# Not with --dist=loadscope: a crash there makes pytest-xdist itself (3.8) hang or stumble.
def test_the_report_says_what_was_lost(project, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    project.pytester.makepyfile(test_it=TESTS)
    options = ("--bncheck-steps=80", "--bncheck-json=report.json")
    result = project.run("-n2", *options)
    assert result.ret == 1
    result.assert_outcomes(passed=1, failed=4)
    report = project.report()
    found = {c["nodeid"].split("::")[-1]: (c["verdict"], c["error"]) for c in report["checks"]}
    assert found == {
        "test_after_the_check": ("pass", None),
        "test_bad": ("fail", None),
        "test_good": ("pass", None),
        "test_in_the_check": ("error", CRASHED),
    }
    result.stdout.fnmatch_lines(
        [
            "ERROR test_it.py::TestDeadly::test_in_the_check",
            f"      {CRASHED}",
            f"::error file=test_it.py,line=1,title=bncheck::{CRASHED.replace(':', '*')}*",
        ]
    )


def test_where_no_worker_survives_every_crash_may_have_cost_a_check(project):
    project.pytester.makepyfile(test_it=TESTS)
    result = project.run(
        "-n1", "--max-worker-restart=0", "--bncheck-json=report.json", "-k", "without_a_check"
    )
    result.assert_outcomes(failed=1)
    (check,) = project.report()["checks"]
    assert (check["verdict"], check["error"]) == ("error", CRASHED)


def test_nothing_is_said_while_checks_are_off(project):
    project.pytester.makepyfile(test_it=TESTS)
    result = project.run("-n1", "-k", "without_a_check")
    result.assert_outcomes(failed=1)
    assert "= bncheck =" not in result.stdout.str()
