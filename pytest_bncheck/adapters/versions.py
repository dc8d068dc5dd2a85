"""Versions of frameworks that lack what an adapter needs, refused in one line.

Adapters use some private names of their frameworks, all of them in files called ``internals``. A
name that is gone in a newer version is found when a check starts, not in the middle of it.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from typing import Any

from pytest_bncheck import __version__
from pytest_bncheck.types import InputError


def find(path: str) -> Any:
    """What a dotted path leads to, ``package.module.Class.attribute``, or None if it is gone."""
    try:
        return pkgutil.resolve_name(path)
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
