"""Of several processes of one run, as torchrun starts them, the first reports."""

from __future__ import annotations

import pytest

TEST = """
import pytest
@pytest.mark.bn_consistency
def test_it(): ...
"""


@pytest.mark.parametrize(
    ("environment", "reports"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, True),
        ({"RANK": "1", "WORLD_SIZE": "2"}, False),
        ({"RANK": "1", "WORLD_SIZE": "1"}, True),
        ({"RANK": "3"}, True),
        ({}, True),
    ],
)
def test_only_the_first_process_reports(project, monkeypatch, environment, reports):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    project.pytester.makepyfile(TEST)
    result = project.run("--bncheck", "--bncheck-ignore=BN", "--bncheck-json=report.json")
    result.assert_outcomes(passed=1)
    assert (project.path / "report.json").exists() == reports
    assert ("= bncheck =" in result.stdout.str()) == reports
