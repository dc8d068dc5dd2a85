"""Models as public examples have them, written small: each healthy, and with one fault."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from forked import pytest_in

FIXTURES = Path(__file__).parents[1] / "fixtures"

FAULTS = {
    "public_keras": {
        "ctc": ("momentum_of_long_trainings", "BN101"),
        "diffusion": ("averages_no_statistics", "BN401"),
        "distiller": ("drops_in_eval_mode", "BN302"),
        "gan": ("never_trains_its_norm", "BN305"),
        "siamese": ("never_trains_its_norm", "BN305"),
        "vae": ("samples_in_eval_mode", "BN302"),
    },
    "public_torch": {
        "byol": ("trained_in_eval_mode", "BN305"),
        "detector": ("skips_its_norm_in_eval_mode", "BN201"),
        "graphs": ("normalises_as_in_training", "BN301"),
        "segmentation": ("momentum_in_another_convention", "BN101"),
        "tagger": ("drops_in_eval_mode", "BN302"),
        "values": ("learns_in_eval_mode", "BN305"),
    },
}
"""For each model the test of its faulty twin, and the rule that says so."""

CONFTEST = 15
"""Most lines that a user has to write for one of them."""


@pytest.mark.parametrize("repo", FAULTS)
def test_healthy_models_pass_and_faulty_ones_fail(repo: str, tmp_path: Path) -> None:
    framework = "tensorflow" if repo.endswith("keras") else "torch"
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"needs {framework}")
    shutil.copytree(FIXTURES / repo, tmp_path, dirs_exist_ok=True)
    code, text = pytest_in(tmp_path, "--bncheck", "--bncheck-json=r.json", "--strict-markers")
    assert code == pytest.ExitCode.TESTS_FAILED, text
    checks = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["checks"]
    found = {
        check["nodeid"].partition("[")[0]: [
            check["verdict"],
            *(finding["code"] for finding in check["findings"] if finding["severity"] == "error"),
        ]
        for check in checks
    }
    wanted: dict[str, list[str]] = {}
    for model, (fault, rule) in FAULTS[repo].items():
        file = f"{model}/test_{model}.py"
        wanted |= {f"{file}::test_{model}": ["pass"], f"{file}::test_{fault}": ["fail", rule]}
    assert found == wanted, text


def test_none_takes_many_lines() -> None:
    for repo, models in FAULTS.items():
        for model in models:
            lines = (FIXTURES / repo / model / "conftest.py").read_text("utf-8").splitlines()
            assert len([line for line in lines if line]) <= CONFTEST, model
