"""A small project to run pytest in, with a framework of its own."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from pytest_bncheck.reports import wire

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

# What changes the output of a run, and is set where these tests run on a CI system.
ENVIRONMENT = (
    *("PYTEST_ADDOPTS", "CI", "BUILD_NUMBER", "COLUMNS", "NO_COLOR", "FORCE_COLOR", "PY_COLORS"),
    *("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE", "PYTEST_XDIST_WORKER"),
)

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
        report = json.loads(text, parse_constant=pytest.fail)
        jsonschema.validate(report, wire.schema())
        return report
