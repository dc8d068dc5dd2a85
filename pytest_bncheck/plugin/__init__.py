"""The hooks of pytest. Each delegates to a module of this package, the only one that knows pytest.

`marks` and `collection` decide which tests are checked. Then `skipping` has the hooks of a run
without checks, and `checking` those of one with: off means off, so the other is not even imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator
from typing import Any

import pytest

from pytest_bncheck.plugin import marks, options
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
from pytest_bncheck.plugin.stash import CHECKING, RESULTS, SESSION, WATCHING

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
    session = config.stash[SESSION] = options.read(config)
    register = config.pluginmanager.register
    if session.enabled or session.watch:
        from pytest_bncheck.plugin import results

        config.stash[RESULTS] = results.Results(config)
        register(config.stash[RESULTS], "bncheck-results")
    if session.enabled:
        from pytest_bncheck.plugin import checking

        config.stash[CHECKING] = checking.Checking(config)
        register(config.stash[CHECKING], "bncheck-checking")
    else:
        from pytest_bncheck.plugin import skipping

        register(skipping.Skipping(), "bncheck-skipping")
    if session.watch:
        from pytest_bncheck.plugin import watching

        config.stash[WATCHING] = watching.Watching(config)
        register(config.stash[WATCHING], "bncheck-watching")
    if session.targets:
        register(Targets(), "bncheck-targets")


@pytest.hookimpl(trylast=True)
def pytest_bncheck_adapters(model: Any) -> Any:
    """Keras, PyTorch, and what installed packages add."""
    from pytest_bncheck import adapters

    return adapters.search(model)


# collection ---------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem(
    collector: pytest.Module | pytest.Class, name: str, obj: object
) -> Generator[None, Any, Any]:
    """Let the inputs join a marked test's fixtures, so that they can be parametrized."""
    function = getattr(obj, "__func__", obj)
    if inspect.isfunction(function) and marks.may_concern(collector, function):
        from pytest_bncheck.plugin import collection

        if collection.wants_inputs(collector, name, function):
            with collection.using_inputs(collector, function):
                return (yield)
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that request one of the fixtures, so that ``-m bn_consistency`` selects them."""
    if not items:  # and import nothing
        return
    from pytest_bncheck.plugin import internals

    for item in items:
        requests = not marks.REQUESTED.isdisjoint(internals.fixture_names(item))
        if requests and not marks.is_marked(item):
            item.add_marker(marks.MARKER)


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
