"""Every input that cannot be used gives one clear error, the one that `docs/errors.md` shows."""

from __future__ import annotations

import re
import textwrap
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from bad_inputs import CHECKS, FIXTURES, KERAS, MARKERS, OPTIONS, TORCH
from bad_inputs_page import ARRAYS, X, Y, compare, neutral, outcome


def test_there_are_enough() -> None:
    assert len([*OPTIONS, *MARKERS, *FIXTURES, *CHECKS, *TORCH, *KERAS]) >= 160


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


@pytest.mark.parametrize("group", ["checks", "torch"])
def test_checks(group: str) -> None:
    pytest.importorskip("torch")
    rows = {"checks": CHECKS, "torch": TORCH}[group]
    compare(group, rows, [outcome(row.given, names()) for row in rows])


def quietly(make: Callable[[], Any]) -> Callable[[], Any]:
    """Without the warnings that torch gives for what it will drop one day."""

    def made() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make()

    return made


def names() -> dict[str, Any]:
    """What the calls in the table use."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    def net(outputs: int = 3) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, outputs))

    def frozen() -> nn.Module:
        return net().requires_grad_(False)

    @quietly
    def quantised() -> nn.Module:
        return torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}, dtype=torch.qint8)

    @quietly
    def scripted() -> nn.Module:
        return torch.jit.script(net())

    def nested_tensor(rows: torch.Tensor) -> torch.Tensor:
        return quietly(lambda: torch.nested.nested_tensor(list(rows)))()

    def adam(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters())

    def samples() -> TensorDataset:
        return TensorDataset(tx, ty)

    tx, ty = torch.from_numpy(X), torch.from_numpy(Y)
    return {**ARRAYS, **locals(), "DataLoader": DataLoader}
