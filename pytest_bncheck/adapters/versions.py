"""Names that a framework does not promise to keep, and the error where a version lacks some."""

from __future__ import annotations

from collections.abc import Iterable
from pkgutil import resolve_name
from typing import Any

from pytest_bncheck import __version__
from pytest_bncheck.types import InputError


def find(path: str) -> Any:
    """The module, class or function with this dotted path, or None."""
    try:
        return resolve_name(path)
    except (ImportError, AttributeError):
        return None


def require(framework: str, version: str, missing: Iterable[str]) -> None:
    """Refuse a version of a framework in which names are missing.

    Parameters
    ----------
    framework, version
        As the user knows them: ``Keras``, ``3.15.1``.
    missing
        The names that it lacks, with dots.

    Raises
    ------
    InputError
        If there are any.
    """
    names = ", ".join(missing)
    if names:
        raise InputError(
            f"{framework} {version} is not supported by pytest-bncheck {__version__}; "
            f"it lacks {names}."
        )
