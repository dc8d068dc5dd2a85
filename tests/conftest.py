"""What every test starts from, and the fixtures that tests of several folders share."""

from __future__ import annotations

import os
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

# The nets are tiny, and threads that wait for each other cost more than they help.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where nothing else is asked for; Keras reads it once, when it is imported.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Loaded once here: pytester forgets modules that a run inside it imports first.
import pytest_bncheck.experiment.engine
import pytest_bncheck.plugin
import pytest_bncheck.plugin.watching
import pytest_bncheck.reports.terminal  # noqa: F401
import second_device
from project import ENVIRONMENT, Project

HERE = Path(__file__).parent


def pytest_configure() -> None:
    if second_device.DEVICE:
        second_device.prepare()


@pytest.fixture(autouse=True)
def _second_device(monkeypatch):
    if second_device.DEVICE:
        second_device.becomes_the_default(monkeypatch)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of Keras, which tox runs on every backend.

    They are in a folder of that name, or say it in theirs, or have it as their framework. Of a run
    on another device, only the tests that are marked for it remain.
    """
    others = [item for item in items if not second_device.runs(item.get_closest_marker("device"))]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]
    for item in items:
        case = item.callspec.params if hasattr(item, "callspec") else {}
        name = getattr(item, "originalname", item.name)
        folders = item.path.relative_to(HERE).parts
        if "keras" in (*folders, *name.split("_"), case.get("framework")):
            item.add_marker("keras")


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


@pytest.fixture(params=["", "-n2"], ids=["alone", "n2"])
def xdist_args(request):
    """Without processes of pytest-xdist, and with two."""
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
