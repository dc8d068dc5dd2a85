"""Random graphs of objects, changed at random: is everything put back?

    python benchmarks/graphs.py [--framework torch|keras] [--smoke]

The exit code is 1 where anything differs afterwards.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / part) for part in ("helpers", "trust")]

GRAPHS = 10_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--framework", choices=("torch", "keras"), default="torch")
    parser.add_argument("--smoke", action="store_true", help="a few graphs: does it work?")
    options = parser.parse_args()
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    graphs = importlib.import_module(f"{options.framework}_graphs")
    from random_graphs import trial

    count = 20 if options.smoke else GRAPHS
    started, wrong = time.perf_counter(), []
    for seed in range(count):
        before, _, after = trial(seed, graphs.KINDS, graphs.remembered)
        if after != before:
            wrong.append(seed)
    seconds = time.perf_counter() - started
    print(
        f"{count} graphs of {options.framework}: {len(wrong)} differ {wrong[:20]}, {seconds:.0f} s"
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
