"""Versions of frameworks that lack what an adapter needs, refused in one line.

Adapters use some private names of their frameworks, all of them in files called ``internals``. A
name that is gone in a newer version is found when a check starts, not in the middle of it.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from pytest_bncheck import __version__
from pytest_bncheck.types import InputError


def find(path: str) -> Any:
    """What a dotted path leads to, ``package.module.Class.attribute``, or None if it is gone."""
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError):
        return None


def require(paths: Iterable[str], distribution: str) -> None:
    """Raise an InputError if one of these paths is gone from a distribution; see `find`."""
    refuse([path for path in paths if find(path) is None], distribution)


def refuse(missing: list[str], distribution: str) -> None:
    """Raise an InputError for a distribution that lacks these names, if there are any."""
    if missing:
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            version = "of an unknown version"
        raise InputError(
            f"{distribution} {version} is not supported by pytest-bncheck {__version__}; "
            f"it lacks {', '.join(missing)}."
        )
