"""The benchmarks work: each in its short form, whose times say nothing."""

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
    "auto_steps": "mean over 2 nets",
    "checkpoints": "weight of the initial value",
    "cost": "ResNet-18",
    "culprits": "by shares",
    "diagnosis": "training steps",
    "fuzz": "nets",
    "graphs": "20 graphs of torch: 0 differ",
    "keras_cost": "2 steps",
    "memory": "copies more",
    "own_norms": "designs and memories",
    "own_norms_keras": "designs and memories",
    "remedies": "all",
    "report_files": "HTML: 20 checks",
    "scaling": "-n 2",
    "startup": "start-up",
    "targets": "0 wrong verdicts",
    "three_images": "20 epochs at momentum",
    "zoo": "2 architectures",
}


PARTS = {"run", "pairs", "own_norms_table"}
NETS = {"nets_torch", "nets_keras", "zoo_torch", "zoo_keras", "target_nets"}
LONG = {"keras_story"}  # fits a ResNet-50 as its user does, which compiles for minutes


def test_every_benchmark_is_run() -> None:
    others = PARTS | NETS | LONG | {"gpu"}  # see test_gpu.py
    assert {path.stem for path in FOLDER.glob("*.py")} == {*SCRIPTS} | others


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
