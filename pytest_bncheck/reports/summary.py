"""A check's lines in the summary at the end of a run, from its JSON object."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import Any

from pytest_bncheck.reports.layout import (
    count,
    number,
    percent,
    printable,
    remedy_lines,
    table,
    wrap,
)
from pytest_bncheck.reports.sentences import problem, suppressed, title

COLOURS = {"pass": "green", "warn": "yellow", "fail": "red", "error": "red"}
"""The colour of a verdict."""

INDENT = " " * 6
"""Under a verdict's word."""


def entry(
    check: Mapping[str, Any], *, verbosity: int = 0, width: int = 80, expected: bool = False
) -> list[str]:
    """What the summary says about one check; its first line begins with the verdict.

    Parameters
    ----------
    check
        As in the JSON report.
    verbosity
        Below 0 one line without figures, and none for a check that passed; 1 adds figures, the
        worst layers and what a warning says, 2 all layers, suppressed findings and times.
    width
        Columns of the terminal.
    expected
        Whether the check failed and its test did not.
    """
    first = f"{check['verdict'].upper():<5} {title(check)}"
    mark = " (expected)" if expected else ""
    if verbosity < 0:
        found = " ".join(f["code"] for f in check["findings"]) or gist(check)
        line = f"{first}: {found}{mark}"
        line = line if len(line) <= width else line[: width - 3] + "..."
        return [] if check["verdict"] == "pass" else [printable(line)]
    said = gist(check) + mark
    if len(f"{first}: {said}") <= width:
        lines = [f"{first}: {said}"]
    else:
        lines = [first, *wrap(said, INDENT, width=width)]
    if verbosity > 0:
        lines += [f"{INDENT}{line}" for line in _warnings(check)]
    if verbosity > 0 and check["layers"]:
        lines += [f"{INDENT}{line}" for line in _details(check, everything=verbosity > 1)]
    return [printable(line) for line in lines]


def html_entry(check: Mapping[str, Any]) -> str:
    """The same with figures and the worst layers, for preformatted HTML."""
    return html.escape("\n".join(entry(check, verbosity=1))) + "\n"


def gist(check: Mapping[str, Any]) -> str:
    """What was found, in one sentence."""
    if check["verdict"] == "error":
        return problem(check)
    codes = ", ".join(f"{f['code']} {f['name']}" for f in check["findings"])
    figures = _figures(check) if check["layers"] else "no layer with running statistics"
    return (f"{codes}; " if codes else "") + figures + suppressed(check)


def _figures(check: Mapping[str, Any]) -> str:
    shown = check["predictions"]
    modes = [_quality(shown["train"]), _quality(shown["projected"] or shown["eval"])]
    if None in modes:
        return f"gap {number(shown['gap'], missing='unknown')}"
    return f"train {modes[0]}, eval {modes[1]}"


def _quality(scored: Mapping[str, Any]) -> str | None:
    if scored["accuracy"] is not None:
        return percent(scored["accuracy"])
    loss = number(scored["loss"])
    return f"loss {loss}" if loss else None


def _warnings(check: Mapping[str, Any]) -> Iterator[str]:
    """What the text of a failure says, for a test that did not fail."""
    for found in check["findings"] if check["verdict"] == "warn" else ():
        yield from wrap(f"{found['message']} {found['cause']}")
        yield from remedy_lines(found["remedy"])


def _details(check: Mapping[str, Any], *, everything: bool) -> Iterator[str]:
    shown, layers = check["predictions"], check["layers"]
    figures = {name: number(shown[name], ".3g") for name in ("gap", "distortion", "retained")}
    samples = f" on {count(check['batch_size'], 'sample')}" if check["batch_size"] else ""
    yield ", ".join(f"{name} {figure}" for name, figure in figures.items() if figure)
    yield f"{check['framework']}, {check['device']}, {count(check['steps'], 'step')}{samples}"
    if everything:
        yield "seconds: " + ", ".join(f"{k} {v:.2f}" for k, v in check["seconds"].items())
        for hidden in check["suppressed"]:
            yield from wrap(f"{hidden['code']} {hidden['name']} is {hidden['reason']}.")
        yield from table(layers, most=None)
    else:
        yield from table(sorted(layers, key=_distortion, reverse=True))


def _distortion(layer: Mapping[str, Any]) -> float:
    """For sorting: unknown is less than any number, "nan" and "inf" are more."""
    bent = layer["distortion"]
    if bent is None:
        return -1.0
    return float("inf") if isinstance(bent, str) else bent
