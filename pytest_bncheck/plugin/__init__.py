"""The hooks of pytest. Each delegates to a module of this package, the only one that knows pytest.

`marks` and `collection` decide which tests are checked, `fixtures` and `attempt` make the checks,
`failing` shapes their failures, and `results` reports them.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator
from typing import Any

import pytest

from pytest_bncheck.plugin import attempt as attempts
from pytest_bncheck.plugin import collection, failing, internals, marks, options, results
from pytest_bncheck.plugin.attempt import ATTEMPT, CURRENT
from pytest_bncheck.plugin.definitions import REQUESTED
from pytest_bncheck.plugin.fixtures import (  # noqa: F401  (pytest finds fixtures in a plugin's names)
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
from pytest_bncheck.plugin.options import OFF, SESSION, WATCHING

NAMES = {"bncheck", __name__}
"""What users can ask pytest for: the entry point and the module."""


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
    config.addinivalue_line("markers", marks.SIGNATURE)
    config.stash[SESSION] = options.read(config)
    config.pluginmanager.register(results.Results(config), "bncheck-results")
    if config.stash[SESSION].enabled:
        config.pluginmanager.register(Checking(), "bncheck-checking")
    if config.stash[SESSION].watch:
        from pytest_bncheck.plugin import watching

        config.stash[WATCHING] = watching.Watching(config)
        config.pluginmanager.register(config.stash[WATCHING], "bncheck-watching")
    if config.stash[SESSION].targets:
        config.pluginmanager.register(Targets(), "bncheck-targets")


@pytest.hookimpl(trylast=True)
def pytest_bncheck_adapters(model: Any) -> Any:
    """Keras, PyTorch, and what installed packages add."""
    from pytest_bncheck import adapters

    return adapters.search(model)


# whether checks are on or off -------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem(
    collector: pytest.Module | pytest.Class, name: str, obj: object
) -> Generator[None, Any, Any]:
    """Let the inputs join a marked test's fixtures, so that they can be parametrized."""
    function = getattr(obj, "__func__", obj)
    if inspect.isfunction(function) and collection.wants_inputs(collector, name, function):
        with collection.using_inputs(collector, function):
            return (yield)
    return (yield)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark tests that request one of the fixtures, so that ``-m bn_consistency`` selects them."""
    names = internals.fixture_names(item)
    if any(name in names for name in REQUESTED) and not marks.is_marked(item):
        item.add_marker(marks.MARKER)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip marked tests while checks are off; before setup, and after all marks are there."""
    if item.config.stash[SESSION].enabled:
        collection.prepare(item)
    elif marks.is_marked(item):
        item.add_marker(pytest.mark.skip(reason=OFF))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Skip a test that a fixture marked, too, while checks are off."""
    if not item.config.stash[SESSION].enabled and marks.is_marked(item):
        pytest.skip(OFF)


# while checks are on ----------------------------------------------------------------------------


class Checking:
    """The hooks that are registered only when checks are on: off means off."""

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
            failing.raise_at_test_line(item, attempt.pending)
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


# models without test code -----------------------------------------------------------------------


class Targets:
    """The hook that is registered only where ``--bncheck-model`` names models."""

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """Let the models join what the session collects, one test each."""
        report = yield
        if isinstance(collector, pytest.Session) and report.passed:
            from pytest_bncheck.plugin import targets

            report.result = [*report.result, targets.collector(collector)]
        return report
