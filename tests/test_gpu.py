"""The run on a GPU, and its small form on the CPU, which goes the same way."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("keras")

FOLDER = Path(__file__).parents[1] / "benchmarks"


def run(*arguments: str, **environment: str) -> str:
    """What the script prints of both frameworks."""
    done = subprocess.run(
        [sys.executable, "gpu.py", *arguments],
        cwd=FOLDER,
        env={**os.environ, "KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_without_a_gpu_small_nets_go_the_same_way(tmp_path) -> None:
    text = run("--table", str(tmp_path / "table.md"), CUDA_VISIBLE_DEVICES="")
    assert text.count("The GPU part is skipped: it sees no GPU.") == 2
    assert text.count("5 steps, cpu: fail BN101;") == 2
    assert text.count("as after 1000, cpu: pass;") == 2
    assert "autocast, cpu: pass;" in text
    assert "check / bare loop" in text
    assert "check / script" in text
    head, _, *rows = (tmp_path / "table.md").read_text().splitlines()
    assert head == "| where | what | found |"
    assert [row for row in rows if row.startswith(f"| PyTorch {torch.__version__}, ")]
    assert len([row for row in rows if "| 5 steps, cpu | fail BN101; gap " in row]) == 2


def test_the_tests_that_run_on_a_gpu_are_those_for_any_device() -> None:
    sys.path.insert(0, str(FOLDER))
    try:
        import gpu
    finally:
        sys.path.remove(str(FOLDER))
    command, environment = gpu.device_tests()
    assert environment == {"BNCHECK_DEVICE": gpu.accelerator() or "cpu"}
    assert all((FOLDER.parent / path).exists() for path in command if path.startswith("tests"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_the_verdicts_are_those_of_the_cpu() -> None:
    text = run()
    assert "5 steps, cuda:0: fail BN101;" in text
    assert "host synchronisations" in text


def test_synchronisations_are_counted(monkeypatch, capsys) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    import gpu

    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def check() -> SimpleNamespace:
        assert modes == ["warn"]
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
        return SimpleNamespace(verdict="pass", layers=[1, 2], steps=5)

    gpu.count_synchronisations(check)
    assert modes == ["warn", "default"]
    assert "a check (pass) with 2 layers and 5 steps: 3\n" in capsys.readouterr().out
