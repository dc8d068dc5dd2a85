"""The hooks of a run that checks: `attempt` makes the checks, `failing` shapes their failures."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from pytest_bncheck.plugin import attempt as attempts
from pytest_bncheck.plugin import failing, results
from pytest_bncheck.plugin.stash import ATTEMPT, CURRENT


class Checking:
    """Registered only when checks are on."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        """Tell this run of a test from another: an item can be in a session twice."""
        results.begin_run(item)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Begin an attempt; before setup, and after all marks are there."""
        attempts.begin(item)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Generator[None, Any, Any]:
        """Build the inputs from a fresh seed."""
        __tracebackhide__ = True
        item = request.config.stash.get(CURRENT, None)
        if item is None or fixturedef.argname not in item.stash[ATTEMPT].seeded:
            return (yield)
        with attempts.seeded(item, request.scope):
            return (yield)

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
        if not results.may_have_any(item, call):
            return (yield)
        attempts.end_phase(item, call)
        results.set_properties(item)
        report = yield
        results.attach(item, report)
        failing.keep_first_line(call, report)
        return report
