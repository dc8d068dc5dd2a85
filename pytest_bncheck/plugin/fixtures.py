"""The fixtures, and how they make the checks of one test."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pytest_bncheck import settings
from pytest_bncheck.api import gather
from pytest_bncheck.errors import InputError
from pytest_bncheck.plugin.options import SESSION

if TYPE_CHECKING:  # The dataclasses of a report take milliseconds, at the start of every run.
    from pytest_bncheck.report import Report
    from pytest_bncheck.types import Recipe, Settings

MARKER = "bn_consistency"
OFF = "checks train models and are off; turn them on with --bncheck"

# What each optional fixture returns, for whoever wrote the function itself as the fixture.
FUNCTIONS = {
    "bncheck_loss": "loss(outputs, targets)",
    "bncheck_optimizer": "optimizer(params)",
    "bncheck_train_step": "train_step(model, batch)",
    "bncheck_forward": "forward(model, batch)",
}
REASON = "bncheck_reason"
"""Where a failure without a traceback keeps the error that it stands for."""

INPUTS = ("bncheck_model", "bncheck_batch", "bncheck_batches", *FUNCTIONS)


@dataclass
class Attempt:
    """What the plugin knows about one attempt at one test.

    Attributes
    ----------
    marker
        The options of the test's marks, nearest first.
    marked
        Whether the test is to be checked.
    checks
        The JSON objects of its checks so far.
    pending
        Raised in the call phase, before the body, so that the test is FAILED and not ERROR.
    started
        Whether the call phase has come so far; from then on a failing check raises at once.
    seeded
        The fixtures that are built from a fresh seed.
    """

    marker: tuple[settings.Layer, ...] = ()
    marked: bool = False
    checks: list[dict[str, Any]] = field(default_factory=list)
    pending: Exception | None = None
    started: bool = False
    seeded: frozenset[str] = frozenset(INPUTS)


ATTEMPT = pytest.StashKey[Attempt]()
CURRENT = pytest.StashKey[pytest.Item]()


# what users override ----------------------------------------------------------------------------


@pytest.fixture
def bncheck_model() -> Any:
    """Override this fixture: it returns the model to check."""
    _refuse(_override("bncheck_model", "build_model()"))


@pytest.fixture
def bncheck_batch() -> Any:
    """Override this fixture: it returns the batch to train on, ``(inputs, targets)``."""
    _refuse(_override("bncheck_batch", "inputs, targets"))


@pytest.fixture
def bncheck_batches(bncheck_batch: Any) -> Any:
    """Override this fixture instead of `bncheck_batch` to train on several mini-batches."""
    return [bncheck_batch]


@pytest.fixture
def bncheck_loss() -> Any:
    """Override this fixture if needed: it returns the function ``loss(outputs, targets)``."""
    return None


@pytest.fixture
def bncheck_optimizer() -> Any:
    """Override this fixture if needed: it returns the function ``optimizer(params)``."""
    return None


@pytest.fixture
def bncheck_train_step() -> Any:
    """Override this fixture if needed: it returns the function ``train_step(model, batch)``.

    The function makes the whole step and returns the loss.
    """
    return None


@pytest.fixture
def bncheck_forward() -> Any:
    """Override this fixture if needed: it returns the function ``forward(model, batch)``.

    The function returns the model's outputs.
    """
    return None


# what users request -----------------------------------------------------------------------------


@pytest.fixture
def _bncheck_on(request: pytest.FixtureRequest) -> None:
    """Skips while checks are off; comes first, before anything expensive."""
    if not request.config.stash[SESSION].enabled:
        pytest.skip(OFF)


@pytest.fixture
def bncheck(
    _bncheck_on: None,
    request: pytest.FixtureRequest,
    bncheck_loss: Any,
    bncheck_optimizer: Any,
    bncheck_train_step: Any,
    bncheck_forward: Any,
) -> Callable[..., Report]:
    """Check a model: ``bncheck(model, batch, steps=50)``.

    Takes what `pytest_bncheck.check` takes, returns the report, and raises
    `pytest_bncheck.CheckFailed` if the verdict is fail.
    """
    functions = _functions(locals())

    def check(model: Any, batch: Any = None, *, batches: Any = None, **options: Any) -> Report:
        __tracebackhide__ = True
        try:
            report = _run(request.node, model, batch, batches, options, functions)
        except InputError as error:
            # The way through the plugin and the adapter says nothing to the caller.
            raise error.with_traceback(None) from None
        if not report.ok:
            raise _failure(report)
        return report

    return check


@pytest.fixture
def bncheck_report(
    _bncheck_on: None,
    request: pytest.FixtureRequest,
    bncheck_model: Any,
    bncheck_loss: Any,
    bncheck_optimizer: Any,
    bncheck_train_step: Any,
    bncheck_forward: Any,
) -> Report | None:
    """The report on `bncheck_model`; a failing check fails the test before its body."""
    __tracebackhide__ = True
    functions = _functions(locals())
    item, attempt = request.node, request.node.stash[ATTEMPT]
    try:
        source = batch_fixture(item)
        value = request.getfixturevalue(source)
        if request.config.option.setuponly:
            return None
        batch, batches = (value, None) if source == "bncheck_batch" else (None, value)
        report = _run(item, bncheck_model, batch, batches, {}, functions)
    except InputError as error:
        _refuse(error)
    if not report.ok:
        if attempt.started:
            raise _failure(report)
        attempt.pending = _failure(report)
    return report


# one check --------------------------------------------------------------------------------------


def _run(
    item: pytest.Item, model: Any, batch: Any, batches: Any, options: Any, functions: Any
) -> Report:
    """Make one check, and keep its result for the report files, whatever it is."""
    __tracebackhide__ = True
    from pytest_bncheck import adapters
    from pytest_bncheck.experiment import engine
    from pytest_bncheck.plugin import screen

    attempt = item.stash[ATTEMPT]
    nodeid, index, seed = item.nodeid, len(attempt.checks), 0
    try:
        merged, recipe = _options(item, options, functions)
        seed = merged.seed
        gathered = gather(batch, batches, seed)
        found = item.ihook.pytest_bncheck_adapters(model=model)
        adapter = adapters.require(found, model)
        with screen.progress(item.config) as progress:
            report = engine.run(model, gathered, merged, recipe, adapter, progress)
        report = dataclasses.replace(report, nodeid=nodeid, index=index)
        attempt.checks.append(report.to_dict())
    except Exception as error:
        attempt.checks.append(no_check(error, nodeid=nodeid, index=index, seed=seed))
        raise
    return report


def _failure(report: Report) -> Exception:
    from pytest_bncheck.report import CheckFailed

    return CheckFailed(report)


def is_failure(error: BaseException) -> bool:
    """Whether a check raised this because its verdict is fail."""
    from pytest_bncheck.report import CheckFailed

    return isinstance(error, CheckFailed)


def no_check(error: BaseException, **place: Any) -> dict[str, Any]:
    """The entry of a check that could not be made."""
    from pytest_bncheck.report import Report

    error = getattr(error, REASON, error)  # from `_refuse`
    try:
        text = str(error)
    except Exception:  # of the user's own making, and then pytest has to go on
        text = "<exception str() failed>"  # Python's words
    text = f"{type(error).__name__}: {text}"
    return Report(verdict="error", error=text, **place).to_dict()


def _options(
    item: pytest.Item, options: dict[str, Any], functions: dict[str, Any]
) -> tuple[Settings, Recipe]:
    """Call over marker over fixture over command line over ini file."""
    layers = [settings.layer(options, "call"), *item.stash[ATTEMPT].marker]
    layers += [
        settings.layer({name.removeprefix("bncheck_"): value}, f"fixture {name}")
        for name, value in functions.items()
    ]
    layers += item.config.stash[SESSION].layers
    return settings.merge(*layers), settings.recipe(*layers)


def _functions(values: dict[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in FUNCTIONS}


def _refuse(error: InputError) -> NoReturn:
    """End a fixture with one message and no traceback of the plugin's own."""
    failure = pytest.fail.Exception(str(error), pytrace=False)
    setattr(failure, REASON, error)
    raise failure from None  # or pytest would print the same text twice


