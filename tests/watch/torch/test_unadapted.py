"""A suite that knows nothing of bncheck: every fault is found at its line, nothing else is."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

from forked import pytest_in
from watched import expected, found

SUITE = Path(__file__).parents[3] / "fixtures" / "unadapted_torch"


@pytest.fixture
def suite(project):
    """The suite in a folder of its own, without the toy's fixtures."""
    (project.path / "conftest.py").unlink()
    for path in SUITE.rglob("*.py"):
        target = project.path / path.relative_to(SUITE)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    project.pytester.syspathinsert()
    return project


def outcomes(text: str) -> list[str]:
    """Each test with how it ended."""
    return sorted(re.findall(r"^(?:\[gw\d\] \[ *\d+%\] )?(\S+::\S+ \w+|\w+ \S+::\S+)", text, re.M))


def of_each_test(printed: str) -> dict[str, str]:
    pairs = [line.split() for line in outcomes(printed)]
    return {max(pair, key=len): min(pair, key=len) for pair in pairs}


@pytest.mark.parametrize("args", [("-W", "error"), ("-n", "2")], ids=" ".join)
def test_loops(suite, args):
    if "-n" in args:
        pytest.importorskip("xdist")
    off = None if "-n" in args else pytest_in(suite.path, "-v", *args, "test_loops.py")
    watched = ("-v", "--bncheck-watch", "--no-bncheck", "--bncheck-json=report.json", *args)
    code, printed = pytest_in(suite.path, *watched, "test_loops.py")
    (suite.path / "test_programs.py").unlink()
    assert found(suite.report()) == expected(suite.path)
    assert code == 0, printed
    assert "INTERNALERROR" not in printed
    watch = suite.report()["watch"]
    assert (watch["problem"], watch["unseen"]) == (None, {})
    assert watch["training"] < watch["tests"] == len(of_each_test(printed))
    if off is not None:
        assert off[0] == code
        assert of_each_test(off[1]) == of_each_test(printed)


def test_programs(suite):
    args = ("-W", "error", "--bncheck-watch", "--no-bncheck", "--bncheck-json=report.json")
    code, printed = pytest_in(suite.path, *args, "test_programs.py")
    assert code == 0, printed
    report = suite.report()
    assert {each for each in found(report) if each[1] == "test_programs.py"} == {
        each for each in expected(suite.path) if each[1] == "test_programs.py"
    }
    assert len(report["watch"]["findings"]) == 1
    assert report["watch"]["unseen"] == {"compiled by torch.compile": 2}
    assert (report["watch"]["failed"], report["watch"]["problem"]) == (
        1,
        "AttributeError: 'Bare' object has no attribute 'training'",
    )
