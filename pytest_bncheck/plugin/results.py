"""The results of all checks: from the tests, over the processes, to every report."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_bncheck.plugin import internals, options, ranks
from pytest_bncheck.plugin.collected import Collected
from pytest_bncheck.plugin.marks import is_marked
from pytest_bncheck.plugin.stash import ATTEMPT, RUN_NUMBER, SESSION, WATCHING

if TYPE_CHECKING:
    from pytest_bncheck.plugin.watching import Watching
    from pytest_bncheck.reports.summary import Entry

ATTRIBUTE = "bncheck_checks"
"""Where a test report carries the string of its checks."""

RUN = "bncheck_run"
"""Where it carries which run of the test it is about: a test can be collected twice."""

MARKED = "bncheck_marked"
"""The key under which a worker process sends its tests that make checks."""


# from a test ------------------------------------------------------------------------------------


def set_properties(item: pytest.Item) -> None:
    """Put the properties of the checks on the item: JUnit reads them from the teardown's report."""
    from pytest_bncheck.reports import wire

    attempt = item.stash.get(ATTEMPT, None)
    ours = wire.properties(attempt.checks) if attempt else []
    others = [each for each in item.user_properties if not each[0].startswith("bncheck_")]
    item.user_properties[:] = [*others, *ours]


_runs = itertools.count()


def begin_run(item: pytest.Item) -> None:
    """Number a run of a test, which several attempts at it may belong to."""
    item.stash[RUN_NUMBER] = next(_runs)


def attach(item: pytest.Item, report: pytest.TestReport) -> None:
    """Attach the checks of a test to the report of one of its phases."""
    from pytest_bncheck.reports import wire

    attempt = item.stash.get(ATTEMPT, None)
    if attempt is not None and (attempt.checks or is_marked(item)):
        number = item.stash.get(RUN_NUMBER, 0)
        setattr(report, ATTRIBUTE, wire.dumps(attempt.checks))
        setattr(report, RUN, f"{os.environ.get('PYTEST_XDIST_WORKER', '')} {number}")


def how_to_begin(tests: int) -> str:
    """What a run with ``--bncheck`` says that checked nothing."""
    from pytest_bncheck.wording import plural

    return (
        f"bncheck: {plural(tests, 'test')}, no check among them. To begin, mark one with "
        "@pytest.mark.bn_consistency and define the fixtures bncheck_model and bncheck_batch, or "
        "let --bncheck-watch look at the loops that the tests run."
    )


FROM_WORKERS = "bncheck-from-workers"
"""The name of the hook that takes in what worker processes report."""


