"""Lines for a terminal of 80 columns: wrapping, and the table of layers."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_bncheck.wording import number, percent

TEXT_WIDTH = 72
"""Columns of a failure's text, which pytest indents by four, or by eight inside a function."""

MOST_ROWS = 5
"""Layers that a table shows."""

SHOWN, TELLING = 0.005, 1.5
"""The largest share must lie between them for a table to show the shares."""

NAME = 27
"""Columns for a layer's name, which is cut on its left."""


def wrap(text: str, indent: str = "", hanging: str = "", width: int = TEXT_WIDTH) -> list[str]:
    """`text` in lines of at most `width` columns, but for words that are longer.

    Parameters
    ----------
    indent
        Before every line.
    hanging
        After it, before every line but the first.
    """
    glued = textwrap.wrap(
        text.replace(" %", "\0%"),  # a number stays with its unit
        width,
        initial_indent=indent,
        subsequent_indent=indent + hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\0", " ") for line in glued]


def printable(line: str) -> str:
    """A line without characters that steer a terminal: names can hold anything."""
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def remedy_lines(remedy: str) -> Iterator[str]:
    """A finding's remedy: its items wrapped, the code under them as it is."""
    for line in remedy.splitlines():
        if line.startswith("- "):
            yield from wrap(line, hanging="  ", width=TEXT_WIDTH - 2)
        else:
            yield f"    {line}"


def table(rows: Sequence[Mapping[str, Any]], most: int | None = MOST_ROWS) -> Iterator[str]:
    """A table of layers, in their order; no line if `rows` is empty.

    Parameters
    ----------
    rows
        Layers as in the JSON report.
    most
        Show at most this many rows, and how many more there are; None for all.
    """
    if not rows:
        return
    visible = rows[:most]
    shares = are_telling([row["attribution"] for row in visible])
    heading = "layer" if len(visible) == len(rows) else "worst layers"
    yield _line(heading, "momentum", "updates", "initial", "distortion", *["share"] * shares)
    for row in visible:
        name = row["name"]
        yield _line(
            name if len(name) <= NAME else "..." + name[3 - NAME :],
            number(row["momentum"], "g", "None"),
            str(row["updates"]),
            percent(row["initial_weight"], 1),
            number(row["distortion"], ".2f"),
            *[percent(row["attribution"])] * shares,
        )
    if len(visible) < len(rows):
        yield f"and {len(rows) - len(visible)} more"


def are_telling(shares: Sequence[float | str | None]) -> bool:
    """Whether shares explain anything: not all are 0 %, and none is 600 % against another's -500 %.

    The first happens where the outputs do not react to small changes any more.
    """
    known = [abs(share) for share in shares if isinstance(share, (int, float))]
    return bool(known) and SHOWN <= max(known) <= TELLING


def _line(name: str, *cells: str) -> str:
    widths = (8, 7, 8, 10, 5)
    aligned = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False))
    return f"{name:<{NAME}} {' '.join(aligned)}".rstrip()
