"""The JSON report and what JUnit gets."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from project import BROKEN
from pytest_bncheck import __version__
from pytest_bncheck.experiment import engine
from pytest_bncheck.report import Predictions, Report
from pytest_bncheck.reports import wire

TESTS = (
    BROKEN
    + """
import numpy

@pytest.mark.bn_consistency(steps=5)
def test_bad(): ...

def test_calls(bncheck):
    numpy.random.seed(0)
    bncheck(ToyModel(), toy_batch())
    bncheck(ToyModel(update_rate=0.9), toy_batch(), steps=50)

def test_error(bncheck):
    bncheck(None, toy_batch())

def test_ordinary(): ...
"""
)


def stable(report):
    for check in report["checks"]:
        del check["seconds"]
    return report


def test_report_is_the_same_with_and_without_processes(project):
    project.pytester.makepyfile(TESTS)
    reports = []
    for args in ((), ("-n0",), ("-n2",), ("-n2", "--dist=loadscope")):
        result = project.run("--bncheck-json=report.json", *args)
        assert result.ret == 1
        result.assert_outcomes(failed=2, passed=2)
        result.stdout.fnmatch_lines(["JSON report: *report.json"])
        reports.append(stable(project.report()))
    first = reports[0]
    for other in reports:
        assert other == first
    assert first["schema"] == 1
    assert first["plugin"] == __version__
    assert first["environment"]["pytest"] == pytest.__version__
    assert first["summary"] == {
        "checks": 4,
        "passed": 1,
        "warned": 1,
        "failed": 1,
        "errored": 1,
    }
    assert [(c["nodeid"].split("::")[1], c["index"], c["verdict"]) for c in first["checks"]] == [
        ("test_bad", 0, "fail"),
        ("test_calls", 0, "pass"),
        ("test_calls", 1, "warn"),
        ("test_error", 0, "error"),
    ]


def test_zero_checks(project, xdist_args):
    project.pytester.makepyfile("def test_ordinary(): ...")
    project.run("--bncheck-json=report.json", *xdist_args)
    assert project.report()["checks"] == []


def test_no_tests_and_collection_errors(project):
    assert project.run("--bncheck-json=report.json").ret == 5
    assert project.report()["checks"] == []
    (project.path / "report.json").unlink()
    project.pytester.makepyfile("import no_such_module")
    assert project.run("--bncheck-json=report.json").ret == 2
    assert project.report()["checks"] == []


def test_after_the_first_failure(project, xdist_args):
    project.pytester.makepyfile(TESTS)
    project.run("--bncheck-json=report.json", "-x", *xdist_args)
    assert "test_bad" in project.report()["checks"][0]["nodeid"]


def test_after_an_interrupt(project):
    project.pytester.makepyfile(TESTS + "def test_stop(): raise KeyboardInterrupt\n")
    result = project.run("--bncheck-json=report.json", subprocess=True)
    assert result.ret == 2
    assert project.report()["summary"]["checks"] == 4


def test_a_good_report_survives_listing_and_usage_errors(project):
    project.pytester.makepyfile(TESTS)
    path = project.path / "report.json"
    path.write_text("good")
    project.run("--bncheck-json=report.json", "--co")
    assert project.run("--bncheck-json=report.json", "no_such_file.py").ret == 4
    assert project.run("--bncheck-json=report.json", "--bncheck-steps=x").ret == 4
    assert path.read_text() == "good"
    assert list(project.path.glob(".report*")) == []


def test_rerun_replaces_its_attempt(project):
    project.pytester.makeconftest(
        (project.path / "conftest.py").read_text()
        + """
from _pytest.runner import runtestprotocol

def pytest_runtest_protocol(item, nextitem):
    for _ in range(2):
        item._initrequest()
        for report in runtestprotocol(item, nextitem=nextitem, log=False):
            item.ihook.pytest_runtest_logreport(report=report)
    return True