class FromWorkers:
    """Registered where other processes run the tests."""

    def __init__(self, results: Results) -> None:
        self._results = results

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in the checks of a test."""
        self._results.take(report)


# of the whole run -------------------------------------------------------------------------------


class Results:
    """Collects the checks of all tests, from all processes, and reports them at the end."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.session = config.stash[SESSION]
        self.collected = Collected()
        self.tests = 0
        self.written: list[str] = []
        self.problems: list[str] = []

    def pytest_report_header(self) -> list[str]:
        """Say that models are trained, with which options, and whether another process reports."""
        lines = (options.header(self.session), ranks.note()) if self.session.enabled else ()
        return [line for line in lines if line]

    def take(self, report: pytest.TestReport) -> None:
        """Keep the latest string of each test; a rerun replaces what it repeats."""
        if report.failed:
            self.collected.failed.add(report.nodeid)
        if hasattr(report, ATTRIBUTE):
            run = report.nodeid, getattr(report, RUN, "")
            self.collected.texts[run] = getattr(report, ATTRIBUTE)
            file, line, _ = report.location
            self.collected.places[report.nodeid] = file, (line or 0) + 1

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the files, unless no test was run."""
        option = self.config.option
        ran = exitstatus != pytest.ExitCode.USAGE_ERROR
        ran = ran and not (option.collectonly or option.setuponly or option.setupplan)
        reports = (self.session.enabled or self.session.watch) and ranks.is_first()
        ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        self.tests = session.testscollected if ran and ended else 0
        if ran and reports and not internals.is_worker(self.config):
            self._write(session, "JSON", self.session.json)
            self._write(session, "HTML", self.session.html)
            self._append(os.environ.get("GITHUB_STEP_SUMMARY"))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """A few lines for each check, or one that says how to begin."""
        if not ranks.is_first():
            return
        quiet = self.config.option.verbose < 0
        entries = list(self._entries())
        lines = [*([] if quiet else self.written), *self.problems]
        lines += [] if quiet else self._explained()
        if entries or lines:
            terminalreporter.write_sep("=", "bncheck")
        for entry in entries:
            terminalreporter.write(entry.word, **{entry.colour: True})
            for line in (entry.first, *entry.more):
                terminalreporter.write_line(line)
        for line in [*lines, *self._annotations()]:
            terminalreporter.write_line(line)
        if self.watching is not None:
            self.watching.report(terminalreporter)
            for line in self._watch_annotations():
                terminalreporter.write_line(line)
        if self._is_idle() and not quiet:
            terminalreporter.write_line(how_to_begin(self.tests))

    def _is_idle(self) -> bool:
        """Whether checks were asked for on the command line, and none was made."""
        asked = self.config.option.bncheck and self.watching is None
        return bool(asked and self.tests and not self.collected.texts)

    def pytest_unconfigure(self) -> None:
        """Let the process that reports come to its end first."""
        if self.session.enabled:
            ranks.wait_for_first()

    def _entries(self) -> Iterator[Entry]:
        """What the terminal shows of each check."""
        verbosity = self.config.option.verbose
        width = self.config.get_terminal_writer().fullwidth
        for check in self.collected.checks():
            from pytest_bncheck.reports import summary

            expected = self.collected.is_expected(check)
            entry = summary.entry(check, verbosity=verbosity, width=width, expected=expected)
            if entry is not None:
                yield entry

    def _explained(self) -> list[str]:
        """What the measures mean, once, where a check failed."""
        if not any(check["verdict"] == "fail" for check in self.collected.checks()):
            return []
        from pytest_bncheck.reports.layout import wrap
        from pytest_bncheck.reports.sentences import MEASURES

        width = self.config.get_terminal_writer().fullwidth
        return [line for text in MEASURES for line in wrap(text, hanging="  ", width=width)]

    def _annotations(self) -> Iterator[str]:
        """Commands to GitHub Actions, for what is wrong and was not expected to be."""
        if os.environ.get("GITHUB_ACTIONS") != "true":
            return
        for check in self.collected.checks():
            from pytest_bncheck.reports import github

            file, line = self.collected.places[check["nodeid"]]
            root = str(self.config.rootpath)
            file = github.in_repository(file, root, os.environ.get("GITHUB_WORKSPACE"))
            command = github.annotation(check, file, line)
            if command and not self.collected.is_expected(check):
                yield command

    @property
    def watching(self) -> Watching | None:
        """What watches the tests, in watch mode."""
        return self.config.stash.get(WATCHING, None)

    def _watch(self) -> dict[str, Any] | None:
        return None if self.watching is None else self.watching.view()

    def _watch_annotations(self) -> Iterator[str]:
        """Commands to GitHub Actions, for what watching found."""
        if os.environ.get("GITHUB_ACTIONS") != "true":
            return
        from pytest_bncheck.reports import github

        root, workspace = str(self.config.rootpath), os.environ.get("GITHUB_WORKSPACE")
        for found in (self._watch() or {"findings": []})["findings"]:
            file = github.in_repository(found["file"], root, workspace)
            yield github.watch_annotation(found, file)

    def _write(self, session: pytest.Session, kind: str, path: Path | None) -> None:
        """Write a report file; a run that cannot has failed."""
        from pytest_bncheck.reports import wire

        if path is None:
            return
        try:
            document = wire.document(self.collected.checks(), self._watch())
            if kind == "HTML":
                from pytest_bncheck.reports import html

                html.write(path, document, self.collected.is_expected)
            else:
                wire.write(path, document)
            self.written.append(f"{kind} report: {path}")
        except Exception as error:
            why = wire.reason(error)
            self.problems.append(f"the {kind} report {path} could not be written: {why}")
            if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _append(self, path: str | None) -> None:
        """Append to the step's summary; the tests are not to blame if that fails."""
        if not path:
            return
        checks, watch = self.collected.checks(), self._watch()
        if not (checks or watch):
            return
        from pytest_bncheck.reports import github, wire

        try:
            with wire.open_at_once(path, "a") as file:
                if checks:
                    file.write(github.step_summary(checks, self.collected.is_expected))
                if watch is not None:
                    file.write(github.watch_summary(watch))
        except Exception as error:
            why = wire.reason(error)
            self.problems.append(f"the step summary {path} could not be written: {why}")

    # pytest-xdist

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Tell the controller which tests make checks, in case one of them kills its worker."""
        if self.session.enabled and internals.is_worker(self.config):
            marked = [item.nodeid for item in session.items if is_marked(item)]
            internals.send_to_controller(self.config, MARKED, json.dumps(marked))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodeready(self) -> None:
        """Take in the reports of all tests: here nobody knows which of them make checks."""
        manager = self.config.pluginmanager
        if not manager.hasplugin(FROM_WORKERS):
            manager.register(FromWorkers(self), FROM_WORKERS)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take in what a worker sends when it is done; one that crashed sends nothing."""
        marked = internals.sent_by_worker(node, MARKED)
        if marked is not None:
            self.collected.learn(marked)

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport) -> None:
        """Note that a worker died in this test."""
        if self.session.enabled:
            self.collected.crashed.append(crashitem)
            self.collected.places.setdefault(crashitem, (report.location[0], 1))

    # pytest-html

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_table_html(self, report: pytest.TestReport, data: list[str]) -> None:
        """Put a test's checks above its log."""
        checks = getattr(report, ATTRIBUTE, None)
        if checks is not None:
            from pytest_bncheck.reports import summary, wire

            data[:0] = [summary.html_entry(check) for check in wire.loads(checks)]
