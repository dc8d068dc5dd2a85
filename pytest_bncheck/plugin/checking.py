"""The hooks of a run that checks: `attempt` makes the checks, `failing` shapes their failures.

Most tests of a suite make no check. They meet the few hooks of `Checking`; those of `Attempting`
are registered only while a test runs that makes one.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest

from pytest_bncheck.plugin import attempt as attempts
from pytest_bncheck.plugin import failing, results
from pytest_bncheck.plugin.marks import is_marked
from pytest_bncheck.plugin.stash import ATTEMPT, CURRENT, RESULTS


class Checking:
    """Registered only when checks are on."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._attempting: Attempting | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        """Let the hooks of an attempt come and go with the tests that need them."""
        if is_marked(item):
            self._register(item)
        elif self._attempting is not None:
            self._config.pluginmanager.unregister(self._attempting)
            self._attempting = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Begin an attempt; before setup, and after all marks are there."""
        self._config.stash[CURRENT] = item
        if self._attempting is not None or is_marked(item):
            self._begin(item)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Generator[None, Any, Any]:
        """Build the inputs from a fresh seed, and see whether a fixture has marked the test."""
        __tracebackhide__ = True
        item = self._config.stash.get(CURRENT, None)
        if item is None:
            return (yield)
        if fixturedef.argname in attempts.seeded_names(item):
            with attempts.seeded(item, request.scope):
                return (yield)
        result = yield
        if self._attempting is None and is_marked(item):
            self._begin(item)
        return result

    def attempt(self, item: pytest.Item) -> attempts.Attempt:
        """The attempt at a test; it begins here where only the running test asks for a check."""
        if self._attempting is None:
            self._begin(item)
            phase = os.environ.get("PYTEST_CURRENT_TEST", "")
            item.stash[ATTEMPT].started = phase.endswith("(call)")
        return item.stash[ATTEMPT]

    def _begin(self, item: pytest.Item) -> None:
        if self._attempting is None:
            self._register(item)
        attempts.begin(item)

    def _register(self, item: pytest.Item) -> None:
        results.begin_run(item)
        if self._attempting is None:
            self._attempting = Attempting(self._config.stash[RESULTS])
            self._config.pluginmanager.register(self._attempting, "bncheck-attempting")


class Attempting:
    """Registered only while a test runs that makes checks."""

    def __init__(self, collected: results.Results) -> None:
        self._results = collected

    @pytest.hookimpl(wrapper=True, trylast=True)  # innermost: xfail and captured logs see it
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Fail before the body if the check did; fail after it if there was none."""
        __tracebackhide__ = True
        attempt = item.stash[ATTEMPT]
        attempt.started = True
        if attempt.pending:
            failing.raise_pending(item, attempt.pending)
        result = yield
        attempts.require_check(item)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Attach the checks to the report of every phase, and point a failure at the test."""
        attempts.end_phase(item, call)
        results.set_properties(item)
        report = yield
        results.attach(item, report)
        failing.keep_first_line(call, report)
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in what was attached."""
        self._results.take(report)
