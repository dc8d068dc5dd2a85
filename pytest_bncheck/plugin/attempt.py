"""One attempt at one test, and the checks that it makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from pytest_bncheck import settings
from pytest_bncheck.errors import InputError, users_error
from pytest_bncheck.plugin import definitions, failing, internals, marks
from pytest_bncheck.plugin.marks import MARKER, REQUESTED, is_marked
from pytest_bncheck.plugin.stash import ATTEMPT, SESSION, WATCHING

if TYPE_CHECKING:  # The dataclasses of a report take milliseconds, at the start of every run.
    from pytest_bncheck.report import Report
    from pytest_bncheck.types import Recipe, Settings


INPUTS = frozenset(definitions.INPUTS)
"""What is built from a fresh seed in every test, marked or not."""


@dataclass
class Attempt:
    """What the plugin knows about one attempt at one test.

    Attributes
    ----------
    marker
        The options of the test's marks, nearest first.
    checks
        The JSON objects of its checks so far.
    pending
        Raised in the call phase, before the body, so that the test is FAILED and not ERROR.
    started
        Whether the call phase has begun; a failing check then raises at once.
    seeded
        The fixtures that are built from a fresh seed.
    """

    marker: tuple[settings.Source, ...] = ()
    checks: list[dict[str, Any]] = field(default_factory=list)
    pending: BaseException | None = None
    started: bool = False
    seeded: frozenset[str] = INPUTS


def begin(item: pytest.Item) -> None:
    """Validate a test's marks; let the inputs join it if collection could not do that."""
    attempt = item.stash[ATTEMPT] = Attempt()
    if not is_marked(item):
        return
    names = internals.fixture_names(item)
    try:
        attempt.marker = marks.sources(item)
        definitions.require_functions(item)
        inputs = definitions.input_names(item)
    except InputError as error:
        attempt.pending = error
        names = definitions.without_inputs(item, names)
    else:
        attempt.seeded = definitions.inputs_and_what_they_need(item)
        if names and REQUESTED.isdisjoint(names):
            names = [*names, *inputs]
    internals.set_fixture_names(item, names)


# one check --------------------------------------------------------------------------------------


def run_check(
    item: pytest.Item,
    model: Any,
    batch: Any,
    batches: Any,
    options: Mapping[str, Any],
    functions: Mapping[str, Any],
) -> Report:
    """Make one check, and keep its result for the report files, whatever it is.

    Parameters
    ----------
    item
        The test that asks for it.
    model, batch, batches
        As `pytest_bncheck.check` takes them.
    options
        The keywords of the call.
    functions
        What the optional fixtures returned, by their names.
    """
    __tracebackhide__ = True
    from pytest_bncheck import adapters
    from pytest_bncheck.experiment import engine
    from pytest_bncheck.experiment.batches import gather
    from pytest_bncheck.plugin import screen

    attempt = item.stash[ATTEMPT]
    nodeid, index, seed = item.nodeid, len(attempt.checks), 0
    try:
        merged, recipe = _merged(item, options, functions)
        seed = merged.seed
        gathered = gather(batch, batches, seed)
        found = item.ihook.pytest_bncheck_adapters(model=model)
        adapter = adapters.require(found, model)
        watching = item.config.stash.get(WATCHING, None)
        away = nullcontext() if watching is None else watching.paused()
        with away, screen.progress(item) as progress:
            report = engine.run(model, gathered, merged, recipe, adapter, progress)
        report = dataclasses.replace(report, nodeid=nodeid, index=index)
        attempt.checks.append(report.to_dict())
    except BaseException as error:
        if not _is_failure(error):
            raise
        own = users_error(error)
        attempt.checks.append(_no_check(own, nodeid=nodeid, index=index, seed=seed))
        if own is error:
            raise
    else:
        return report
    raise own


def _merged(
    item: pytest.Item, options: Mapping[str, Any], functions: Mapping[str, Any]
) -> tuple[Settings, Recipe]:
    """Call over marker over fixture over command line over ini file."""
    sources = [
        settings.source(options, "call"),
        *item.stash[ATTEMPT].marker,
        *(
            settings.source({name.removeprefix("bncheck_"): value}, f"fixture {name}")
            for name, value in functions.items()
        ),
        *item.config.stash[SESSION].sources,
    ]
    return settings.merge(*sources), settings.recipe(*sources)


def seeded_names(item: pytest.Item) -> frozenset[str]:
    """The fixtures of a test that are built from a fresh seed."""
    return item.stash[ATTEMPT].seeded if ATTEMPT in item.stash else INPUTS


@contextmanager
def seeded(item: pytest.Item, scope: str) -> Iterator[None]:
    """Build an input of `item`, a fixture of this scope, from the seed of its check."""
    from pytest_bncheck.adapters import random_state

    sources = item.config.stash[SESSION].sources
    # A fixture that several tests share must not depend on which of them comes first.
    own = scope == "function" and ATTEMPT in item.stash
    marker = item.stash[ATTEMPT].marker if own else ()
    with random_state.seeded(settings.merge(*marker, *sources).seed):
        yield


# none -------------------------------------------------------------------------------------------


def _no_check(error: BaseException, **place: Any) -> dict[str, Any]:
    """The entry of a check that could not be made."""
    from pytest_bncheck.report import Report

    error = failing.reason(error)
    try:
        text = str(error)
    except Exception:  # The user's exception cannot be printed, and pytest has to go on.
        text = "<exception str() failed>"  # Python's words
    text = f"{type(error).__name__}: {text}"
    return Report(verdict="error", error=text, **place).to_dict()


def _is_failure(error: BaseException) -> bool:
    """Whether an exception makes a test fail: it neither skips, excuses nor ends the run."""
    others = (pytest.skip.Exception, pytest.xfail.Exception, pytest.exit.Exception)
    return not isinstance(error, (KeyboardInterrupt, *others))


def require_check(item: pytest.Item) -> None:
    """Fail a marked test that has come to its end without a check."""
    __tracebackhide__ = True
    attempt = item.stash[ATTEMPT]
    if attempt.checks or not is_marked(item):  # The test may have added the mark.
        return
    if "bncheck" in internals.fixture_names(item):
        text = "this test requested bncheck but made no check; call bncheck(model, batch)."
    else:
        text = (
            f"this test is marked {MARKER}, but no check was made: a mark that a fixture adds "
            "comes too late, a fixture called bncheck_report replaces the plugin's, and of items "
            f"of type {type(item).__name__} only functions can be checked."
        )
    attempt.pending = InputError(text)
    failing.raise_at_test_line(item, attempt.pending)


def end_phase(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Note a check that could not be made, and point the failure at the test."""
    attempt = item.stash.get(ATTEMPT, None)
    if attempt is not None:
        _note_missing_check(item, attempt, call)
        failing.point_at_test_line(call, attempt.pending)


def _note_missing_check(item: pytest.Item, attempt: Attempt, call: pytest.CallInfo[None]) -> None:
    """Give a marked test that failed without a check an entry that says why."""
    error = call.excinfo.value if call.excinfo else None
    if error and _is_failure(error) and not attempt.checks and is_marked(item):
        attempt.checks.append(_no_check(error, nodeid=item.nodeid))
