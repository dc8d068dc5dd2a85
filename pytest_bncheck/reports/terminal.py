"""The text of one check for a terminal of 80 columns: what a failing test shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_bncheck.reports.layout import count, first_sentence, remedy_lines, table, wrap

if TYPE_CHECKING:
    from pytest_bncheck.report import Report
    from pytest_bncheck.types import Finding


def check_lines(report: Report) -> list[str]:
    """Everything that a person needs to know about one check.

    Parameters
    ----------
    report
        The check.

    Returns
    -------
    list of str
        The headline, then lines of at most 72 columns, but for code and names that cannot be
        broken.
    """
    headline = first_sentence(report.findings[0].message) if report.findings else ""
    lines = [*wrap(headline), *wrap(_title(report))]
    if not report.findings:
        lines += wrap(_calm(report), "  ")
    for finding in report.findings:
        lines += ["", *_finding_lines(finding, report, headline)]
    for hidden in report.suppressed:
        lines += ["", *wrap(f"{hidden.code} {hidden.name} ({hidden.reason}): {hidden.message}")]
    return lines


def _title(report: Report) -> str:
    errors = sum(finding.severity == "error" for finding in report.findings)
    warnings = len(report.findings) - errors
    samples = f" on {count(report.batch_size, 'sample')}" if report.batch_size else ""
    return (
        f"bncheck {report.verdict}: {count(errors, 'error')}, {count(warnings, 'warning')} "
        f"({report.framework}, {report.device}, {count(report.steps, 'step')}{samples})"
    )


def _calm(report: Report) -> str:
    """What a check without findings has to say."""
    shown = report.predictions
    if not report.layers:
        return "The model has no layer with running statistics."
    if shown.gap is None:
        return "The outputs of the two modes cannot be aligned, so they were not compared."
    projected = shown.projected
    verb = "against" if report.suppressed else "repeats"
    over = f"over {count(len(report.layers), 'normalisation layer')}"
    if projected is None or projected.gap is None:
        return (
            f"Eval mode {verb} training mode: gap {shown.gap:.2g}, distortion "
            f"{shown.distortion or 0:.2g} {over}."
        )
    more = report.remedies.further_updates if report.remedies else None
    turns = f", right from {report.steps + more} updates on" if more else ""
    return (
        f"Projected to the planned {report.planned_updates} updates, eval mode {verb} training "
        f"mode: gap {projected.gap:.2g}, distortion {projected.distortion or 0:.2g} {over} "
        f"(gap {shown.gap:.2g} after the {count(report.steps, 'step')} of this check{turns})."
    )


def _finding_lines(finding: Finding, report: Report, headline: str) -> Iterator[str]:
    mark = "" if finding.severity == "error" else " (warning)"
    yield f"{finding.code} {finding.name}{mark}"
    more = finding.message.removeprefix(headline).removeprefix(".").lstrip()
    if more:
        yield from wrap(more, "  ")
        yield ""
    yield from wrap(f"Cause: {finding.cause}", "  ")
    by_name = {layer.name: vars(layer) for layer in report.layers}
    shown = [by_name[name] for name in finding.layers if name in by_name]
    rows = list(table(shown))
    if rows:
        yield ""
        yield from (f"  {line}" for line in rows)
    yield ""
    yield "  What to do:"
    yield from (f"  {line}" for line in remedy_lines(finding.remedy))
