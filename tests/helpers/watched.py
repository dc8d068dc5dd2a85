"""Suites that nobody adapted, and what watching them has to find.

A line of such a suite that has to be found says so at its end: ``# BN305``. Nothing else is found.
"""

from __future__ import annotations

import re
from pathlib import Path

Found = tuple[str, str, int]
"""Rule, file and line."""


def expected(folder: Path) -> set[Found]:
    """What the comments in the files of a folder say."""
    return {
        (code, path.relative_to(folder).as_posix(), number)
        for path in folder.rglob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for code in re.findall(r"\bBN\d{3}\b", line.partition("#")[2])
    }


def found(report: dict) -> set[Found]:
    """What a JSON report says."""
    findings = report["watch"]["findings"]
    places = [(each["code"], each["model"], each["file"], each["line"]) for each in findings]
    assert len({*places}) == len(places), places
    return {(code, file, line) for code, _, file, line in places}
