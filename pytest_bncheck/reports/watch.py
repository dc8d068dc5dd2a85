"""What watching a suite found, for the terminal, the JSON report and GitHub Actions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_bncheck import rules
from pytest_bncheck.reports.layout import TEXT_WIDTH, printable, wrap
from pytest_bncheck.wording import plural

INDENT = " " * 6


def view(
    seen: Mapping[str, Any], select: Sequence[str], ignore: Mapping[str, str | None]
) -> dict[str, Any]:
    """The ``watch`` object of the JSON report.

    Parameters
    ----------
    seen
        What was counted, as `watch.ledger.Ledger.to_dict` gives it.
    select, ignore
        The options of these names.
    """
    selected = set().union(*map(rules.resolve, select)) or set(rules.RULES)
    reasons = {code: reason for name, reason in ignore.items() for code in rules.resolve(name)}
    findings, suppressed = [], []
    for found in sorted(seen["findings"].values(), key=_grave_first):
        rule = rules.RULES[found["code"]]
        named = {"code": rule.code, "name": rule.name, "severity": rule.severity, **found}
        if rule.code in reasons:
            reason = reasons[rule.code]
            suppressed.append({**named, "reason": f"ignored: {reason}" if reason else "ignored"})
        elif rule.code in selected:
            findings.append(named)
    return {
        "tests": seen["tests"],
        "training": seen["training"],
        "minding": seen["minding"],
        "unseen": seen["unseen"],
        "failed": seen["failed"],
        "problem": seen["problem"] or None,
        "findings": findings,
        "suppressed": suppressed,
    }


def _grave_first(found: Mapping[str, Any]) -> tuple[Any, ...]:
    """Errors first, and what is about a model of the package before what a test made."""
    is_error = rules.RULES[found["code"]].severity == "error"
    return (not is_error, is_test(found["file"]), found["code"], found["file"], found["line"])


def is_test(file: str) -> bool:
    """Whether a file looks like one of tests."""
    *folders, name = file.split("/")
    stem = name.removesuffix(".py")
    in_tests = any(folder in ("test", "tests", "testing") for folder in folders)
    return in_tests or stem.startswith("test_") or stem.endswith("_test") or stem == "conftest"


def heading(found: Mapping[str, Any]) -> str:
    """The rule."""
    return f"{found['code']} {found['name']}"


def place(found: Mapping[str, Any]) -> str:
    """The user's line."""
    return f"{found['file']}:{found['line']} in {found['function']}"


def tests(found: Mapping[str, Any]) -> str:
    """In how many tests it was seen."""
    if found["tests"] == 1:
        return f"Seen in {found['first']}."
    return f"Seen in {found['tests']} tests, the first is {found['first']}."


def lines(watch: Mapping[str, Any], width: int = 80) -> Iterator[tuple[str, str, list[str]]]:
    """Each finding for the terminal: the rule, the rest of its line, and the lines below."""
    for found in watch["findings"]:
        below = wrap(found["message"], INDENT, width=width)
        below += wrap(tests(found), INDENT, width=width)
        below += [f"{INDENT}  {line}" for line in remedy(found["remedy"], width)]
        yield heading(found), printable(f"  {place(found)}"), [printable(line) for line in below]


def remedy(text: str, width: int) -> list[str]:
    """What to do; a line of code is not broken."""
    if "(" in text and not text.endswith("."):
        return [text]
    return wrap(text, width=min(width - len(INDENT) - 2, TEXT_WIDTH))


def total(watch: Mapping[str, Any], width: int = 80) -> list[str]:
    """The last lines: how much was seen."""
    minding = f", {watch['minding']} with layers that mind the mode" if watch["training"] else ""
    severities = [found["severity"] for found in watch["findings"]]
    errors = severities.count("error")
    text = (
        f"watched {plural(watch['tests'], 'test')}: {watch['training']} train a model{minding}; "
        f"{plural(errors, 'error')}, {plural(len(severities) - errors, 'warning')}"
    )
    if watch["suppressed"]:
        text += f", {len(watch['suppressed'])} ignored"
    made = wrap(text, hanging="  ", width=width)
    for reason, count in watch["unseen"].items():
        made += wrap(f"not seen in {plural(count, 'test')}: what is {reason}", width=width)
    if watch["failed"]:
        count = plural(watch["failed"], "test")
        made += wrap(f"watching ended early in {count}: {watch['problem']}", width=width)
    return [printable(line) for line in made]
