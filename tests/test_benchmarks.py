"""Benchmarks work: the quick ones in their short form, whose times say nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("keras")

FOLDER = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = {
    "graphs": "20 graphs of torch: 0 differ",
    "own_norms": "designs and memories",
    "own_norms_keras": "designs and memories",
    "report_files": "HTML: 20 checks",
    "startup": "start-up",
    "targets": "0 wrong verdicts",
}
WEEKLY = {
    "auto_steps",
    "checkpoints",
    "cost",
    "culprits",
    "diagnosis",
    "fuzz",
    "keras_cost",
    "memory",
    "peers",
    "remedies",
    "scaling",
    "three_images",
    "zoo",
}
"""By `benchmarks/run.py --smoke`, which takes minutes."""

PARTS = {"run", "pairs", "own_norms_table", "peer_cases", "peer_tools"}
NETS = {"nets_torch", "nets_keras", "zoo_torch", "zoo_keras", "zoo_transformers", "target_nets"}
LONG = {"keras_story"}  # fits a ResNet-50 as its user does, which compiles for minutes


def test_every_benchmark_is_run() -> None:
    others = PARTS | NETS | LONG | WEEKLY | {"gpu"}  # see test_gpu.py
    assert {path.stem for path in FOLDER.glob("*.py")} == {*SCRIPTS} | others
    runs = (FOLDER / "run.py").read_text()
    assert all(f'("{name}.py",)' in runs for name in {*SCRIPTS} | WEEKLY | LONG)


@pytest.mark.parametrize("script", SCRIPTS)
def test_short_form(script: str) -> None:
    if script.startswith("keras"):
        pytest.importorskip("keras")
    run = subprocess.run(
        [sys.executable, f"{script}.py", "--smoke"],
        cwd=FOLDER,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert SCRIPTS[script] in run.stdout