def _override(name: str, value: str) -> InputError:
    return InputError(
        f"this test needs the fixture {name}; override it in conftest.py or beside the test:\n\n"
        f"    @pytest.fixture\n    def {name}():\n        return {value}\n"
    )


# fixture definitions ----------------------------------------------------------------------------


def definition(node: pytest.Item | pytest.Collector, name: str) -> Any:
    """The definition of a fixture that is nearest to `node`, or None.

    pytest has no public way to ask.
    """
    place: Any = node if pytest.version_tuple >= (8, 1) else node.nodeid
    found = node.session._fixturemanager.getfixturedefs(name, place)
    return found[-1] if found else None


def batch_fixture(node: pytest.Item | pytest.Collector) -> str:
    """The one of `bncheck_batch` and `bncheck_batches` that is overridden nearer to `node`.

    Raises
    ------
    InputError
        If both are overridden in the same place.
    """
    one, many = _nearness(node, "bncheck_batch"), _nearness(node, "bncheck_batches")
    if one == many >= 0:
        raise InputError(
            "bncheck_batch and bncheck_batches are both overridden in the same place; "
            "remove one of them."
        )
    return "bncheck_batch" if one > many >= 0 else "bncheck_batches"


def _nearness(node: pytest.Item | pytest.Collector, name: str) -> int:
    """How deep in the collection tree a fixture is overridden; -1 if it is not."""
    found = definition(node, name)
    if found is None or found.func.__module__ == __name__:
        return -1
    # Not the length of the path: a conftest.py at the root may have "", ".", or another name.
    depths = [d for d, parent in enumerate(node.listchain()) if parent.nodeid == found.baseid]
    return depths[-1] if depths else 0


