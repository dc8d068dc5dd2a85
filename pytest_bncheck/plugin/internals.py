"""What the plugin takes from pytest that pytest does not promise to keep.

No other file touches it, so that a release of pytest that changes it is answered here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import pytest

from pytest_bncheck import __version__
from pytest_bncheck.errors import InputError

# fixtures ---------------------------------------------------------------------------------------


class Definition(NamedTuple):
    """How a fixture is defined.

    Attributes
    ----------
    module
        Name of the module that holds its function, or None.
    arguments
        Names of the fixtures that it asks for.
    place
        Id of the node of the collection tree that it is defined in.
    """

    module: str | None
    arguments: tuple[str, ...]
    place: str


def definition(node: pytest.Item | pytest.Collector, name: str) -> Definition | None:
    """The definition of a fixture that is nearest to `node`, or None.

    Raises
    ------
    InputError
        If this pytest does not answer.
    """
    place: Any = node if pytest.version_tuple >= (8, 1) else node.nodeid
    try:
        found = node.session._fixturemanager.getfixturedefs(name, place)
        if not found:
            return None
        nearest = found[-1]
        module = getattr(nearest.func, "__module__", None)
        return Definition(module, tuple(nearest.argnames), nearest.baseid)
    except AttributeError as error:
        raise InputError(
            f"pytest {pytest.__version__} is not supported by pytest-bncheck {__version__}; "
            f"it lacks {error.name}."
        ) from None


def fixture_names(item: pytest.Item) -> list[str]:
    """The names of all fixtures that a test uses; none for what is not a function."""
    return getattr(item, "fixturenames", [])


def parameters(item: pytest.Item) -> list[str]:
    """The names that ``parametrize`` gives values to in a test."""
    return list(getattr(getattr(item, "callspec", None), "params", ()))


def set_fixture_names(item: pytest.Item, names: list[str]) -> None:
    """Make a test use these fixtures; only before its setup."""
    item.fixturenames = names  # type: ignore[attr-defined]


# functions and their marks ----------------------------------------------------------------------


def is_test(collector: pytest.Module | pytest.Class, function: Any, name: str) -> bool:
    """Whether `collector` makes a test of a function."""
    return bool(collector.istestfunction(function, name))


def marks(function: Any) -> list[Any]:
    """The marks that a function carries itself."""
    return getattr(function, "pytestmark", [])


@contextmanager
def added_mark(function: Any, mark: pytest.Mark) -> Iterator[None]:
    """Let a function carry one more mark for a while."""
    had, before = "pytestmark" in vars(function), vars(function).get("pytestmark")
    function.pytestmark = [*marks(function), mark]
    try:
        yield
    finally:
        if had:
            function.pytestmark = before
        else:
            del function.pytestmark


# reports ----------------------------------------------------------------------------------------


def skip_reason(report: pytest.TestReport) -> str:
    """Why a test was skipped; empty if it was not."""
    place = report.longrepr  # for a skipped test: file, line and reason
    return str(place[2]) if report.skipped and isinstance(place, tuple) else ""


def shorten_crash(report: pytest.TestReport) -> None:
    """Keep only the first line of what the short summary says about a failure."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        crash.message = crash.message.partition("\n")[0]


# the terminal -----------------------------------------------------------------------------------


def owns_terminal(config: pytest.Config) -> bool:
    """Whether stdout is a terminal and pytest keeps everything else from it during a test.

    Not with ``-s``, ``--capture=tee-sys`` and live logs, which write the user's lines there.
    """
    manager, option = config.pluginmanager, config.option
    # The reporter knows: stdout itself is captured while this is asked.
    reporter = manager.getplugin("terminalreporter")
    live_logs = manager.hasplugin("logging-plugin") and (
        option.log_cli_level is not None or config.getini("log_cli")
    )
    return (
        getattr(reporter, "isatty", False)
        and manager.hasplugin("capturemanager")
        and option.capture in ("fd", "sys")
        and not live_logs
    )


def uncaptured(config: pytest.Config) -> AbstractContextManager[None]:
    """Lets what is written reach the terminal."""
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    if capture is None:
        return nullcontext()
    disabled: AbstractContextManager[None] = capture.global_and_fixture_disabled()
    return disabled


def write_line(config: pytest.Config, text: str) -> None:
    """Print a line of its own while a test runs."""
    reporter: Any = config.pluginmanager.getplugin("terminalreporter")
    if reporter is not None:
        with uncaptured(config):
            reporter.ensure_newline()
            reporter.write_line(text)
            reporter.flush()


# pytest-xdist -----------------------------------------------------------------------------------


def is_worker(config: pytest.Config) -> bool:
    """Whether this is a worker process of pytest-xdist."""
    return hasattr(config, "workerinput")


def send_to_controller(config: pytest.Config, key: str, text: str) -> None:
    """Send a string from a worker process when it ends; from another process, nothing."""
    if hasattr(config, "workeroutput"):
        config.workeroutput[key] = text


def sent_by_worker(node: Any, key: str) -> str | None:
    """The string that a worker process sent; None from one that crashed."""
    text: str | None = getattr(node, "workeroutput", {}).get(key)
    return text
