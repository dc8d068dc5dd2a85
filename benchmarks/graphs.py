"""Random graphs of objects, changed at random: is everything put back?

python benchmarks/graphs.py          # 10,000 graphs with PyTorch
python benchmarks/graphs.py 500 keras
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / part) for part in ("helpers", "trust")]


def main(count: int = 10_000, framework: str = "torch") -> int:
    """Try so many graphs; the exit status is the number of those that differ, at most 100."""
    if framework == "keras":
        os.environ.setdefault("KERAS_BACKEND", "tensorflow")
        from keras_graphs import KINDS, remembered
    else:
        from torch_graphs import KINDS, remembered
    from random_graphs import World

    started, wrong = time.perf_counter(), []
    for seed in range(count):
        world = World(seed, KINDS)
        before = world.read()
        put_back = remembered(world.root)
        world.change()
        put_back()
        if world.read() != before:
            wrong.append(seed)
    seconds = time.perf_counter() - started
    print(f"{count} graphs with {framework}: {len(wrong)} differ {wrong[:20]}, {seconds:.0f} s")
    return min(len(wrong), 100)


if __name__ == "__main__":
    sys.exit(main(*(int(arg) if arg.isdigit() else arg for arg in sys.argv[1:])))
