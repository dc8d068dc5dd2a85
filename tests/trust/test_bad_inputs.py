"""Every input that cannot be used gives one clear error, the one that `docs/errors.md` shows."""

from __future__ import annotations

import os
import re
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bad_inputs import CHECKS, FIXTURES, MARKERS, OPTIONS, Row
from pytest_bncheck import InputError, check

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
REWRITE = "BNCHECK_REWRITE"
"""Set to 1, with PyTorch installed, to write the page anew."""

TITLES = {
    "options": "Command line and ini file",
    "markers": "Marker",
    "fixtures": "Fixtures",
    "checks": "Models and batches, with PyTorch",
}
HEAD = ["what is wrong", "given", "error"]


def written(group: str) -> dict[str, tuple[str, str]]:
    """The rows of a section of the page."""
    section = PAGE.read_text(encoding="utf-8").partition(f"## {TITLES[group]}\n")[2]
    lines = [line for line in section.partition("\n## ")[0].splitlines() if line[:1] == "|"]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]
    return {what: (given, error) for what, given, error in cells}


def cell(text: str) -> str:
    """Text as one line of code in a table."""
    return "`" + re.sub(r"\s+", " ", text).strip().replace("|", r"\|").replace("`", "'") + "`"


def compare(group: str, rows: list[Row], errors: list[str]) -> None:
    """Hold a section of the page against what happened."""
    made = {
        row.what: (cell(row.given), cell(error)) for row, error in zip(rows, errors, strict=True)
    }
    assert len(made) == len(rows)
    if os.environ.get(REWRITE):
        lines = [HEAD, ["---"] * 3, *([what, *pair] for what, pair in made.items())]
        table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        before, title, rest = PAGE.read_text(encoding="utf-8").partition(f"## {TITLES[group]}\n")
        after = rest[rest.index("\n## ") :] if "\n## " in rest else ""
        PAGE.write_text(f"{before}{title}\n{table}{after}", encoding="utf-8")
    assert written(group) == made


def neutral(text: str, *folders: Path) -> str:
    """Without what differs from machine to machine."""
    for folder in folders:
        text = text.replace(str(folder), ".")
    text = re.sub(r"^(Failed|pytest_bncheck.InputError): ", "", text)
    text = re.sub(r"(for example in conftest.py:).*", r"\1 ...", text, flags=re.DOTALL)
    text = re.sub(r" at 0x[0-9a-f]+", "", text)
    return re.sub(r"this machine has cpu.*", "this machine has cpu", text)


def test_there_are_enough() -> None:
    assert len([*OPTIONS, *MARKERS, *FIXTURES, *CHECKS]) >= 60


# pytest -----------------------------------------------------------------------------------------


def test_options(project: Any) -> None:
    project.pytester.makepyfile("import pytest\n@pytest.mark.bn_consistency\ndef test_it(): ...")
    errors = []
    for row in OPTIONS:
        ini = "" if row.given.startswith("--") else row.given
        project.pytester.makeini(f"[pytest]\n{ini}\n")
        result = project.run(*([] if ini else [row.given]))
        assert result.ret == pytest.ExitCode.USAGE_ERROR, row
        (line,) = (line for line in result.stderr.lines if line.strip())
        errors.append(neutral(line.removeprefix("ERROR: "), project.path))
    compare("options", OPTIONS, errors)


def failures(project: Any, source: str, count: int) -> list[str]:
    """What each of the tests in a file fails with; nothing of the plugin's own is shown."""
    project.pytester.makepyfile(source)
    result = project.run("--bncheck", "--bncheck-json=report.json")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    reports = [r for r in result.reprec.getreports("pytest_runtest_logreport") if r.failed]
    assert [re.search(r"\d+", report.nodeid.partition("::")[2])[0] for report in reports] == [
        str(k) for k in range(count)
    ]
    assert not [r.longreprtext for r in reports if "pytest_bncheck/" in r.longreprtext]
    summary = project.report()["summary"]
    assert (summary["checks"], summary["errored"]) == (count, count)
    return [neutral(report.longrepr.reprcrash.message, project.path) for report in reports]


def test_markers(project: Any) -> None:
    tests = [
        f"@pytest.mark.bn_consistency({row.given})\ndef test_{k}(): ...\n"
        for k, row in enumerate(MARKERS)
    ]
    errors = failures(project, "import pytest\n\n" + "\n".join(tests), len(MARKERS))
    compare("markers", MARKERS, errors)


def test_fixtures(project: Any) -> None:
    head = "import pytest\nfrom toy import ToyModel, toy_batch\n\n"
    tests = [
        f"class Test{k}:\n"
        + textwrap.indent(f"@pytest.fixture\n{row.given}\n", "    ")
        + "    @pytest.mark.bn_consistency(steps=5)\n    def test(self): ...\n"
        for k, row in enumerate(FIXTURES)
    ]
    compare("fixtures", FIXTURES, failures(project, head + "\n".join(tests), len(FIXTURES)))


# check() ----------------------------------------------------------------------------------------


def test_checks() -> None:
    pytest.importorskip("torch")
    compare("checks", CHECKS, [outcome(row.given) for row in CHECKS])


def outcome(call: str) -> str:
    """What a call gives: an error of the plugin's, a finding, or the model's own error."""
    try:
        report = eval(call, names())
    except InputError as error:
        return neutral(str(error))
    except Exception as error:
        notes = getattr(error, "__notes__", [])
        assert "pytest-bncheck: raised in training step 1" in notes[-1]
        return f"{type(error).__name__}: {error} {' '.join(notes)}"
    (finding,) = report.findings
    return f"{finding.code} {finding.name} ({finding.severity}): {finding.message}"


def quietly(make: Callable[[], Any]) -> Callable[[], Any]:
    """Without the warnings that torch gives for what it will drop one day."""

    def made() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make()

    return made


def names() -> dict[str, Any]:
    """What the calls in the table use."""
    import numpy
    import torch
    from torch import nn

    def net(outputs: int = 3) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, outputs))

    @quietly
    def quantised() -> nn.Module:
        return torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}, dtype=torch.qint8)

    @quietly
    def scripted() -> nn.Module:
        return torch.jit.script(net())

    def adam(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters())

    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(12) % 3
    return {**locals(), "np": numpy, "check": check}