"""
    )
    project.pytester.makepyfile(TESTS)
    project.run("--bncheck-json=report.json", "--junitxml=junit.xml")
    assert project.report()["summary"]["checks"] == 4


def test_junit(project, xdist_args):
    project.pytester.makepyfile(TESTS)
    project.run("--bncheck", "--junitxml=junit.xml", *xdist_args)
    found, failures = {}, {}
    for case in ET.parse(project.path / "junit.xml").iter("testcase"):
        failures[case.get("name")] = case.find("failure")
        found[case.get("name")] = {p.get("name"): p.get("value") for p in case.iter("property")}
    assert found["test_bad"]["bncheck_verdict"] == "fail"
    assert found["test_bad"]["bncheck_codes"] == "BN101"
    assert float(found["test_bad"]["bncheck_gap"]) > 0.25
    assert found["test_calls"]["bncheck_verdict"] == "warn"
    assert found["test_error"] == {"bncheck_verdict": "error"}
    assert found["test_ordinary"] == {}
    headline = "100 % right in training mode, 38 % in eval mode"
    assert failures["test_bad"].get("message") == f"pytest_bncheck.CheckFailed: {headline}"
    assert "What to do" in failures["test_bad"].text
    assert failures["test_calls"] is None


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [([0.1, None, 0.3], 0.3), ([0.1, "nan", 0.3], "nan"), ([9.0, "inf"], "inf"), ([None], None)],
)
def test_the_largest_gap_is_the_one_that_junit_shows(gaps, expected):
    checks = [Report(predictions=Predictions(gap)).to_dict() for gap in gaps]
    assert dict(wire.properties(checks)).get("bncheck_gap") == expected


def test_nothing_but_exact_builtins_leaves_a_worker(project, monkeypatch):
    # The project's conftest.py patches this process too, which is the controller.
    monkeypatch.setattr(engine, "run", engine.run)
    project.pytester.makeconftest(
        (project.path / "conftest.py").read_text()
        + """
import numpy as np
import dataclasses

class Name(str): ...

from pytest_bncheck.experiment import engine
from pytest_bncheck.report import Predictions, Report
from pytest_bncheck.reports import wire
run = engine.run

def with_odd_values(*args):
    report = run(*args)
    odd = dataclasses.replace(report.predictions, gap=np.float32("nan"), floor=np.float64(1))
    return dataclasses.replace(report, predictions=odd, device=Name("cpu"), batch_size=np.int64(3))

engine.run = with_odd_values
"""
    )
    project.pytester.makepyfile(TESTS)
    result = project.run("--bncheck-json=report.json", "-n2")
    assert result.ret == 1
    result.assert_outcomes(failed=2, passed=2)
    bad = project.report()["checks"][0]
    assert (bad["device"], bad["batch_size"]) == ("cpu", 3)
    assert (bad["predictions"]["gap"], bad["predictions"]["floor"]) == ("nan", 1.0)


def test_paths_are_relative_to_where_they_were_written(project, monkeypatch):
    project.pytester.makepyfile(TESTS)
    (project.path / "sub").mkdir()
    monkeypatch.chdir(project.path / "sub")
    project.run("--bncheck-json=here.json", "..")
    assert (project.path / "sub" / "here.json").exists()
    project.pytester.makeini("[pytest]\nbncheck_json = there.json\n")
    project.run("..")
    assert (project.path / "there.json").exists()


def test_report_that_cannot_be_written_at_the_end(project):
    project.pytester.makepyfile(
        """
        import shutil
        def test_it(bncheck):
            shutil.rmtree("out")
            bncheck.__call__
        def test_ordinary(): ...
        """
    )
    (project.path / "out").mkdir()
    result = project.run("--bncheck-json=out/report.json", "-k", "it")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["the JSON report *report.json could not be written: *"])


def test_special_files_are_written_and_not_replaced(tmp_path):
    wire.write(Path("/dev/null"), wire.document([]))
    assert not Path("/dev/null").is_file()
    target = tmp_path / "target.json"
    target.write_text("old")
    link = tmp_path / "link.json"
    link.symlink_to(target)
    wire.write(link, wire.document([]))
    assert link.is_symlink()
    assert json.loads(target.read_text())["checks"] == []
