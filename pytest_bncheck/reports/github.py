"""Checks on GitHub Actions: annotations on the lines of the tests, and the step's summary."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pytest_bncheck.reports import watch
from pytest_bncheck.reports.layout import printable, remedy_lines
from pytest_bncheck.reports.sentences import WORST_FIRST, in_short, title
from pytest_bncheck.reports.summary import gist
from pytest_bncheck.wording import number, percent

LEVELS = {"warn": "warning", "fail": "error", "error": "error"}
MARKS = {"error": "❌", "fail": "❌", "warn": "⚠️", "pass": "✅"}


def annotation(check: Mapping[str, Any], file: str, line: int) -> str | None:
    """The workflow command that shows a check beside its test, or None if it passed.

    Parameters
    ----------
    check
        As in the JSON report.
    file, line
        The test: its path from the root of the repository, its line counted from 1.
    """
    level = LEVELS.get(check["verdict"])
    if level is None:
        return None
    findings = check["findings"]
    if findings:
        heading = f"{findings[0]['code']} {findings[0]['name']}"
        heading += f" and {len(findings) - 1} more" if len(findings) > 1 else ""
    else:
        heading = "bncheck"
    texts = [in_short(finding) for finding in findings] or [gist(check)]
    properties = {"file": file, "line": str(line), "title": heading}
    fields = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    return f"::{level} {fields}::{_data(chr(10).join([*texts, title(check)]))}"


def watch_annotation(found: Mapping[str, Any], file: str) -> str:
    """The workflow command that shows what watching found; it fails no test, so it warns."""
    properties = {
        "file": file,
        "line": str(found["line"]),
        "title": f"{watch.heading(found)} (watched)",
    }
    fields = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    texts = (found["message"], watch.tests(found), found["remedy"])
    return f"::warning {fields}::{_data(chr(10).join(texts))}"


def watch_summary(seen: Mapping[str, Any]) -> str:
    """What watching found as a Markdown table."""
    head = [f"## bncheck watch: {_escape(' '.join(watch.total(seen, 1000)))}", ""]
    if seen["findings"]:
        head += ["| rule | line | what | tests |", "| --- | --- | --- | ---: |"]
    rows = [
        f"| {_escape(watch.heading(found))} | <code>{_escape(watch.place(found))}</code> "
        f"| {_escape(found['message'])} | {found['tests']} |"
        for found in seen["findings"]
    ]
    return "\n".join([*head, *rows]) + "\n\n"


def _data(text: str) -> str:
    return "%0A".join(printable(line) for line in text.replace("%", "%25").splitlines())


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def in_repository(file: str, root: str, workspace: str | None) -> str:
    """A path from pytest's root as a path from the root of the repository, with slashes."""
    path = os.path.join(root, file)
    inside = os.path.relpath(path, workspace) if workspace else file
    return (file if inside.startswith("..") else inside).replace(os.sep, "/")


def step_summary(
    checks: Sequence[Mapping[str, Any]], is_expected: Callable[[Mapping[str, Any]], bool]
) -> str:
    """All checks as a Markdown table, worst first, and what is wrong in words.

    Names of tests and layers come from the user and are shown as they are written.
    """
    ranked = sorted(checks, key=lambda check: WORST_FIRST.index(check["verdict"]))
    wrong = [check for check in ranked if check["verdict"] != "pass" and not is_expected(check)]
    verdicts = [check["verdict"] for check in ranked]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in WORST_FIRST if v in verdicts)
    head = [
        f"## bncheck: {counts}",
        "",
        "| verdict | test | found | train | eval | gap |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    rows = [_row(check, " (expected)" if is_expected(check) else "") for check in ranked]
    details = [line for check in wrong for line in _details(check)]
    return "\n".join([*head, *rows, *details]) + "\n\n"


def _row(check: Mapping[str, Any], note: str) -> str:
    predictions = check["predictions"]
    judged = predictions["projected"] or predictions["eval"]
    when = " (projected)" if predictions["projected"] else ""
    cells = (
        f"{MARKS[check['verdict']]} {check['verdict']}{note}",
        f"<code>{_escape(title(check))}</code>",
        "<br>".join(_escape(f"{f['code']} {f['name']}") for f in check["findings"]),
        percent(predictions["train"]["accuracy"]),
        percent(judged["accuracy"]) + when,
        number((predictions["projected"] or predictions)["gap"]) + when,
    )
    return f"| {' | '.join(cells)} |"


def _details(check: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield f"### <code>{_escape(title(check))}</code>"
    if not check["findings"]:
        yield ""
        yield _escape(gist(check))
    for finding in check["findings"]:
        heading = _escape(f"{finding['code']} {finding['name']}")
        yield ""
        yield f"**{heading}**: {_escape(in_short(finding))}"
        yield ""
        remedy = _verbatim(remedy_lines(finding["remedy"]))
        yield f"<details><summary>What to do</summary><pre>{remedy}</pre></details>"


def _escape(text: str) -> str:
    """Text on one line that Markdown and HTML show as it is, with no mark, link or mention."""
    return re.sub(r"[^\w .,%/()=+-]|_", lambda m: f"&#{ord(m[0])};", " ".join(text.split()))


def _verbatim(lines: Iterable[str]) -> str:
    """Lines for a ``pre`` element; written as separate lines, a blank one would end it."""
    return "&#10;".join(map(html.escape, lines))
