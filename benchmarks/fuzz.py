"""Random small networks, healthy or with a planted fault: does the check tell the truth?

    python benchmarks/fuzz.py [--nets 2000] [--seed 0] [--smoke]

Prints counts per design and fault; exits 1 if a verdict is wrong. A wrong one is repeated with
``--nets 1 --seed N``. Seeds below 100000 draw no nets by hand.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from random_cases import (
    BY_HAND,
    FAULTS,
    FAULTS_BY_HAND,
    HEALTHY,
    HEALTHY_BY_HAND,
    draw,
    judge,
)

COLUMNS = "{:<24}{:>6}{:>8}{:>12}{:>10}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nets", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=BY_HAND)
    parser.add_argument("--smoke", action="store_true", help="ten nets: does it work?")
    options = parser.parse_args()
    if options.smoke:
        options.nets = 10
    torch.set_num_threads(1)
    nets: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    beside: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    start = time.perf_counter()
    for seed in range(options.seed, options.seed + options.nets):
        case, began = draw(seed), time.perf_counter()
        outcome = judge(case)
        nets[case.plan] += 1
        beside[case.plan] += bool(outcome.asides)
        seconds[case.plan] += time.perf_counter() - began
        if outcome.wrong:
            wrong[case.plan] += 1
            print(f"seed {seed}, {case.plan}: {outcome.wrong}\n{outcome.text}\n")
    print(COLUMNS.format("", "nets", "wrong", "with aside", "ms each"))
    healthy, planted = HEALTHY + HEALTHY_BY_HAND, FAULTS + FAULTS_BY_HAND
    for title, plans in (("healthy", healthy), ("planted", planted)):
        names = [name for name in dict.fromkeys(plan.__name__ for plan in plans) if nets[name]]
        for name in names:
            each = 1000 * seconds[name] / nets[name]
            print(COLUMNS.format(name, nets[name], wrong[name], beside[name], f"{each:.0f}"))
        totals = (sum(counter[name] for name in names) for counter in (nets, wrong, beside))
        print(COLUMNS.format(f"all {title}", *totals, ""))
    took = time.perf_counter() - start
    print(f"seed {options.seed}: {sum(wrong.values())} of {options.nets} wrong in {took:.0f} s")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
