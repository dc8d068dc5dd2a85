"""The text of a check for a terminal of 80 columns, and its line in the summary."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_bncheck.report import LayerReport, Report
    from pytest_bncheck.types import Finding

WIDTH = 76
"""Columns of a text, which pytest indents by four."""

WORST = 5
"""Layers that a table shows."""

NAME = 36
"""Columns for a layer's name, which is cut on its left."""


def check_lines(report: Report) -> list[str]:
    """Everything that a person needs to know about one check.

    Parameters
    ----------
    report
        The check.

    Returns
    -------
    list of str
        The headline, then lines of at most 76 columns, but for code and names that cannot be
        broken.
    """
    headline = _headline(report)
    lines = [*_wrap(headline), *_wrap(_title(report))]
    for finding in report.findings:
        lines += ["", *_finding_lines(finding, report, headline)]
    for hidden in report.suppressed:
        lines += ["", *_wrap(f"{hidden.code} {hidden.name} ({hidden.reason}): {hidden.message}")]
    if not report.findings:
        lines += _wrap(_calm(report), "  ")
    return lines


def summary_line(check: Mapping[str, Any]) -> str:
    """One line about a check, from its JSON object: verdict, test, what was found."""
    name = check["nodeid"] or "check"
    if check["index"]:
        name += f" #{check['index'] + 1}"
    return f"{check['verdict'].upper():<5} {name}: {_gist(check)}"


def _gist(check: Mapping[str, Any]) -> str:
    if check["verdict"] == "error":
        return str(check["error"]).splitlines()[0]
    codes = [f"{f['code']} {f['name']}" for f in check["findings"]]
    found = ", ".join(codes) + "; " if codes else ""
    if not check["layers"]:
        return f"{found}no layer with running statistics"
    shown = check["predictions"]
    modes = [_quality(shown["train"]), _quality(shown["projected"] or shown["eval"])]
    if None in modes:
        gap = shown["gap"]
        return (
            f"{found}gap {gap:.2g}" if isinstance(gap, float) else f"{found}gap {gap or 'unknown'}"
        )
    return f"{found}train {modes[0]}, eval {modes[1]}"


def _quality(scored: Mapping[str, Any]) -> str | None:
    if scored["accuracy"] is not None:
        return f"{100 * scored['accuracy']:.0f} %"
    loss = scored["loss"]
    return f"loss {loss:.2g}" if isinstance(loss, float) else loss


def _headline(report: Report) -> str:
    """The first sentence of the gravest finding, for the line that pytest repeats at its end."""
    return report.findings[0].message.partition(". ")[0].rstrip(".") if report.findings else ""


def _title(report: Report) -> str:
    errors = sum(finding.severity == "error" for finding in report.findings)
    warnings = len(report.findings) - errors
    samples = f" on {report.batch_size} samples" if report.batch_size else ""
    return (
        f"bncheck {report.verdict}: {_count(errors, 'error')}, {_count(warnings, 'warning')} "
        f"({report.framework}, {report.device}, {_count(report.steps, 'step')}{samples})"
    )


def _calm(report: Report) -> str:
    """What a check without findings has to say."""
    shown = report.predictions
    if not report.layers:
        return "The model has no layer with running statistics."
    if shown.gap is None:
        return "The outputs of the two modes cannot be aligned, so they were not compared."
    projected = shown.projected
    over = f"over {_count(len(report.layers), 'normalisation layer')}"
    if projected is None or projected.gap is None:
        return (
            f"Eval mode repeats training mode: gap {shown.gap:.2g}, distortion "
            f"{shown.distortion or 0:.2g} {over}."
        )
    return (
        f"Projected to the planned {report.planned_updates} updates, eval mode repeats training "
        f"mode: gap {projected.gap:.2g}, distortion {projected.distortion or 0:.2g} {over} "
        f"(gap {shown.gap:.2g} after the {_count(report.steps, 'step')} of this check)."
    )


def _finding_lines(finding: Finding, report: Report, headline: str) -> Iterator[str]:
    mark = "" if finding.severity == "error" else " (warning)"
    yield f"{finding.code} {finding.name}{mark}"
    yield from _wrap(finding.message.removeprefix(f"{headline}. "), "  ")
    yield ""
    yield from _wrap(f"Cause: {finding.cause}", "  ")
    table = list(_table(finding.layers, report.layers))
    if table:
        yield ""
        yield from (f"  {line}" for line in table)
    yield ""
    yield "  What to do:"
    for line in finding.remedy.splitlines():
        if line.startswith("- "):
            yield from _wrap(line, "  ", hanging="  ")
        else:  # code, which is not to be broken
            yield f"      {line}"


def _table(names: Sequence[str], layers: Sequence[LayerReport]) -> Iterator[str]:
    """The worst of the named layers, as they were measured."""
    by_name = {layer.name: layer for layer in layers}
    rows = [by_name[name] for name in names if name in by_name]
    if not rows:
        return
    yield (
        f"{'worst layers' if len(rows) > WORST else 'layer':<{NAME}} "
        f"{'momentum':>8} {'updates':>7} {'initial':>8} {'distortion':>10}"
    )
    for row in rows[:WORST]:
        name = row.name if len(row.name) <= NAME else "..." + row.name[3 - NAME :]
        momentum = "None" if row.momentum is None else f"{row.momentum:g}"
        initial = "" if row.initial_weight is None else f"{100 * row.initial_weight:.1f} %"
        bent = "" if row.distortion is None else f"{row.distortion:.2f}"
        yield f"{name:<{NAME}} {momentum:>8} {row.updates:>7} {initial:>8} {bent:>10}"
    if len(rows) > WORST:
        yield f"and {len(rows) - WORST} more"


def _wrap(text: str, indent: str = "", hanging: str = "") -> list[str]:
    glued = textwrap.wrap(
        text.replace(" %", "\0%"),  # a number stays with its unit
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\0", " ") for line in glued]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
