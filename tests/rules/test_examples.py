"""Every rule, on every framework: its bad model fires it, its good one stays silent.

The table in the docs is made from these results.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from pytest_bncheck.rules import RULES
from rule_examples import EXAMPLES, REWRITE, examine, load

FRAMEWORKS = {"torch": "PyTorch", "keras": "Keras"}
TABLE = Path(__file__).parents[2] / "docs" / "rules.md"


@pytest.mark.parametrize("code", RULES)
def test_bad_model_fires_its_rule_alone(code: str, framework: str) -> None:
    report = examine(framework, code, "bad")
    if report is None:
        module = load(framework, code)
        elsewhere = getattr(module, "ELSEWHERE", None)
        assert module.NOT_APPLICABLE if elsewhere is None else expects(elsewhere, code)
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
