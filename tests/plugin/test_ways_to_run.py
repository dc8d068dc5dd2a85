"""The ways in which pytest itself can be told to run: counts, exit codes and reports hold."""

from __future__ import annotations

import sys

import pytest

from project import BROKEN

TESTS = (
    BROKEN
    + """
@pytest.mark.bn_consistency(steps=5)
def test_bad(): ...

@pytest.mark.bn_consistency(steps=5, ignore="BN1")
def test_known(): ...

def test_call(bncheck):
    bncheck(ToyModel(), toy_batch(), steps=80)
"""
)
OUTCOMES = {"passed": 2, "failed": 1}


@pytest.fixture
def run(project, monkeypatch):
    """Runs pytest as a user does; `project.run` leaves some of its plugins out."""
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", raising=False)
    project.pytester.makepyfile(test_it=TESTS)

    def run(*args, own_process=False, stdin=b""):
        if own_process or stdin:
            command = (sys.executable, "-m", "pytest", "-p", "no:randomly", *args)
            result = project.pytester.run(*command, stdin=stdin)
        else:
            result = project.pytester.runpytest_inprocess(*args)
        assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()
        return result

    return run


def verdicts(project):
    return [check["verdict"] for check in project.report()["checks"]]


def test_last_failed(project, run):
    run("--bncheck").assert_outcomes(**OUTCOMES)
    result = run("--bncheck-json=report.json", "--lf")
    result.assert_outcomes(failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert verdicts(project) == ["fail"]
    cured = TESTS.replace("0.01", "0.1").replace("steps=5", "steps=80")
    project.pytester.makepyfile(test_it=cured)
    assert run("--bncheck", "--lf").ret == 0


def test_the_debugger_opens_at_the_failure(project, run):
    result = run("--bncheck-json=report.json", "--pdb", stdin=b"q\n")
    result.stdout.fnmatch_lines(["*test_it.py(*test_bad()*", "(Pdb)*"])
    assert verdicts(project) == ["fail"]


def test_the_debugger_goes_on(project, run):
    result = run("--bncheck-json=report.json", "--pdb", "--no-header", stdin=b"c\n")
    result.assert_outcomes(**OUTCOMES)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert verdicts(project) == ["fail", "pass", "pass"]


@pytest.mark.parametrize("mode", ["prepend", "append", "importlib"])
def test_import_modes(project, run, mode):
    result = run("--bncheck-json=report.json", f"--import-mode={mode}", own_process=True)
    result.assert_outcomes(**OUTCOMES)
    assert verdicts(project) == ["fail", "pass", "pass"]


MODULE = "pytest_bncheck.plugin"


@pytest.mark.parametrize("autoload", [True, False], ids=["autoload", "no autoload"])
@pytest.mark.parametrize(
    ("name", "way"),
    [("bncheck", "option"), (MODULE, "option"), (MODULE, "variable"), (MODULE, "conftest")],
)
def test_asked_for_by_name(project, run, monkeypatch, name, way, autoload):
    """It is there once, however often and by whichever of its names it is asked for."""
    if not autoload:
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    if way == "variable":
        monkeypatch.setenv("PYTEST_PLUGINS", name)
    if way == "conftest":
        conftest = project.path / "conftest.py"
        conftest.write_text(f"pytest_plugins = [{name!r}]\n" + conftest.read_text())
    result = run("--bncheck-json=report.json", *(["-p", name] if way == "option" else []))
    result.assert_outcomes(**OUTCOMES)
    assert verdicts(project) == ["fail", "pass", "pass"]


def test_blocked(project, run):
    """Marked tests run as they stand; the fixture is not there."""
    result = run("-p", "no:bncheck")
    assert result.parseoutcomes()["passed"] == 2
    assert result.parseoutcomes()["errors"] == 1
    assert "fixture 'bncheck' not found" in result.stdout.str()
    strict = run("-p", "no:bncheck", "--strict-markers", own_process=True)
    assert strict.ret == pytest.ExitCode.INTERRUPTED
    assert run("-p", "no:bncheck", "--bncheck").ret == pytest.ExitCode.USAGE_ERROR
