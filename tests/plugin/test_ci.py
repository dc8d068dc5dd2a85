"""On GitHub Actions: annotations and the step's summary."""

from __future__ import annotations

import re

import pytest

from project import BROKEN

TESTS = (
    BROKEN
    + """
from pytest_bncheck import CheckFailed

@pytest.mark.bn_consistency(steps=5)
@pytest.mark.parametrize("name", ["a|b,<i>%c"])
def test_bad(name): ...

class TestGood:
    @pytest.fixture
    def bncheck_model(self):
        return ToyModel()

    @pytest.mark.bn_consistency(steps=80)
    def test_good(self): ...

class TestForgetful:
    @pytest.fixture
    def bncheck_model(self):
        return ToyModel(update_rate=0.9)

    @pytest.mark.bn_consistency(steps=40)
    def test_warned(self): ...

@pytest.mark.xfail(raises=CheckFailed, strict=True)
@pytest.mark.bn_consistency(steps=5)
def test_known(): ...

def test_error(bncheck):
    bncheck(None, toy_batch())
"""
)


@pytest.fixture
def runner(project, monkeypatch):
    """A project in a folder of its repository, as a runner of GitHub sees it."""
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(project.path.parent))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project.path / "summary.md"))
    project.pytester.makepyfile(test_it=TESTS)
    return project


def line_of(project, text: str) -> int:
    return (project.path / "test_it.py").read_text().splitlines().index(text) + 1


def test_annotations(runner, xdist_args):
    result = runner.run("--bncheck", *xdist_args)
    result.assert_outcomes(failed=2, passed=2, xfailed=1)
    commands = [line for line in result.outlines if line.startswith("::")]
    found = [re.fullmatch(r"::(\w+) file=(.*),line=(\d+),title=(.*?)::(.*)", c) for c in commands]
    assert all(found)
    file = f"{runner.path.name}/test_it.py"
    assert [m.groups()[:4] for m in found if m] == [
        ("warning", file, str(line_of(runner, "    @pytest.mark.bn_consistency(steps=40)")),
         "BN104 momentum-suspicious"),
        ("error", file, str(line_of(runner, "@pytest.mark.bn_consistency(steps=5)")),
         "BN101 running-stats-underconverged"),
        ("error", file, str(line_of(runner, "def test_error(bncheck):")), "bncheck"),
    ]  # fmt: skip
    error = found[1]
    assert error is not None
    assert error[5].startswith("100 %25 right in training mode, 38 %25 in eval mode. After 5 upd")
    assert error[5].endswith("%0Atest_it.py::test_bad[a|b,<i>%25c]")


def test_step_summary(runner, xdist_args):
    path = runner.path / "summary.md"
    path.write_text("# Earlier\n")
    runner.run("--bncheck", *xdist_args)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[:3] == ["# Earlier", "## bncheck: 1 error, 2 fail, 1 warn, 1 pass", ""]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    assert {len(row) for row in rows} == {6}
    assert [row[0] for row in rows[2:]] == [
        "❌ error",
        "❌ fail",
        "❌ fail (expected)",
        "⚠️ warn",
        "✅ pass",
    ]
    bad = rows[3]
    assert bad[1].endswith("test&#95;bad&#91;a&#124;b,&#60;i&#62;%c&#93;</code>")
    assert bad[2:5] == ["BN101 running-stats-underconverged", "100 %", "38 %"]
    assert len([line for line in lines if line.startswith("### ")]) == 3


def test_nothing_without_checks(runner):
    for args in (["--bncheck", "-k", "nothing"], ["--bncheck", "--co"], []):
        result = runner.run(*args)
        assert not [line for line in result.outlines if line.startswith("::")]
    assert not (runner.path / "summary.md").exists()


def test_a_summary_that_cannot_be_written_fails_nothing(runner, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(runner.path))
    result = runner.run("--bncheck", "-k", "good")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["the step summary * could not be written: *"])


def test_elsewhere_there_are_no_commands(runner, monkeypatch):
    monkeypatch.delenv("GITHUB_ACTIONS")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    result = runner.run("--bncheck")
    assert not [line for line in result.outlines if line.startswith("::")]
