"""Every rule, on every framework: its bad model fires it, its good one stays silent.

The table in the docs is made from these results, and `messages/` has one file a rule and framework
with what is said of the bad model. The words have to be the same; figures may differ as they do
from one processor to the next. This writes the table, and the files that differ by more:

    BNCHECK_REWRITE=1 python -m pytest tests/rules/test_examples.py
"""

from __future__ import annotations

import difflib
import itertools
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from pytest_bncheck.reports.watch import lines as watched_lines
from pytest_bncheck.rules import RULES
from rule_examples import EXAMPLES, REWRITE, examine, load, watch

FRAMEWORKS = {"torch": "PyTorch", "keras": "Keras"}
TABLE = Path(__file__).parents[2] / "docs" / "rules.md"
MESSAGES = Path(__file__).with_name("messages")
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
MADE_BY = {"torch": ["torch"], "keras": ["keras", "tensorflow-cpu"]}
"""Packages with which the files are made, in the versions of `constraints.txt`."""

FIGURE = re.compile(r"(?<![\w.])(\d+)(\.\d+)?(?!\w)( +%)?")
NEAR = 0.25
"""By what part of the larger one two figures may differ, percentages by 10 points."""


@pytest.mark.parametrize("code", RULES)
def test_bad_model_fires_its_rule_alone(code: str, framework: str) -> None:
    watched = watch(framework, code, "bad")
    if watched is not None:
        (found,) = watched["findings"]
        assert (found["code"], found["name"]) == (code, RULES[code].name)
        assert found["severity"] == RULES[code].severity
        return
    report = examine(framework, code, "bad")
    if report is None:
        module = load(framework, code)
        elsewhere = getattr(module, "ELSEWHERE", None)
        reason = getattr(module, "TWO_DEVICES", None) or getattr(module, "NOT_APPLICABLE", None)
        assert reason if elsewhere is None else expects(elsewhere, code)
        return
    assert [finding.code for finding in report.findings] == [code], str(report)
    (finding,) = report.findings
    rule = RULES[code]
    assert (finding.name, finding.severity) == (rule.name, rule.severity)
    assert all((finding.message, finding.cause, finding.remedy))
    assert report.verdict == ("fail" if rule.severity == "error" else "warn")


def expects(repo: str, code: str) -> bool:
    """Whether a model repo, which has a test of its own, says that it shows the rule."""
    checks = json.loads((EXAMPLES.parents[1] / repo / "expected.json").read_text())["checks"]
    return code in itertools.chain(*checks.values())


@pytest.mark.parametrize("code", RULES)
def test_good_model_is_silent(code: str, framework: str) -> None:
    watched = watch(framework, code, "good")
    if watched is not None:
        assert not watched["findings"]
        assert watched["minding"] == 1
    report = examine(framework, code, "good")
    if report is not None:
        assert not report.findings, str(report)
        assert report.verdict == "pass"


@pytest.mark.parametrize("code", RULES)
def test_text_fits_a_terminal(code: str, framework: str) -> None:
    report = examine(framework, code, "bad")
    lines = str(report).splitlines() if report is not None else []
    long = [line for line in lines if len(line) > 80 and " " in line.strip()]
    assert not [line for line in long if not line.startswith("      ")], "\n".join(long)


@pytest.mark.parametrize("code", RULES)
def test_page_has_its_headings(code: str) -> None:
    page = RULES[code].page
    headings = ["What it does", "Why it is bad", "Example", "Use instead", "References"]
    positions = [page.find(f"\n{heading}\n---") for heading in headings]
    assert -1 not in positions
    assert positions == sorted(positions)


def test_every_rule_has_one_file_named_after_it() -> None:
    for code, rule in RULES.items():
        module = type(rule).__module__.rsplit(".", 1)[-1]
        assert module == f"{code.lower()}_{rule.name.replace('-', '_')}"
        for framework in FRAMEWORKS:
            assert (EXAMPLES / framework / f"{code.lower()}.py").exists()


def cell(framework: str, code: str) -> str:
    """What the docs say about a rule on a framework, from what its examples did."""
    elsewhere = getattr(load(framework, code), "ELSEWHERE", None)
    if elsewhere is not None:
        return f"in {elsewhere}"
    if hasattr(load(framework, code), "WATCHED"):
        return "in watch mode"
    if hasattr(load(framework, code), "TWO_DEVICES"):
        return "on two devices"
    bad, good = (examine(framework, code, which) for which in ("bad", "good"))
    if bad is None or good is None:
        return "not applicable"
    caught = "caught" if code in {finding.code for finding in bad.findings} else "missed"
    return f"{caught}, {'false alarm' if good.findings else 'silent'}"


