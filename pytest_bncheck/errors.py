"""The error for bad input; in a file of its own, so that start-up imports nothing else."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user handed over cannot be used; the text says what, from where, what can."""


InputError.__module__ = "pytest_bncheck"  # where users import it from, in tracebacks too
