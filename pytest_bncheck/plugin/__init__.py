"""The hooks of pytest. Each delegates; what makes a check is in `plugin.fixtures`."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pytest_bncheck import settings
from pytest_bncheck.errors import InputError
from pytest_bncheck.plugin import fixtures, options, ranks
from pytest_bncheck.plugin.collected import Collected
from pytest_bncheck.plugin.fixtures import (  # noqa: F401  (pytest finds fixtures in a plugin's names)
    ATTEMPT,
    CURRENT,
    MARKER,
    OFF,
    Attempt,
    _bncheck_on,
    bncheck,
    bncheck_batch,
    bncheck_batches,
    bncheck_forward,
    bncheck_loss,
    bncheck_model,
    bncheck_optimizer,
    bncheck_report,
    bncheck_train_step,
)
from pytest_bncheck.plugin.options import SESSION

SIGNATURE = (
    f"{MARKER}({', '.join(settings.OPTIONS)}): "
    "train the model of the fixture bncheck_model briefly on bncheck_batch and check that it "
    "predicts in eval mode what it learned in training mode; all arguments are optional keywords"
)
NAMES = {"bncheck", __name__}
"""What users can ask pytest for: the entry point and the module."""

ATTRIBUTE = "bncheck_checks"
"""Where a test report carries the string of its checks."""


# start ------------------------------------------------------------------------------------------


def pytest_plugin_registered(plugin: object, manager: pytest.PytestPluginManager) -> None:
    """Register once: ``-p pytest_bncheck.plugin`` would collide with the entry point."""
    name = manager.get_name(plugin)
    if name in NAMES:
        for other in NAMES - {name}:
            manager.set_blocked(other)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    options.add(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare the hook for other frameworks."""
    from pytest_bncheck.plugin import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Print a rule's page instead of running tests."""
    text = config.getoption("bncheck_explain")
    if text is None:
        return None
    print(options.explain(text))
    return 0


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker always, and the hooks that check only when checks are on."""
    config.addinivalue_line("markers", SIGNATURE)
    config.stash[SESSION] = options.read(config)
    config.pluginmanager.register(Results(config), "bncheck-results")
    if config.stash[SESSION].enabled:
        config.pluginmanager.register(Checking(), "bncheck-checking")


@pytest.hookimpl(trylast=True)
def pytest_bncheck_adapters(model: Any) -> Any:
    """Keras, PyTorch, and what installed packages add."""
    from pytest_bncheck import adapters

    return adapters.search(model)


# collection -------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem(
    collector: pytest.Module | pytest.Class, name: str, obj: object
) -> Generator[None, Any, Any]:
    """Let the inputs join a marked test's fixtures, so that they can be parametrized."""
    function = getattr(obj, "__func__", obj)
    if not inspect.isfunction(function) or not _wants_inputs(collector, name, function):
        return (yield)
    with _using_inputs(collector, function):
        return (yield)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark tests that request one of the fixtures, so that ``-m bn_consistency`` selects them."""
    names = _fixturenames(item)
    if ("bncheck" in names or "bncheck_report" in names) and not _is_marked(item):
        item.add_marker(MARKER)


def _is_marked(node: pytest.Item | pytest.Collector) -> bool:
    return node.get_closest_marker(MARKER) is not None


def _fixturenames(item: pytest.Item) -> list[str]:
    return getattr(item, "fixturenames", [])


def _wants_inputs(collector: pytest.Module | pytest.Class, name: str, function: Any) -> bool:
    marked = any(
        getattr(mark, "name", None) == MARKER for mark in getattr(function, "pytestmark", [])
    )
    # Nearly every function of a suite ends here, at a tenth of the time that its signature takes.
    may_request = vars(function) or "bncheck_report" in function.__code__.co_varnames
    if not (marked or may_request or _is_marked(collector)):
        return False
    if collector.istestfunction(function, name):
        requested = inspect.signature(function).parameters
        automatic = (marked or _is_marked(collector)) and "bncheck" not in requested
        return automatic or "bncheck_report" in requested
    if marked:
        raise collector.CollectError(
            f"{MARKER} marks {name}, which is not a test. Does a mark say {MARKER}({name})? "
            f"It takes keywords only, for example {MARKER}(loss={name})."
        )
    return False


@contextmanager
def _using_inputs(collector: pytest.Module | pytest.Class, function: Any) -> Iterator[None]:
    """Put a usefixtures mark on a test function while pytest makes its items.

    Only for that while: a function can be collected several times, from a mixin for one, and the
    other classes need not be marked.
    """
    had, before = "pytestmark" in vars(function), vars(function).get("pytestmark")
    try:
        names = _input_names(collector)
    except InputError:  # Said when the test is set up: one test fails, not the whole file.
        names = ["bncheck_report"]
    marks = getattr(function, "pytestmark", [])
    function.pytestmark = [*marks, pytest.mark.usefixtures(*names).mark]
    try:
        yield
    finally:
        if had:
            function.pytestmark = before
        else:
            del function.pytestmark


def _input_names(node: pytest.Item | pytest.Collector) -> list[str]:
    return ["bncheck_model", fixtures.batch_fixture(node), "bncheck_report"]


# a test, whether checks are on or off -----------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip marked tests while checks are off; before setup, and after all marks are there."""
    if item.config.stash[SESSION].enabled:
        _prepare(item)
    elif _is_marked(item):
        item.add_marker(pytest.mark.skip(reason=OFF))


