"""A small project to run pytest in, with a framework of its own."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest

# The nets are tiny, and threads that wait for each other cost more than they help.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Loaded once here: pytester forgets modules that a run inside it imports first.
import pytest_bncheck.experiment.engine
import pytest_bncheck.plugin
import pytest_bncheck.reports.terminal  # noqa: F401
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
    *("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE"),
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


@pytest.fixture(autouse=True)
def same_random_state():
    """Every test draws the same numbers, whichever tests ran before it."""
    random.seed(0)  # Keras draws its default seeds from this one
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def project(pytester, monkeypatch):
    """A project whose conftest.py overrides the fixtures for a healthy toy model."""
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    return Project(pytester)


@pytest.fixture(params=["", "-n0", "-n2"], ids=["alone", "n0", "n2"])
def xdist_args(request):
    """Without processes of pytest-xdist, with it but none, and with two."""
    if request.param:
        pytest.importorskip("xdist")
    return [request.param] if request.param else []


@pytest.fixture(scope="session")
def chromium():
    """A real browser without a window."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def browse(chromium):
    """Opens a file; fails the test if the page complains or asks for anything else."""
    seen: list[str] = []
    contexts = []

    def open_page(path: Path, **options):
        contexts.append(chromium.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("dialog", lambda dialog: seen.append(dialog.message))
        page.on("request", lambda request: seen.append(request.url))
        page.goto(path.as_uri())
        assert seen.pop(0) == path.as_uri()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert seen == []