def test_the_table_in_the_docs_is_what_the_examples_do(framework: str) -> None:
    """Set BNCHECK_REWRITE=1, with both frameworks installed, to write it."""
    if REWRITE:
        rows = [
            f"| {code} | {rule.name} | {rule.severities} "
            + "".join(f"| {cell(name, code)} " for name in FRAMEWORKS)
            + "|"
            for code, rule in RULES.items()
        ]
        top = TABLE.read_text(encoding="utf-8").partition("| code")[0]
        head = f"| code | name | severity | {' | '.join(FRAMEWORKS.values())} |"
        line = "|---" * (3 + len(FRAMEWORKS)) + "|"
        TABLE.write_text(top + "\n".join([head, line, *rows]) + "\n", encoding="utf-8")
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    table = [[part.strip() for part in x.strip("|").split("|")] for x in lines if x[:1] == "|"]
    column = table[0].index(FRAMEWORKS[framework])
    written = {row[0]: (row[1], row[2], row[column]) for row in table[2:]}
    made = {
        code: (rule.name, rule.severities, cell(framework, code)) for code, rule in RULES.items()
    }
    assert written == made


# messages -----------------------------------------------------------------------------------------


@pytest.fixture
def same_versions(framework: str) -> None:
    """Other versions draw other weights, and what a message says depends on them."""
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", CONSTRAINTS.read_text(), flags=re.MULTILINE))
    if framework == "keras" and os.environ["KERAS_BACKEND"] != "tensorflow":
        pytest.skip("the messages are those of Keras on TensorFlow")
    for package in MADE_BY[framework]:
        try:
            version = metadata.version(package).partition("+")[0]
        except metadata.PackageNotFoundError:
            version = "missing"
        if version != pins[package]:
            pytest.skip(f"the messages are those of {package} {pins[package]}, not {version}")


def printed(framework: str, code: str) -> str | None:
    """The text of the check of a bad example, or None where the rule does not apply."""
    elsewhere = getattr(load(framework, code), "ELSEWHERE", None)
    if elsewhere is not None:
        return printed_in(EXAMPLES.parents[1] / elsewhere)
    watched = watch(framework, code, "bad")
    if watched is not None:
        shown = ((rule + rest, *below) for rule, rest, below in watched_lines(watched))
        return "\n".join(line for each in shown for line in each) + "\n"
    report = examine(framework, code, "bad")
    return None if report is None else f"{report}\n"


def printed_in(repo: Path) -> str:
    """What the first of two processes prints of the failing test of a model repo."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run += ["--local-ranks-filter=0", "-m", "pytest", "--bncheck", "test_caught.py"]
    done = subprocess.run(run, cwd=repo, capture_output=True, text=True, timeout=300)
    lines = re.findall(r"^E   (.*)", done.stdout, flags=re.MULTILINE)
    assert lines, done.stdout + done.stderr
    text = "\n".join(line.rstrip() for line in lines) + "\n"
    return text.removeprefix("pytest_bncheck.CheckFailed: ")


def agree(old: str, new: str) -> bool:
    """Whether two texts have the same words in the same paragraphs, and figures that are near."""
    if words(old) != words(new):
        return False
    pairs = zip(FIGURE.finditer(old), FIGURE.finditer(new), strict=True)
    return all(near(float(a[1] + (a[2] or "")), float(b[1] + (b[2] or "")), a[3]) for a, b in pairs)


def words(text: str) -> list[list[str]]:
    """The words of each paragraph, with zeros in place of the digits of a figure."""
    zeros = FIGURE.sub(lambda m: "0" + re.sub(r"\d", "0", m[2] or "") + (m[3] or ""), text)
    return [paragraph.split() for paragraph in zeros.split("\n\n")]


def near(a: float, b: float, percent: str | None) -> bool:
    return abs(a - b) <= max(NEAR * max(a, b), 10.0 if percent else 0.02)


@pytest.mark.usefixtures("same_versions")
@pytest.mark.parametrize("code", RULES)
def test_messages(code: str, framework: str) -> None:
    file = MESSAGES / f"{code}-{framework}.txt"
    old = file.read_text(encoding="utf-8") if file.exists() else ""
    new = printed(framework, code) or ""
    if agree(old, new):
        return
    if not REWRITE:
        lines = difflib.unified_diff(
            old.splitlines(), new.splitlines(), f"messages/{file.name}", "now", lineterm=""
        )
        pytest.fail("\n".join([*lines, "", *(__doc__ or "").splitlines()[-3:]]), pytrace=False)
    file.unlink(missing_ok=True)
    if new:
        file.parent.mkdir(exist_ok=True)
        file.write_text(new, encoding="utf-8")


def test_no_file_is_left_over() -> None:
    names = {f"{code}-{framework}.txt" for code in RULES for framework in MADE_BY}
    assert {path.name for path in MESSAGES.iterdir()} <= names


@pytest.mark.parametrize(
    ("new", "same"),
    [
        ("BN1: 20 of 32\n  differ by 1.02.\n\nDo it.", True),
        ("BN1: 20 of\n  32 differ by 1.00.\n\nDo it.", True),
        ("BN1: 20 of 32 differ by 1.90.\n\nDo it.", False),
        ("BN1: 20 of 32 differ by 1.0.\n\nDo it.", False),
        ("BN2: 20 of 32 differ by 1.00.\n\nDo it.", False),
        ("BN1: 20 of 32 differ by 1.00. Do it.", False),
        ("BN1: 20 of 32 differ by 1.00.\n\nDo that.", False),
    ],
)
def test_what_counts_as_the_same(new: str, same: bool) -> None:
    assert agree("BN1: 20 of 32 differ by 1.00.\n\nDo it.", new) is same