def _prepare(item: pytest.Item) -> None:
    """Validate a test's marks; let the inputs join it if collection could not do that."""
    attempt = item.stash[ATTEMPT] = Attempt(marked=_is_marked(item))
    item.config.stash[CURRENT] = item
    if not attempt.marked:
        return
    names = _fixturenames(item)
    try:
        attempt.marker = tuple(_marker_layers(item))
        fixtures.require_functions(item)
        inputs = _input_names(item)
    except InputError as error:
        attempt.pending = error
        names = fixtures.without_inputs(item, names)
    else:
        attempt.seeded = fixtures.inputs_and_what_they_need(item)
        if names and "bncheck" not in names and "bncheck_report" not in names:
            names = [*names, *inputs]
    item.fixturenames = names  # type: ignore[attr-defined]


def _marker_layers(item: pytest.Item) -> list[settings.Layer]:
    """Options of the marks: the nearest node first, and in it the last mark first.

    Within a node `iter_markers` gives the lower decorator before the upper one, and the base
    class's mark before the subclass's: the last is the one that users mean.
    """
    by_node: dict[Any, list[settings.Layer]] = {}
    for node, mark in item.iter_markers_with_node(MARKER):
        if mark.args:
            raise InputError(
                f"{MARKER} takes keywords only, but got {mark.args[0]!r} without one; "
                f"for example {MARKER}(steps=50)."
            )
        by_node.setdefault(node, []).insert(0, settings.layer(mark.kwargs, "marker"))
    return [layer for layers in by_node.values() for layer in layers]


# a test while checks are on ---------------------------------------------------------------------


class Checking:
    """The hooks that are registered only when checks are on: off means off."""

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Generator[None, Any, Any]:
        """Build the inputs from a fresh seed."""
        __tracebackhide__ = True
        item = request.config.stash.get(CURRENT, None)
        if item is None or fixturedef.argname not in item.stash[ATTEMPT].seeded:
            return (yield)
        with fixtures.seeded(item, request.scope):
            return (yield)

    @pytest.hookimpl(wrapper=True, trylast=True)  # innermost: xfail and captured logs see it
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Fail before the body if the check did; fail after it if there was none."""
        __tracebackhide__ = True
        attempt = item.stash[ATTEMPT]
        attempt.started = True
        if attempt.pending:
            _raise_at(item, attempt.pending)
        result = yield
        attempt.marked = _is_marked(item)  # A fixture or the test may have added the mark.
        if attempt.marked and not attempt.checks:
            attempt.pending = InputError(_unchecked(item))
            _raise_at(item, attempt.pending)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Attach the checks to the report of every phase, and point a failure at the test."""
        if not _is_ours(item, call):
            return (yield)
        _note_missing_check(item, call)
        _point_at_test(item, call)
        _set_properties(item)
        report = yield
        _attach(item, report)
        _summarise(call, report)
        return report


