"""What the plugin costs a suite that does not use it.

    python benchmarks/startup.py [--smoke]

1. `pytest --collect-only` in an empty folder, with the plugin installed and off, against
   `-p no:bncheck`, in alternating pairs: the median difference in milliseconds, and which modules
   it imports that the other does not.
2. A suite of 2,000 trivial tests, with `--bncheck` against `-p no:bncheck`: the difference per
   test in microseconds.

The exit code is 1 where the start-up costs more than 10 ms.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from pairs import pairs

LIMIT = 10.0
SUITE = """
import pytest

@pytest.mark.parametrize("number", range({count}))
def test_trivial(number):
    assert number >= 0
"""
LIST = "import sys, pytest; pytest.main(sys.argv[1:]); print('MODULES', *sorted(sys.modules))"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="one pair each: does it work?")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        cost = _start_up(2 if options.smoke else 40)
        _suite(20 if options.smoke else 2000, 1 if options.smoke else 5)
        os.chdir("/")
    return int(cost > LIMIT and not options.smoke)


def _start_up(repeats: int) -> float:
    collect = ["--collect-only", "-q", "-p", "no:cacheprovider"]
    measured = pairs(lambda: _pytest(*collect), lambda: _pytest(*collect, *OFF), repeats)
    costs = sorted(1000 * (on - off) for on, off in measured)
    quarters = statistics.quantiles(costs, n=4)
    print(
        f"start-up: {statistics.median(costs):+.1f} ms (middle half {quarters[0]:+.1f} to "
        f"{quarters[2]:+.1f}) on {1000 * statistics.median(off for _, off in measured):.0f} ms"
    )
    more = _modules(*collect) - _modules(*collect, *OFF)
    print(f"  imports in addition: {', '.join(sorted(more)) or 'nothing'}")
    return statistics.median(costs)


def _suite(count: int, repeats: int) -> None:
    Path("test_trivial.py").write_text(SUITE.format(count=count))
    run = ["-q", "-p", "no:cacheprovider"]
    measured = pairs(lambda: _pytest(*run, "--bncheck"), lambda: _pytest(*run, *OFF), repeats)
    costs = sorted(1e6 * (on - off) / count for on, off in measured)
    print(
        f"suite of {count} trivial tests: {statistics.median(costs):+.0f} microseconds per test "
        f"({costs[0]:+.0f} to {costs[-1]:+.0f}) on "
        f"{1e6 * statistics.median(off for _, off in measured) / count:.0f}"
    )


OFF = ("-p", "no:bncheck")


def _pytest(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pytest", *arguments], capture_output=True)


def _modules(*arguments: str) -> set[str]:
    run = subprocess.run([sys.executable, "-c", LIST, *arguments], capture_output=True, text=True)
    return set(run.stdout.rpartition("MODULES ")[2].split())


if __name__ == "__main__":
    sys.exit(main())
