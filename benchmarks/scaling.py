"""A folder of 24 small models, without xdist and with one and two workers.

python benchmarks/scaling.py [--smoke]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from pairs import seconds

MODEL = """
import pytest, torch
from torch import nn

@pytest.fixture
def bncheck_model():
    layers = [nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))

@pytest.fixture
def bncheck_batch():
    return torch.randn(32, 3, SIDE, SIDE), torch.arange(32) % 4

@pytest.mark.bn_consistency(steps=60)
def test_model(): ...
"""

RUNS: dict[str, tuple[str, ...]] = {"no xdist": (), "-n 1": ("-n1",), "-n 2": ("-n2",)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="two models: does it work?")
    options = parser.parse_args()
    count, side = (2, 8) if options.smoke else (24, 32)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            Path(folder, f"test_{number:02}.py").write_text(f"SIDE = {side}\n{MODEL}")
        times = {
            name: seconds(lambda arguments=arguments: _pytest(folder, *arguments))
            for name, arguments in RUNS.items()
            if not options.smoke or name != "-n 1"
        }
    print(f"{count} models, one thread of torch per process, {os.cpu_count()} cores")
    for name, took in times.items():
        print(f"  {name:<8} {took:6.1f} s, {times['no xdist'] / took:.2f} times as fast")
    return 0


def _pytest(folder: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "pytest", "--bncheck", "-q", *arguments, folder]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True)


if __name__ == "__main__":
    sys.exit(main())
