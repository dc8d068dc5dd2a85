"""What the diagnosis of a failing check costs, by normalisation layers and mini-batches.

    python benchmarks/diagnosis.py [--framework torch|keras] [--smoke]

For 20 and 150 layers, and for 20 layers with 8 mini-batches. Counts the passes that the diagnosis
makes, and prints its time in training steps of the same check: the median of several checks, with
the smallest and the largest. The exit code is 1 where it costs more than 10 steps, or where the
number of passes grows with the number of layers or of mini-batches.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
from typing import Any

from pytest_bncheck import adapters
from pytest_bncheck.experiment import engine
from pytest_bncheck.types import Recipe, Settings

STEPS = 20
LIMIT = 10.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--framework", choices=("torch", "keras"), default="torch")
    parser.add_argument("--smoke", action="store_true", help="one small check: does it work?")
    options = parser.parse_args()
    nets = importlib.import_module(f"nets_{options.framework}")
    repeats = 1 if options.smoke else 5
    sizes = ((20, 1), (20, 8)) if options.smoke else ((20, 1), (150, 1), (20, 8))
    print(f"{options.framework}: diagnosis of a failing check, median of {repeats} [least, most]")
    passes, dear = [], False
    for layers, batches in sizes:
        measured = [_measure(nets, layers, batches, seed) for seed in range(repeats)]
        ratios = sorted(ratio for ratio, _ in measured)
        passes.append(max(count for _, count in measured))
        dear |= statistics.median(ratios) > LIMIT
        print(
            f"  {layers:>3} layers, mini-batches {batches}: "
            f"{statistics.median(ratios):.2f} training steps "
            f"[{ratios[0]:.2f}, {ratios[-1]:.2f}], {passes[-1]} passes",
            flush=True,
        )
    return int((dear and not options.smoke) or max(passes) > MOST_PASSES)


MOST_PASSES = 40
"""Passes that the searches can take at most, whatever the net: far below its layers."""


def _measure(nets: Any, layers: int, batches: int, seed: int) -> tuple[float, int]:
    """Time of the diagnosis in training steps, and its passes."""
    model = nets.deep(layers, seed)
    stream = [nets.data(100 * seed + k) for k in range(batches)]
    adapter = adapters.find(model)
    count = 0

    class Counted(adapter):  # type: ignore[misc, valid-type]
        def predict(self, batch: int, **options: Any) -> Any:
            nonlocal count
            count += 1
            return super().predict(batch, **options)

        def slopes(self, batch: int, direction: Any) -> Any:
            nonlocal count
            count += 2  # a forward and a backward
            return super().slopes(batch, direction)

    report = engine.run(model, stream, Settings(steps=STEPS, seed=seed), Recipe(), Counted)
    if report.bn_verdict != "broken":
        raise SystemExit(f"the check of {layers} layers does not fail, so nothing is diagnosed")
    # Passes in eval mode that every check makes; of a stream two on each mini-batch more.
    measuring = 1 if batches == 1 else 1 + 2 * batches
    return report.seconds.diagnose / (report.seconds.train / STEPS), count - measuring


if __name__ == "__main__":
    sys.exit(main())
