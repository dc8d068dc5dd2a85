"""The hooks of a run that checks nothing: tests that make checks are skipped."""

from __future__ import annotations

import pytest

from pytest_bncheck.plugin import marks
from pytest_bncheck.plugin.options import OFF


class Skipping:
    """Registered only when checks are off."""

    def __init__(self) -> None:
        self.skipped = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Skip marked tests; before setup, and after all marks are there."""
        if marks.is_marked(item):
            item.add_marker(pytest.mark.skip(reason=OFF))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        """Skip a test that a fixture marked, too."""
        if marks.is_marked(item):
            pytest.skip(OFF)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count what was skipped, here or in a worker process."""
        if report.skipped:
            from pytest_bncheck.plugin import internals

            self.skipped += OFF in internals.skip_reason(report)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """One line that says how many tests were skipped."""
        if not self.skipped:
            return
        from pytest_bncheck.plugin import ranks
        from pytest_bncheck.wording import plural

        if ranks.is_first():
            tests = plural(self.skipped, "test")
            terminalreporter.write_line(f"bncheck: {tests} skipped; --bncheck runs them.")
