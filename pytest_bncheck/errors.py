"""The error for bad input, and care for the user's; start-up imports nothing else."""

from __future__ import annotations

import contextlib


class InputError(ValueError):
    """An input cannot be used; the text says which, where it came from, and what is allowed."""


InputError.__module__ = "pytest_bncheck"  # where users import it from, in tracebacks too


def add_note(error: BaseException, note: str) -> None:
    """Add a note to a user's exception, unless it refuses attributes: it stays the user's."""
    with contextlib.suppress(Exception):
        error.add_note(note)


def users_error(error: BaseException) -> BaseException:
    """The exception that the user's code raised, where it could not pass a ``with`` block.

    The context managers of `contextlib` set its ``__traceback__``; an exception that refuses
    attributes, a frozen dataclass for one, then gives way to the error of its refusal.
    """
    while error.__context__ is not None and _is_refusal(error):
        error = error.__context__
    return error


def _is_refusal(error: BaseException) -> bool:
    step = error.__traceback__
    refused: object = None
    while step is not None:
        if step.tb_frame.f_code.co_filename == contextlib.__file__:
            refused = step.tb_frame.f_locals.get("value")
        step = step.tb_next
    return refused is not None and refused is error.__context__
