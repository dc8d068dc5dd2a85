"""Watch mode: ``--bncheck-watch`` looks at what the tests of a suite do, and changes nothing."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pytest_bncheck import settings
from pytest_bncheck.plugin import internals
from pytest_bncheck.plugin.stash import SESSION
from pytest_bncheck.watch.ledger import Ledger

KEY = "bncheck_watch"
"""The key under which a worker process sends what it saw."""

_FRAMEWORKS = ("torch", "keras")


class Watching:
    """The hooks of watch mode, and what was seen in this process and its workers."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.ledger = Ledger()
        self._patches: dict[str, Any] = {}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Watch a test, with its fixtures."""
        self._look_for_frameworks()
        self._set_active(True)
        try:
            return (yield)
        finally:
            self._set_active(False)
            self._end_test(item.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self) -> None:
        """Fixtures may have imported a framework."""
        if self._look_for_frameworks():
            self._set_active(True)

    def _look_for_frameworks(self) -> bool:
        """Watch every framework that was imported since; whether there is a new one."""
        new = [name for name in _FRAMEWORKS if name in sys.modules and name not in self._patches]
        for name in new:
            module = importlib.import_module(f"pytest_bncheck.watch.{name}.patches")
            self._patches[name] = module.Patches(str(self.config.rootpath))
        return bool(new)

    def _set_active(self, active: bool) -> None:
        for patches in self._patches.values():
            patches.observer.active = active

    def _end_test(self, nodeid: str) -> None:
        seen = [patches.observer.end_test() for patches in self._patches.values()]
        self.ledger.add(nodeid, seen)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Look away for the time of a check, which trains and predicts itself."""
        self._set_active(False)
        try:
            yield
        finally:
            self._set_active(True)

    def view(self) -> dict[str, Any]:
        """The ``watch`` object of the JSON report."""
        from pytest_bncheck.reports import watch

        merged = settings.merge(*self.config.stash[SESSION].sources)
        return watch.view(self.ledger.to_dict(), merged.select, merged.ignore)

    def report(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The section in the terminal's summary."""
        from pytest_bncheck.reports import watch

        seen, width = self.view(), self.config.get_terminal_writer().fullwidth
        terminalreporter.write_sep("=", "bncheck watch")
        colours = {found["code"]: found["severity"] for found in seen["findings"]}
        for rule, rest, below in watch.lines(seen, width):
            colour = "red" if colours[rule.split()[0]] == "error" else "yellow"
            terminalreporter.write(rule, **{colour: True})
            for line in (rest, *below):
                terminalreporter.write_line(line)
        for line in watch.total(seen, width):
            terminalreporter.write_line(line)

    # pytest-xdist

    def pytest_sessionfinish(self) -> None:
        """Tell the controller what was seen here."""
        if internals.is_worker(self.config):
            text = json.dumps(self.ledger.to_dict())
            internals.send_to_controller(self.config, KEY, text)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take in what a worker saw; one that crashed sends nothing."""
        text = internals.sent_by_worker(node, KEY)
        if text is not None:
            self.ledger.merge(json.loads(text))

    def pytest_unconfigure(self) -> None:
        """Put back what was replaced."""
        for patches in reversed(self._patches.values()):
            patches.remove()