def _is_ours(item: pytest.Item, call: pytest.CallInfo[None]) -> bool:
    """Whether a phase can have anything of a check, told quickly: most phases have not."""
    attempt = item.stash.get(ATTEMPT, None)
    return bool(
        call.excinfo
        or item.user_properties  # A rerun may have to take ours away.
        or (attempt and (attempt.marked or attempt.checks))
    )


def _raise_at(item: pytest.Item, error: Exception) -> None:
    """Raise `error` from the line of the test, where a user looks for it, in every ``--tb``."""
    __tracebackhide__ = True
    path, line, _ = item.reportinfo()

    def fail() -> None:
        raise error.with_traceback(None)

    # Lines are counted from the `def`, which stands above the one that raises.
    fail.__code__ = fail.__code__.replace(
        co_filename=str(path), co_firstlineno=line or 0, co_name=item.name
    )
    fail()


def _unchecked(item: pytest.Item) -> str:
    if "bncheck" in _fixturenames(item):
        return "this test requested bncheck but made no check; call bncheck(model, batch)."
    return f"this test is marked {MARKER}, but a {type(item).__name__} cannot be checked."


def _point_at_test(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Cut the frames of pytest and of the plugin off a failure that `_raise_at` raised."""
    attempt = item.stash.get(ATTEMPT, None)
    error = attempt.pending if attempt else None
    if error is None or call.excinfo is None or call.excinfo.value is not error:
        return
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    call.excinfo = pytest.ExceptionInfo.from_exception(error.with_traceback(last))


def _note_missing_check(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """A marked test that ended without a check has an entry that says why."""
    attempt = item.stash.get(ATTEMPT, None)
    error = call.excinfo.value if call.excinfo else None
    expected = isinstance(error, (pytest.skip.Exception, pytest.xfail.Exception))
    failed = isinstance(error, (Exception, pytest.fail.Exception)) and not expected
    if attempt and failed and error and not attempt.checks and _is_marked(item):
        attempt.checks.append(fixtures.no_check(error, nodeid=item.nodeid))


def _set_properties(item: pytest.Item) -> None:
    """On the item, not on the report: JUnit reads them from the report of the teardown."""
    from pytest_bncheck.reports import wire

    attempt = item.stash.get(ATTEMPT, None)
    own = wire.properties(attempt.checks) if attempt else []
    others = [each for each in item.user_properties if not each[0].startswith("bncheck_")]
    item.user_properties[:] = [*others, *own]


def _attach(item: pytest.Item, report: pytest.TestReport) -> None:
    from pytest_bncheck.reports import wire

    attempt = item.stash.get(ATTEMPT, None)
    if attempt is not None and (attempt.checks or _is_marked(item)):
        setattr(report, ATTRIBUTE, wire.dumps(attempt.checks))


def _summarise(call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
    """Keep the first line of a failing check for the short summary, and the rest for the failure.

    With ``-vv`` and on a CI system pytest repeats the whole message there.
    """
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None and call.excinfo and fixtures.is_failure(call.excinfo.value):
        crash.message = crash.message.partition("\n")[0]


# results ----------------------------------------------------------------------------------------


class Results:
    """Collects the checks of all tests, from all processes, and reports them at the end."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.session = config.stash[SESSION]
        self.collected = Collected()
        self.skipped = 0
        self.said: list[str] = []
        self.problems: list[str] = []

    def pytest_report_header(self) -> str | None:
        """Say that models are trained, and with which options."""
        return options.header(self.session) if self.session.enabled else None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the latest string of each test; a rerun replaces what it repeats."""
        if report.skipped and isinstance(report.longrepr, tuple) and OFF in report.longrepr[2]:
            self.skipped += 1
        if report.failed:
            self.collected.failed.add(report.nodeid)
        if hasattr(report, ATTRIBUTE):
            self.collected.texts[report.nodeid] = getattr(report, ATTRIBUTE)
            file, line, _ = report.location
            self.collected.places[report.nodeid] = file, (line or 0) + 1

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the files, where there was a run."""
        option = self.config.option
        ran = exitstatus != pytest.ExitCode.USAGE_ERROR
        ran = ran and not (option.collectonly or option.setuponly or option.setupplan)
        reports = self.session.enabled and ranks.is_first()
        if ran and reports and not hasattr(self.config, "workerinput"):
            self._write(session, "JSON", self.session.json)
            self._write(session, "HTML", self.session.html)
            self._append(os.environ.get("GITHUB_STEP_SUMMARY"))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """A few lines for each check, or one that says how many tests were skipped."""
        if not ranks.is_first():
            return
        quiet = self.config.option.verbose < 0
        entries = list(self._entries())
        lines = [*([] if quiet else self.said), *self.problems]
        if entries or lines:
            terminalreporter.write_sep("=", "bncheck")
        for (word, *rest), colour in entries:
            terminalreporter.write(word[:5], **{colour: True})
            for line in (word[5:], *rest):
                terminalreporter.write_line(line)
        for line in [*lines, *self._annotations()]:
            terminalreporter.write_line(line)
        if self.skipped:
            from pytest_bncheck.reports.layout import count

            tests = count(self.skipped, "test")
            terminalreporter.write_line(f"bncheck: {tests} skipped; --bncheck runs them.")

    def pytest_unconfigure(self) -> None:
        """Let the process that reports come to its end first."""
        if self.session.enabled:
            ranks.wait_for_first()

    def _entries(self) -> Iterator[tuple[list[str], str]]:
        """The lines of each check, and the colour of the first word."""
        verbosity = self.config.option.verbose
        width = self.config.get_terminal_writer().fullwidth
        for check in self.collected.checks():
            from pytest_bncheck.reports import summary

            expected = self.collected.is_expected(check)
            lines = summary.entry(check, verbosity=verbosity, width=width, expected=expected)
            if lines:
                yield lines, "yellow" if expected else summary.COLOURS[check["verdict"]]

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

    def _write(self, session: pytest.Session, kind: str, path: Path | None) -> None:
        from pytest_bncheck.reports import wire

        if path is None:
            return
        document = wire.document(self.collected.checks())
        try:
            if kind == "HTML":
                from pytest_bncheck.reports import html

                html.write(path, document, self.collected.is_expected)
            else:
                wire.write(path, document)
            self.said.append(f"{kind} report: {path}")
        except OSError as error:
            self.problems.append(f"the {kind} report {path} could not be written: {error}")
            if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _append(self, path: str | None) -> None:
        """The step's summary; that it cannot be written is no fault of the tests."""
        checks = self.collected.checks()
        if not path or not checks:
            return
        from pytest_bncheck.reports import github

        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(github.step_summary(checks, self.collected.is_expected))
        except OSError as error:
            self.problems.append(f"the step summary {path} could not be written: {error}")

    # pytest-xdist

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Tell the controller which tests make checks, in case one of them kills its worker."""
        if self.session.enabled and hasattr(self.config, "workeroutput"):
            marked = [item.nodeid for item in session.items if _is_marked(item)]
            self.config.workeroutput["bncheck_marked"] = json.dumps(marked)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """What a worker says when it is done; one that crashed says nothing."""
        marked = getattr(node, "workeroutput", {}).get("bncheck_marked")
        if marked is not None:
            self.collected.learn(marked)

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport) -> None:
        """A worker died in this test."""
        if self.session.enabled:
            self.collected.crashed.append(crashitem)
            self.collected.places.setdefault(crashitem, (report.location[0], 1))

    # pytest-html

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_table_html(self, report: pytest.TestReport, data: list[str]) -> None:
        """A test's checks above its log."""
        checks = getattr(report, ATTRIBUTE, None)
        if checks is not None:
            from pytest_bncheck.reports import summary, wire

            data[:0] = [summary.html_entry(check) for check in wire.loads(checks)]
