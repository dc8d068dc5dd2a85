"""How a failure looks: it points at the test, and shows nothing of the plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import pytest

from pytest_bncheck.plugin import internals

if TYPE_CHECKING:
    from pytest_bncheck.errors import InputError
    from pytest_bncheck.report import Report

REASON = "bncheck_reason"
"""Where a failure without a traceback keeps the error that it stands for."""


def check_failed(report: Report) -> Exception:
    """What a check raises because its verdict is fail."""
    from pytest_bncheck.report import CheckFailed

    return CheckFailed(report)


def is_check_failed(error: BaseException) -> bool:
    """Whether an error is one of `check_failed`."""
    from pytest_bncheck.report import CheckFailed

    return isinstance(error, CheckFailed)


def refuse(error: InputError) -> NoReturn:
    """End a fixture with one message and without a traceback through the plugin."""
    failure = pytest.fail.Exception(str(error), pytrace=False)
    setattr(failure, REASON, error)
    raise failure from None  # or pytest would print the same text twice


def breaks_fixtures(error: BaseException) -> bool:
    """Whether pytest could not use a fixture again that ends in it: SystemExit, for one.

    All later tests would fail in the same fixture. It fails the test itself instead.
    """
    outcomes = pytest.fail.Exception, pytest.skip.Exception
    return not isinstance(error, (Exception, KeyboardInterrupt, *outcomes))


def reason(error: BaseException) -> BaseException:
    """The error that a failure of `refuse` stands for; any other error itself."""
    found: BaseException = getattr(error, REASON, error)
    return found


def raise_pending(item: pytest.Item, error: BaseException) -> NoReturn:
    """Raise what ended a check: the plugin's errors from the line of the test."""
    __tracebackhide__ = True
    if not isinstance(error, Exception):
        raise error  # the user's, with the user's traceback
    raise_at_test_line(item, error)


def raise_at_test_line(item: pytest.Item, error: Exception) -> NoReturn:
    """Raise `error` from the line of the test, where a user looks for it, in every ``--tb``."""
    __tracebackhide__ = True
    path, line, _ = item.reportinfo()

    def fail() -> NoReturn:
        raise error.with_traceback(None)

    # Lines are counted from the `def`, which stands above the one that raises.
    fail.__code__ = fail.__code__.replace(
        co_filename=str(path), co_firstlineno=line or 0, co_name=item.name
    )
    fail()


def point_at_test_line(call: pytest.CallInfo[None], error: BaseException | None) -> None:
    """Cut the frames of pytest and of the plugin off what `raise_at_test_line` raised.

    Parameters
    ----------
    call
        What pytest knows about the phase of the test.
    error
        The error raised there, if any; a failure with another error is left alone.
    """
    if not isinstance(error, Exception) or call.excinfo is None or call.excinfo.value is not error:
        return
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    call.excinfo = pytest.ExceptionInfo.from_exception(error.with_traceback(last))


def keep_first_line(call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
    """Keep the first line of a failing check for the short summary, and the rest for the failure.

    With ``-vv`` and on a CI system pytest repeats the whole message there.
    """
    if call.excinfo and is_check_failed(call.excinfo.value):
        internals.shorten_crash(report)
