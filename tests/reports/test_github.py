"""What GitHub Actions gets, read back as GitHub reads it."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from pytest_bncheck.report import Predictions, Report, Scored
from pytest_bncheck.reports import github
from pytest_bncheck.types import Finding

BAD = "<script>alert(1)</script>|`a` **b** __c__ @me #1 [x](http://x.de) &amp; \\"
FINDING = Finding(
    code="BN101",
    name="running-stats-underconverged",
    severity="error",
    message=f"100 % right, 33 % wrong, {BAD}. More.",
    cause=f"Because: of {BAD}\nand more.",
    layers=[],
    remedy=f"- Train.\n- Or:\n{BAD}",
    evidence={},
)
FAILED = Report(
    nodeid=f"test.py::test[{BAD}]",
    verdict="fail",
    findings=[FINDING],
    predictions=Predictions(1.05, train=Scored(0.1, 1.0), eval=Scored(9, 0.5)),
).to_dict()
PASSED = Report(nodeid="test.py::test_good").to_dict()
ERROR = Report(nodeid="test.py::test_e", verdict="error", error="ValueError: a\nb").to_dict()


def read(command: str) -> tuple[str, dict[str, str], str]:
    """A workflow command as the runner takes it apart: level, properties, text."""
    found = re.fullmatch(r"::(\w+) (.*?)::(.*)", command)
    assert found
    level, properties, text = found.groups()
    pairs = dict(pair.split("=", 1) for pair in properties.split(","))
    return level, {key: _plain(value) for key, value in pairs.items()}, _plain(text)


def _plain(text: str) -> str:
    for code, character in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(code, character)
    return text


def test_annotation() -> None:
    command = github.annotation(FAILED, "a,b:c/test%.py", 7)
    assert command is not None
    assert "\n" not in command
    level, properties, text = read(command)
    assert level == "error"
    title = "BN101 running-stats-underconverged"
    assert properties == {"file": "a,b:c/test%.py", "line": "7", "title": title}
    assert text.startswith("100 % right, 33 % wrong, <script>")
    assert FINDING.cause in text
    assert text.endswith(FAILED["nodeid"])


def test_levels() -> None:
    assert github.annotation(PASSED, "test.py", 1) is None
    error = github.annotation(ERROR, "test.py", 1)
    assert error is not None
    assert read(error) == (
        "error",
        {"file": "test.py", "line": "1", "title": "bncheck"},
        "ValueError: a\ntest.py::test_e",
    )
    warned = FAILED | {"verdict": "warn", "findings": FAILED["findings"] * 3}
    warning = github.annotation(warned, "test.py", 1)
    assert warning is not None
    assert read(warning)[0] == "warning"
    assert read(warning)[1]["title"].endswith(" and 2 more")


@pytest.mark.parametrize(
    ("file", "root", "workspace", "expected"),
    [
        ("tests/test.py", "/repo", None, "tests/test.py"),
        ("tests/test.py", "/repo/sub", "/repo", "sub/tests/test.py"),
        ("../other/test.py", "/repo/sub", "/repo", "other/test.py"),
        ("test.py", "/elsewhere", "/repo", "test.py"),
    ],
)
def test_paths_are_those_of_the_repository(
    file: str, root: str, workspace: str | None, expected: str
) -> None:
    assert github.in_repository(file, root, workspace) == expected


class Reader(HTMLParser):
    """The elements of a page, and the text of each cell, paragraph and heading."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag in ("td", "th", "p", "h2", "h3", "pre", "summary"):
            self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.texts:
            self.texts[-1] += data


def shown(text: str) -> Reader:
    markdown_it = pytest.importorskip("markdown_it")
    return Reader(markdown_it.MarkdownIt("commonmark").enable("table").render(text))


def test_step_summary() -> None:
    page = shown(github.step_summary([PASSED, FAILED, ERROR], lambda check: False))
    head = ["verdict", "test", "found", "train", "eval", "gap"]
    rows = [
        ["❌ error", "test.py::test_e", "", "", "", ""],
        ["❌ fail", FAILED["nodeid"], "BN101 running-stats-underconverged", "100 %", "50 %", "1.1"],
        ["✅ pass", "test.py::test_good", "", "", "", ""],
    ]
    texts = [text.strip() for text in page.texts]
    assert texts[0] == "bncheck: 1 error, 1 fail, 1 pass"
    assert texts[1:25] == [*head, *(cell for row in rows for cell in row)]
    assert texts[25:27] == ["test.py::test_e", "ValueError: a"]
    assert texts[27] == FAILED["nodeid"]
    assert texts[28] == (
        f"BN101 running-stats-underconverged: 100 % right, 33 % wrong, {BAD}. "
        f"Because: of {BAD} and more."
    )
    assert texts[29:] == ["What to do", f"- Train.\n- Or:\n    {BAD}"]


def test_no_name_becomes_a_tag() -> None:
    page = shown(github.step_summary([PASSED, FAILED], lambda check: False))
    ours = {"h2", "h3", "table", "thead", "tbody", "tr", "th", "td", "code", "p", "strong"}
    assert set(page.tags) == ours | {"details", "summary", "pre"}


def test_expected_failures_are_called_so_and_not_told() -> None:
    text = github.step_summary([FAILED], lambda check: True)
    assert "❌ fail (expected)" in text
    assert "What to do" not in text


def test_several_findings_have_a_line_each() -> None:
    check = dataclasses.replace(Report(), verdict="warn", findings=[FINDING, FINDING]).to_dict()
    text = github.step_summary([check], lambda check: False)
    assert "underconverged<br>BN101" in text
    assert text.count("What to do") == 2
