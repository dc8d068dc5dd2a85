"""How messages and reports say numbers and lists, so that all of them read alike."""

from __future__ import annotations

from collections.abc import Sequence

LONG = 10.0
"""Seconds that a check takes at least for its time to be worth a word."""


def duration(seconds: float) -> str:
    """``12 s``, ``2 min 5 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def plural(count: int, noun: str) -> str:
    """``1 update``, ``5 updates``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def number(value: float | str | None, spec: str = ".2g", missing: str = "") -> str:
    """A number as its format says; `missing` for None, and a string as it is.

    In the JSON report the numbers that are not finite are strings.
    """
    if value is None:
        return missing
    return value if isinstance(value, str) else format(value, spec)


def percent(share: float | str | None, digits: int = 0) -> str:
    """A share in [0, 1] as ``33 %``; empty for None."""
    if share is None:
        return ""
    return f"{share if isinstance(share, str) else format(100 * share, f'.{digits}f')} %"


def listing(names: Sequence[str], most: int = 5) -> str:
    """The first few names of layers, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name or "the model itself" for name in names[:most]) + more
