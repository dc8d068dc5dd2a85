"""The script that starts a new rule, in a copy of the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = (
    "pytest_bncheck",
    "fixtures/rules",
    "tests",
    "tools",
    "docs",
    "README.md",
    "pyproject.toml",
)
FIND = """\
        fast = [layer.name for layer in evidence.layers if (layer.update_rate or 0) > 0.3]
        return self.finding("m", cause="c", remedy="r", layers=fast) if fast else None
"""


@pytest.fixture
def copy(tmp_path):
    for part in PARTS:
        source, target = ROOT / part, tmp_path / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return tmp_path


def python(copy, *args):
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
    return subprocess.run(
        [sys.executable, *args],
        cwd=copy,
        env=environment | {"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
    )


def start(copy, *args):
    return python(copy, "tools/new_rule.py", *args)


def outcomes(copy, selected):
    done = python(copy, "-m", "pytest", "-q", "tests/rules/test_examples.py", "-k", selected)
    return pytest.RunResult.parse_summary_nouns(done.stdout.splitlines()), done.stdout


def test_a_new_rule_fails_its_tests_until_it_is_written(copy):
    pytest.importorskip("torch")
    done = start(copy, "BN399", "memory-of-a-goldfish", "--severity", "warning")
    assert done.returncode == 0, done.stderr
    found, text = outcomes(copy, "(BN399 and not keras and not messages) or named_after")
    assert found == {"failed": 1, "passed": 4, "deselected": found["deselected"]}, text
    assert "test_bad_model_fires_its_rule_alone[torch-BN399]" in text

    rule = copy / "pytest_bncheck" / "rules" / "bn399_memory_of_a_goldfish.py"
    rule.write_text(rule.read_text().replace("        return None\n", FIND))
    example = copy / "fixtures" / "rules" / "torch" / "bn399.py"
    example.write_text(example.read_text().replace("mlp()", "mlp(momentum=0.4)", 1))
    found, text = outcomes(copy, "(BN399 and not keras and not messages) or named_after")
    assert (found["passed"], "failed" in found) == (5, False), text


def test_a_new_rule_is_listed_in_the_readme(copy):
    start(copy, "BN203", "some-other-path")
    codes = [line[2:7] for line in (copy / "README.md").read_text().splitlines() if "| BN" in line]
    assert codes == sorted(codes)
    assert "BN203" in codes


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("BN101", "something-new"), "BN101 is taken"),
        (("X1", "something-new"), "for example: BN308"),
        (("BN308", "Something New"), "for example: BN308"),
    ],
)
def test_what_cannot_be_a_rule(copy, args, error):
    done = start(copy, *args)
    assert done.returncode == 2
    assert error in done.stderr
