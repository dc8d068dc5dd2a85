"""The error for bad input; a separate file, so that start-up imports nothing else."""

from __future__ import annotations


class InputError(ValueError):
    """An input cannot be used; the text says which, where it came from, and what is allowed."""


InputError.__module__ = "pytest_bncheck"  # where users import it from, in tracebacks too
