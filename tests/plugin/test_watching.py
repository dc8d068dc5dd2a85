"""Watch mode in a run: options, reports, and that it changes nothing."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
# An optimizer imports it, and it cannot be imported in each run inside.
pytest.importorskip("torch._dynamo")
# Once for all runs inside, which would forget it: a test patches it.
from pytest_bncheck.watch.torch import observer

FORGETFUL = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy

x, y = torch.randn(12, 4), torch.arange(12) % 2

def fit():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    cross_entropy(model(x), y).backward()
    optimizer.step()
    return model

def test_one():
    model = fit()
    with torch.no_grad():
        model(x)

def test_two():
    model = fit()
    with torch.no_grad():
        model(x)

def test_fails():
    assert fit() is None
"""
WATCH = ("--bncheck-watch", "--no-bncheck")


@pytest.fixture
def suite(project):
    (project.path / "conftest.py").unlink()
    project.pytester.makepyfile(test_it=FORGETFUL)
    return project


def codes(suite, name="report.json"):
    return [(each["code"], each["line"]) for each in suite.report(name)["watch"]["findings"]]


BOTH = [("BN307", 17), ("BN307", 22)]


def test_it_is_off_unless_asked_for(suite):
    result = suite.run()
    result.assert_outcomes(passed=2, failed=1)
    assert "bncheck" not in result.stdout.str().partition("plugins:")[2].partition("\n")[2]
    suite.pytester.makeini("[pytest]\nbncheck_watch = true\n")
    assert "watched 3 tests" in suite.run().stdout.str()
    assert "watched" not in suite.run("--no-bncheck-watch").stdout.str()


def test_outcomes_and_reports(suite):
    result = suite.run(*WATCH, "--bncheck-json=report.json")
    result.assert_outcomes(passed=2, failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert codes(suite) == BOTH
    result.stdout.fnmatch_lines(
        [
            "=* bncheck watch =*",
            "BN307 predicts-in-train-mode  test_it.py:17 in test_one",
            "*Seen in test_it.py::test_one.",
            "watched 3 tests: 3 train a model, 3 with layers that mind the mode; 0 errors, 2*",
        ]
    )


def test_a_failure_shows_no_frame_of_ours(suite):
    suite.pytester.makepyfile(
        test_it="""
        import torch

        def test_shapes():
            torch.nn.Linear(3, 2)(torch.zeros(4, 4))
        """
    )
    for args in ((), ("--tb=short",)):
        result = suite.run(*WATCH, *args)
        result.assert_outcomes(failed=1)
        assert "pytest_bncheck" not in result.stdout.str().partition("FAILURES")[2]


def test_options_that_say_what_counts(suite):
    flags = (*WATCH, "--bncheck-json=report.json")
    suite.run(*flags, "--bncheck-ignore=BN307: on purpose")
    watch = suite.report()["watch"]
    assert watch["findings"] == []
    assert {each["reason"] for each in watch["suppressed"]} == {"ignored: on purpose"}
    suite.run(*flags, "--bncheck-select=BN305")
    assert suite.report()["watch"]["suppressed"] == suite.report()["watch"]["findings"] == []


def test_checks_are_not_watched(suite):
    suite.pytester.makepyfile(
        test_it="""
        import torch
        from torch import nn

        def test_check(bncheck):
            net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=0.9), nn.Linear(8, 2))
            bncheck(net, (torch.randn(12, 4), torch.arange(12) % 2), steps=20, ignore="BN")
        """
    )
    suite.run("--bncheck-watch", "--bncheck-json=report.json").assert_outcomes(passed=1)
    report = suite.report()
    assert (report["summary"]["checks"], report["watch"]["training"]) == (1, 0)


def test_github_is_told(suite, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(suite.path / "summary.md"))
    result = suite.run(*WATCH)
    assert result.stdout.str().count("\n::warning file=test_it.py,line=") == 2
    assert "## bncheck watch" in (suite.path / "summary.md").read_text()


def test_a_failure_of_watching_ends_that_of_its_test(suite, monkeypatch):
    stepped, calls = observer.Observer.stepped, []

    def broken(self, optimizer):
        calls.append(optimizer)
        if len(calls) == 1:
            raise TypeError("no such thing")
        stepped(self, optimizer)

    monkeypatch.setattr(observer.Observer, "stepped", broken)
    result = suite.run(*WATCH, "--bncheck-json=report.json")
    result.assert_outcomes(passed=2, failed=1)
    watch = suite.report()["watch"]
    assert (watch["failed"], watch["problem"]) == (1, "TypeError: no such thing")
    assert codes(suite) == BOTH[1:]
    result.stdout.fnmatch_lines(["watching ended early in 1 test: TypeError: no such thing"])


def test_everything_is_put_back(suite):
    def replaced():
        module, optimizer = torch.nn.Module, torch.optim.Optimizer
        export = torch.export.export
        names = ("__call__", "train", "load_state_dict")
        return [vars(module)[name] for name in names], optimizer.__init__, export

    before = replaced()
    suite.run(*WATCH)
    assert replaced() == before


def test_what_is_installed_is_not_the_users(suite):
    folder = suite.path / "lib" / "site-packages"
    folder.mkdir(parents=True)
    (folder / "trainer.py").write_text(FORGETFUL)
    suite.pytester.makepyfile(
        test_it="""
        import sys
        sys.path.insert(0, "lib/site-packages")
        from trainer import test_one
        """
    )
    suite.run(*WATCH, "--bncheck-json=report.json").assert_outcomes(passed=1)
    assert codes(suite) == []
    # But a copy of what is developed here, as tox makes one, is.
    (suite.path / "src").mkdir()
    (suite.path / "src" / "trainer.py").write_text(FORGETFUL)
    suite.run(*WATCH, "--bncheck-json=report.json").assert_outcomes(passed=1)
    (found,) = suite.report()["watch"]["findings"]
    assert (found["code"], found["file"], found["line"]) == ("BN307", "src/trainer.py", 18)


def test_no_test_is_run(suite):
    suite.run(*WATCH, "--co", "-q")
    result = suite.run(*WATCH, "-k", "nothing")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "watched 0 tests" in result.stdout.str()
