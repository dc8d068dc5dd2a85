"""The text of one check for a terminal of 80 columns: what a failing test shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pytest_bncheck.reports.layout import remedy_lines, table, wrap
from pytest_bncheck.reports.sentences import (
    NOT_ALIGNED,
    agreement,
    assumed,
    headline,
    not_checked,
    setting,
    without_layers,
)
from pytest_bncheck.wording import number, plural

BEFORE = "pytest_bncheck.CheckFailed: "
"""What pytest writes before the first line of a failure, behind an indent of four."""


def check_lines(check: Mapping[str, Any]) -> list[str]:
    """Everything that a person needs to know about one check.

    Parameters
    ----------
    check
        As in the JSON report.

    Returns
    -------
    list of str
        The headline, then lines of at most 72 columns, but for code and names that cannot be
        broken.
    """
    lines = [*_first(headline(check)), *wrap(_counts(check))]
    if not check["findings"]:
        lines += wrap(_without_findings(check), "  ")
    for finding in check["findings"]:
        lines += ["", *_finding_lines(finding, check)]
    for hidden in check["suppressed"]:
        text = f"{hidden['code']} {hidden['name']} ({hidden['reason']}): {hidden['message']}"
        lines += ["", *wrap(text)]
    if assumed(check):
        lines += ["", *wrap(assumed(check))]
    for sentence in not_checked(check):
        lines += ["", *wrap(sentence)]
    return lines


def _first(text: str) -> list[str]:
    """The headline; its first line leaves room for what pytest writes before it."""
    first, *more = wrap(BEFORE + text, width=80 - len("E   "))
    known = first.removeprefix(BEFORE.rstrip()).lstrip()
    return [line for line in (known, *wrap(" ".join(more))) if line]


def _tells(layer: Mapping[str, Any] | None) -> bool:
    """Whether a layer's row shows anything: not of one that did not update and is not off."""
    if layer is None:
        return False
    off = layer["distortion"]
    return bool(layer["updates"]) or isinstance(off, str) or (off or 0.0) >= 0.005


def _counts(check: Mapping[str, Any]) -> str:
    severities = [finding["severity"] for finding in check["findings"]]
    errors = severities.count("error")
    warnings = len(severities) - errors
    return (
        f"bncheck {check['verdict']}: {plural(errors, 'error')}, {plural(warnings, 'warning')} "
        f"({setting(check)})"
    )


def _without_findings(check: Mapping[str, Any]) -> str:
    """How the modes compare, in a check without findings."""
    predictions = check["predictions"]
    if check.get("modes") == "hidden":
        return (
            "The model is a finished program, whose layers cannot be looked into: its running "
            "statistics were not judged. Check the model that it was made from."
        )
    if not check["layers"]:
        return f"The model has {without_layers(check)}."
    if predictions["gap"] is None:
        return f"{NOT_ALIGNED}, so they were not compared."
    projected = predictions["projected"]
    over = f"over {plural(len(check['layers']), 'normalisation layer')}"
    if projected is None or projected["gap"] is None:
        return f"Eval mode {agreement(check)}: {_figures(predictions)} {over}."
    more = check["remedies"]["further_updates"] if check["remedies"] else None
    turns = f", right from {check['steps'] + more} updates on" if more else ""
    planned = check["planned_updates"]
    return (
        f"Projected to the planned {planned} updates, eval mode {agreement(check)}: "
        f"{_figures(projected)} {over} (gap {number(predictions['gap'])} after the "
        f"{plural(check['steps'], 'step')} of this check{turns})."
    )


def _figures(compared: Mapping[str, Any]) -> str:
    distortion = compared["distortion"]
    figures = f"gap {number(compared['gap'])}"
    return figures if distortion is None else f"{figures}, distortion {number(distortion)}"


def _finding_lines(finding: Mapping[str, Any], check: Mapping[str, Any]) -> Iterator[str]:
    mark = "" if finding["severity"] == "error" else " (warning)"
    yield f"{finding['code']} {finding['name']}{mark}"
    # The headline of the check stands above; it is the beginning of the first message.
    more = finding["message"].removeprefix(headline(check)).removeprefix(".").lstrip()
    if more:
        yield from wrap(more, "  ")
        yield ""
    yield from wrap(f"Cause: {finding['cause']}", "  ")
    by_name = {layer["name"]: layer for layer in check["layers"]}
    rows = list(
        table(
            (by_name[name] for name in finding["layers"] if _tells(by_name.get(name))),
            among=check["layers"],
        )
    )
    if rows:
        yield ""
        yield from (f"  {line}" for line in rows)
    yield ""
    yield "  What to do:"
    yield from (f"  {line}" for line in remedy_lines(finding["remedy"]))
