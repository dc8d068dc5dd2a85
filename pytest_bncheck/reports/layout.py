"""Lines for a terminal of 80 columns: wrapping, and the table of layers."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

from pytest_bncheck.wording import number, percent

TEXT_WIDTH = 72
"""Columns of a failure's text, which pytest indents by four, or by eight inside a function."""

MOST_ROWS = 5
"""Layers that a table shows."""

SHOWN, OFF = 0.005, 0.1
"""The largest share that a table leaves out as nothing, and by how much shares may miss 100 %."""

NAME = 27
"""Columns for a layer's name."""


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


def printable(line: str, keep: str = "") -> str:
    """A line without characters that steer what shows it, but `keep`: names can hold anything."""
    if line.isprintable():
        return line
    # Each character once: a line can be a whole page.
    escapes = {ord(c): ascii(c)[1:-1] for c in set(line) if not (c.isprintable() or c in keep)}
    return line.translate(escapes) if escapes else line


def remedy_lines(remedy: str) -> Iterator[str]:
    """A finding's remedy: its items wrapped, the code under them as it is."""
    for line in remedy.splitlines():
        if line.startswith("- "):
            yield from wrap(line, hanging="  ", width=TEXT_WIDTH - 2)
        else:
            yield f"    {line}"


def worst_first(layers: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Layers by distortion; unknown is less than any number, "nan" and "inf" are more."""

    def distortion(layer: Mapping[str, Any]) -> float:
        value = layer["distortion"]
        return -1.0 if value is None else float("inf") if isinstance(value, str) else value

    return sorted(layers, key=distortion, reverse=True)


def table(
    layers: Iterable[Mapping[str, Any]],
    most: int | None = MOST_ROWS,
    among: Sequence[Mapping[str, Any]] | None = None,
) -> Iterator[str]:
    """A table of layers, the worst first; no line if there is none.

    Parameters
    ----------
    layers
        As in the JSON report.
    most
        Show at most this many rows, and how many more there are; None for all.
    among
        All layers of the model, whose shares have to add up; None if these are all.
    """
    rows = worst_first(layers)
    if not rows:
        return
    visible = rows[:most]
    shares = are_telling([row["attribution"] for row in (rows if among is None else among)])
    heading = "layer" if len(visible) == len(rows) else "worst layers"
    yield _line(heading, "momentum", "updates", "initial", "distortion", *["share"] * shares)
    for row, name in zip(visible, cut([row["name"] for row in visible]), strict=True):
        yield _line(
            name,
            number(row["momentum"], "g", "None"),
            str(row["updates"]),
            percent(row["initial_weight"], 1),
            number(row["distortion"], ".2f"),
            *[percent(row["attribution"])] * shares,
        )
    if len(visible) < len(rows):
        yield f"and {len(rows) - len(visible)} more"
    if shares:
        yield "share: the part of the difference that a layer's statistics make"


def cut(names: Sequence[str], width: int = NAME) -> list[str]:
    """Names in so many columns, cut on the left; elsewhere where that would make two alike.

    Then what the names begin alike with goes, and what follows stays with the end.
    """
    short = [_tail(name, width) for name in names]
    for text in {each for each in short if short.count(each) > 1}:
        alike = [k for k, each in enumerate(short) if each == text]
        letters = zip(*(names[k] for k in alike), strict=False)
        begin = sum(1 for _ in takewhile(lambda each: len(set(each)) == 1, letters))
        begin = 0 if begin < len("...") else begin
        for k in alike:
            head = ("..." if begin else "") + names[k][begin : begin + width // 2 - 3]
            rest = names[k][begin + width // 2 - 3 :]
            short[k] = head + _tail(rest, width - len(head))
    return short


def _tail(name: str, width: int) -> str:
    return name if len(name) <= width else "..." + name[3 - width :]


def are_telling(shares: Sequence[float | str | None]) -> bool:
    """Whether shares explain anything: of several layers, all known, none negative, about 100 %.

    They are slopes: where the outputs bend, or do not react any more, they do not add up.
    """
    known = [share for share in shares if isinstance(share, (int, float))]
    if len(known) < 2 or len(known) < len(shares):
        return False
    return min(known) > -SHOWN and abs(sum(known) - 1.0) <= OFF


def _line(name: str, *cells: str) -> str:
    widths = (8, 7, 8, 10, 5)
    aligned = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False))
    return f"{name:<{NAME}} {' '.join(aligned)}".rstrip()
