"""Every rule, on every framework: its bad model fires it, its good one stays silent."""

from __future__ import annotations

import pytest

from pytest_bncheck import check
from pytest_bncheck.rules import RULES

from .conftest import EXAMPLES, load


@pytest.mark.parametrize("code", RULES)
def test_bad_model_fires_its_rule_alone(code: str, framework: str) -> None:
    module = load(framework, code)
    if hasattr(module, "NOT_APPLICABLE"):
        return
    case = module.bad()
    report = check(case.model, case.batch, **case.options)
    assert [finding.code for finding in report.findings] == [code], str(report)
    (finding,) = report.findings
    rule = RULES[code]
    assert (finding.name, finding.severity) == (rule.name, rule.severity)
    assert finding.message and finding.cause and finding.remedy
    assert report.verdict == ("fail" if rule.severity == "error" else "warn")


@pytest.mark.parametrize("code", RULES)
def test_good_model_is_silent(code: str, framework: str) -> None:
    module = load(framework, code)
    if hasattr(module, "NOT_APPLICABLE"):
        return
    case = module.good()
    report = check(case.model, case.batch, **case.options)
    assert not report.findings, str(report)
    assert report.verdict == "pass"


@pytest.mark.parametrize("code", RULES)
def test_page_has_its_headings(code: str) -> None:
    page = RULES[code].page
    headings = ["What it does", "Why it is bad", "Example", "Use instead", "References"]
    positions = [page.find(f"\n{heading}\n---") for heading in headings]
    assert -1 not in positions and positions == sorted(positions)


def test_every_rule_has_one_file_named_after_it() -> None:
    for code, rule in RULES.items():
        module = type(rule).__module__.rsplit(".", 1)[-1]
        assert module == f"{code.lower()}_{rule.name.replace('-', '_')}"
        for framework in ("torch", "keras"):
            assert (EXAMPLES / framework / f"{code.lower()}.py").exists()