def require_functions(item: pytest.Item) -> None:
    """Find the fixture that was written as the function it should return.

    Raises
    ------
    InputError
        pytest itself would say that a fixture called "outputs" is not found.
    """
    for name, signature in FUNCTIONS.items():
        found = definition(item, name)
        wanted = found.argnames if found is not None else ()
        unknown = [arg for arg in wanted if arg != "request" and definition(item, arg) is None]
        if unknown:
            raise InputError(
                f"the fixture {name} asks for {', '.join(unknown)}, which is no fixture. It takes "
                f"no such arguments and returns the function {signature} instead:\n\n"
                f"    @pytest.fixture\n    def {name}():\n"
                f"        def {signature}:\n            ...\n"
                f"        return {signature.partition('(')[0]}\n"
            )


def without_inputs(item: pytest.Item, names: list[str]) -> list[str]:
    """The fixtures of a test that will fail before its body, without what would be expensive."""
    ours = {*INPUTS, "bncheck", "bncheck_report"}
    return [name for name in names if name not in ours and definition(item, name) is not None]


# seeding ----------------------------------------------------------------------------------------


def inputs_and_what_they_need(item: pytest.Item) -> frozenset[str]:
    """The names of all fixtures that a model or a batch is built from."""
    names: set[str] = set()
    queue = list(INPUTS)
    while queue:
        name = queue.pop()
        found = definition(item, name)
        if name not in names and found is not None:
            names.add(name)
            queue += found.argnames
    return frozenset(names)


@contextmanager
def seeded(item: pytest.Item, scope: str) -> Iterator[None]:
    """Build an input of `item` from the seed of its check."""
    from pytest_bncheck.adapters import random_state

    layers = item.config.stash[SESSION].layers
    # A fixture that several tests share must not depend on which of them comes first.
    own = item.stash[ATTEMPT].marker if scope == "function" else ()
    with random_state.seeded(settings.merge(*own, *layers).seed):
        yield
