"""A check's lines in the summary at the end of a run, from its JSON object."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pytest_bncheck.reports.layout import MOST_ROWS, printable, remedy_lines, table, wrap
from pytest_bncheck.reports.sentences import (
    assumed,
    not_checked,
    problem,
    setting,
    suppressed,
    title,
    without_layers,
)
from pytest_bncheck.wording import LONG, duration, number, percent, plural

COLOURS = {"pass": "green", "warn": "yellow", "fail": "red", "error": "red"}
"""The colour of a verdict."""

INDENT = " " * 6
"""Under a verdict's word."""


class Entry(NamedTuple):
    """What the summary shows of one check.

    Attributes
    ----------
    word
        The verdict, as wide as the longest of them.
    colour
        The colour of that word.
    first
        The rest of its line.
    more
        The lines below.
    """

    word: str
    colour: str
    first: str
    more: Sequence[str] = ()

    @property
    def lines(self) -> list[str]:
        """The whole text."""
        return [self.word + self.first, *self.more]


def entry(
    check: Mapping[str, Any], *, verbosity: int = 0, width: int = 80, expected: bool = False
) -> Entry | None:
    """What the summary says about one check; None if it says nothing.

    Parameters
    ----------
    check
        As in the JSON report.
    verbosity
        Below 0 one line, without figures for a failure, which shows them itself, and none for a
        check that passed; 1 adds figures, the
        worst layers, notes and what a warning says, 2 all layers, suppressed findings, rules
        that were not applied, and times.
    width
        Columns of the terminal.
    expected
        Whether the check failed and its test did not.
    """
    word = f"{check['verdict'].upper():<5}"
    colour = "yellow" if expected else COLOURS[check["verdict"]]
    mark = " (expected)" if expected else ""
    room = width - len(word)
    name = f" {title(check)}"
    if verbosity < 0:
        if check["verdict"] == "pass":
            return None
        line = f"{name}: {_in_brief(check)}{mark}"
        line = line if len(line) <= room else line[: room - 3] + "..."
        return Entry(word, colour, printable(line))
    seconds = check["seconds"]["total"]
    result = gist(check) + mark + (f", {duration(seconds)}" if seconds > LONG else "")
    one_line = f"{name}: {result}"
    first, more = one_line, []
    if len(one_line) > room:
        first, more = name, wrap(result, INDENT, width=width)
    if verbosity > 0:
        more += [f"{INDENT}{line}" for line in (*_warnings(check), *_notes(check))]
    if verbosity > 0 and check["layers"]:
        more += [f"{INDENT}{line}" for line in _details(check, everything=verbosity > 1)]
    return Entry(word, colour, printable(first), [printable(line) for line in more])


def html_entry(check: Mapping[str, Any]) -> str:
    """The entry with figures and the worst layers, for preformatted HTML."""
    made = entry(check, verbosity=1)
    return html.escape("\n".join(made.lines if made else [])) + "\n"


def gist(check: Mapping[str, Any]) -> str:
    """What was found, in one sentence."""
    if check["verdict"] == "error":
        return problem(check)
    codes = ", ".join(f"{f['code']} {f['name']}" for f in check["findings"])
    figures = _figures(check) if check["layers"] else without_layers(check)
    return (f"{codes}; " if codes else "") + figures + suppressed(check)


def _in_brief(check: Mapping[str, Any]) -> str:
    """The codes that were found; of a warning the figures too, as nothing else shows them."""
    codes = " ".join(finding["code"] for finding in check["findings"])
    if not codes:
        return gist(check)
    return f"{codes}; {_figures(check)}; -v says more" if check["verdict"] == "warn" else codes


def _figures(check: Mapping[str, Any]) -> str:
    predictions, projected = check["predictions"], check["predictions"]["projected"]
    judged = projected or predictions["eval"]
    modes = [_quality(predictions["train"]), _quality(judged)]
    when = f" projected to {check['planned_updates']} updates" if projected else ""
    if None in modes:
        gap = (projected or predictions)["gap"]
        return f"gap {number(gap, missing='unknown')}{when}"
    measured = _quality(predictions["eval"])
    now = f" (measured after {plural(check['steps'], 'step')}: {measured})" if when else ""
    return f"train {modes[0]}, eval {modes[1]}{when}{now}"


def _quality(scored: Mapping[str, Any]) -> str | None:
    if scored["accuracy"] is not None:
        return percent(scored["accuracy"])
    loss = number(scored["loss"])
    return f"loss {loss}" if loss else None


def _warnings(check: Mapping[str, Any]) -> Iterator[str]:
    """What the text of a failure says, for a test that did not fail."""
    for finding in check["findings"] if check["verdict"] == "warn" else ():
        yield from wrap(f"{finding['message']} {finding['cause']}")
        yield from remedy_lines(finding["remedy"])


def _measures(compared: Mapping[str, Any]) -> str:
    figures = {name: number(compared[name], ".3g") for name in ("gap", "distortion", "retained")}
    return ", ".join(f"{name} {figure}" for name, figure in figures.items() if figure)


def _notes(check: Mapping[str, Any]) -> Iterator[str]:
    for note in check["notes"]:
        yield from wrap(f"Note {note['code']} {note['name']}: {note['message']} {note['cause']}")


def _details(check: Mapping[str, Any], *, everything: bool) -> Iterator[str]:
    predictions, layers = check["predictions"], check["layers"]
    projected = predictions["projected"]
    if projected:
        yield f"projected to {check['planned_updates']} updates: {_measures(projected)}"
        yield f"measured after {plural(check['steps'], 'step')}: {_measures(predictions)}"
    else:
        yield _measures(predictions)
    yield setting(check)
    if everything:
        yield "seconds: " + ", ".join(f"{k} {v:.2f}" for k, v in check["seconds"].items())
        for hidden in check["suppressed"]:
            yield from wrap(f"{hidden['code']} {hidden['name']} is {hidden['reason']}.")
        yield from wrap(assumed(check))
        for sentence in not_checked(check):
            yield from wrap(sentence)
    yield from table(layers, most=None if everything else MOST_ROWS)
