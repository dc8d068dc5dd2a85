"""The fixtures: what users override, and what they request.

What makes a check is imported where one is made, so that a run without checks starts quickly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pytest_bncheck.errors import InputError
from pytest_bncheck.plugin.options import OFF
from pytest_bncheck.plugin.stash import CHECKING, SESSION

if TYPE_CHECKING:  # The dataclasses of a report take milliseconds, at the start of every run.
    from pytest_bncheck.report import Report


# what users override ----------------------------------------------------------------------------


@pytest.fixture
def bncheck_model() -> Any:
    """Override this fixture: it returns the model to check."""
    _not_overridden("bncheck_model", "build_model()")


@pytest.fixture
def bncheck_batch() -> Any:
    """Override this fixture: it returns the batch to train on, ``(inputs, targets)``."""
    _not_overridden("bncheck_batch", "inputs, targets")


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
    functions = {
        "bncheck_loss": bncheck_loss,
        "bncheck_optimizer": bncheck_optimizer,
        "bncheck_train_step": bncheck_train_step,
        "bncheck_forward": bncheck_forward,
    }
    request.config.stash[CHECKING].attempt(request.node)

    def check(model: Any, batch: Any = None, *, batches: Any = None, **options: Any) -> Report:
        __tracebackhide__ = True
        from pytest_bncheck.plugin.attempt import run_check
        from pytest_bncheck.plugin.failing import check_failed

        try:
            report = run_check(request.node, model, batch, batches, options, functions)
        except InputError as error:
            # Frames of the plugin and of the adapter do not help the caller.
            raise error.with_traceback(None) from None
        if not report.ok:
            raise check_failed(report)
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
    from pytest_bncheck.plugin.attempt import run_check
    from pytest_bncheck.plugin.definitions import batch_fixture
    from pytest_bncheck.plugin.failing import breaks_fixtures, check_failed, refuse

    functions = {
        "bncheck_loss": bncheck_loss,
        "bncheck_optimizer": bncheck_optimizer,
        "bncheck_train_step": bncheck_train_step,
        "bncheck_forward": bncheck_forward,
    }
    item, attempt = request.node, request.config.stash[CHECKING].attempt(request.node)
    try:
        name = batch_fixture(item)
        value = request.getfixturevalue(name)
        if request.config.option.setuponly:
            return None
        batch, batches = (value, None) if name == "bncheck_batch" else (None, value)
        report = run_check(item, bncheck_model, batch, batches, {}, functions)
    except InputError as error:
        refuse(error)
    except BaseException as error:
        if attempt.started or not breaks_fixtures(error):
            raise
        attempt.pending = error
        return None
    if not report.ok:
        if attempt.started:
            raise check_failed(report)
        attempt.pending = check_failed(report)
    return report


def _not_overridden(name: str, value: str) -> NoReturn:
    from pytest_bncheck.plugin.failing import refuse

    text = (
        f"this test needs the fixture {name}; override it in conftest.py or beside the test:\n\n"
        f"    @pytest.fixture\n    def {name}():\n        return {value}\n"
    )
    refuse(InputError(text))
