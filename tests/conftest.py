"""A small project to run pytest in, with a framework of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

# The nets are tiny, and threads that wait for each other cost more than they help.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Loaded once here: pytester forgets modules that a run inside it imports first.
import pytest_bncheck.engine
import pytest_bncheck.reports.terminal  # noqa: F401

# Worker processes of pytest-xdist find the toy framework only if told where it is.
CONFTEST = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import pytest
from toy import ToyAdapter, ToyModel, toy_batch

@pytest.hookimpl(optionalhook=True)
def pytest_bncheck_adapters(model):
    return ToyAdapter if isinstance(model, ToyModel) else None

@pytest.fixture
def bncheck_model():
    return ToyModel()

@pytest.fixture
def bncheck_batch():
    return toy_batch()
"""

# Override in a test module: five updates at rate 0.01 leave most of the initial statistics.
BROKEN = """
import pytest
from toy import ToyModel, toy_batch

@pytest.fixture
def bncheck_model():
    return ToyModel(update_rate=0.01)
"""


class Project:
    """A folder with tests of a toy model, and runs of pytest in it."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.path: Path = pytester.path
        pytester.makeconftest(CONFTEST)

    def run(self, *args: str, subprocess: bool = False) -> pytest.RunResult:
        """Run pytest; nothing may ever end in an INTERNALERROR."""
        run = (
            self.pytester.runpytest_subprocess if subprocess else self.pytester.runpytest_inprocess
        )
        # Hypothesis and the rewriting of asserts have no part in this and take their time.
        lean = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "--assert=plain")
        result = run(*lean, *args)
        assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()
        return result

    def report(self, name: str = "report.json") -> dict:
        """The JSON report of the last run; strict, so that NaN would be an error."""
        text = (self.path / name).read_text(encoding="utf-8")
        return json.loads(text, parse_constant=pytest.fail)


@pytest.fixture
def project(pytester, monkeypatch):
    """A project whose conftest.py overrides the fixtures for a healthy toy model."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    return Project(pytester)


@pytest.fixture(params=["", "-n0", "-n2"], ids=["alone", "n0", "n2"])
def xdist_args(request):
    """Without processes of pytest-xdist, with it but none, and with two."""
    if request.param:
        pytest.importorskip("xdist")
    return [request.param] if request.param else []
