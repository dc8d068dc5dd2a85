"""What the plugin costs a suite that does not use it.

    python benchmarks/startup.py [--smoke] [--instructions]

1. `pytest --collect-only` in an empty folder, with the plugin installed and off, against
   `-p no:bncheck`, in alternating pairs: the median difference in milliseconds, and which modules
   it imports that the other does not.
2. A suite of 200 trivial tests, with `--bncheck` against `-p no:bncheck`, both in one process,
   which takes turns every quarter of a second: the difference in microseconds per test, less that
   of a suite of one test, which is what start and end cost. In turns of seconds, with a process
   for each, the median of 60 pairs was known to 20 microseconds only.

Other plugins that are installed stay out of both sides. The exit code is 1 where the start-up
costs more than 10 ms, or a test more than 20 microseconds.

With `--instructions` both are counted in instructions of the processor by Valgrind's callgrind,
which no other work on the machine disturbs; that takes about five minutes and has no limit.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from pairs import in_a_process, pairs

START_UP, TEST = 10.0, 20.0
"""Limits, in milliseconds and in microseconds."""

ONLY = [
    argument
    for plugin in entry_points(group="pytest11")
    if plugin.name != "bncheck"
    for argument in ("-p", f"no:{plugin.name}")
]
OFF = ("-p", "no:bncheck")
RUN = ("-q", "-p", "no:cacheprovider")
LIST = "import sys, pytest; pytest.main(sys.argv[1:]); print('MODULES', *sorted(sys.modules))"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="two pairs each: does it work?")
    parser.add_argument("--instructions", action="store_true", help="counted by Valgrind")
    parser.add_argument("--measure", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps({"runs": _measured(*options.measure)}))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        if options.instructions:
            _count(20 if options.smoke else 300)
            start_up = test = 0.0
        else:
            start_up = _start_up(2 if options.smoke else 100)
            test = _suite(20 if options.smoke else 200, 2 if options.smoke else 400)
        os.chdir("/")
    return int((start_up > START_UP or test > TEST) and not options.smoke)


def _start_up(repeats: int) -> float:
    collect = ["--collect-only", *RUN]
    _pytest(*collect)  # so that what Python compiles is there
    measured = pairs(lambda: _pytest(*collect), lambda: _pytest(*collect, *OFF), repeats)
    costs = [1000 * (on - off) for on, off in measured]
    print(
        f"start-up: {_middle(costs)} ms "
        f"on {1000 * statistics.median(off for _, off in measured):.0f} ms"
    )
    more = _modules(*collect) - _modules(*collect, *OFF)
    print(f"  imports in addition: {', '.join(sorted(more)) or 'nothing'}")
    return statistics.median(costs)


def _suite(count: int, repeats: int) -> float:
    def measured(tests: int) -> list[tuple[float, float]]:
        found = in_a_process(__file__, "torch", "--measure", str(tests), str(repeats))
        return [(on, off) for on, off in found["runs"]]

    least = statistics.median(on - off for on, off in measured(1))
    runs = measured(count)
    costs = [1e6 * (on - off - least) / (count - 1) for on, off in runs]
    print(
        f"suite of {count} trivial tests: {_middle(costs)} microseconds per test "
        f"on {1e6 * statistics.median(off for _, off in runs) / count:.0f}, "
        f"and {1000 * least:.0f} ms once"
    )
    return statistics.median(costs)


def _measured(tests: int, repeats: int) -> list[tuple[float, float]]:
    """Seconds of a suite with checks on and without the plugin, in this process."""
    file = _written(tests)

    def run(*arguments: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            code = pytest.main([*ONLY, *RUN, *arguments, file])
        if code:
            sys.exit(f"pytest failed:\n{out.getvalue()}")

    run("--bncheck")  # so that what is imported and compiled is there
    return pairs(lambda: run("--bncheck"), lambda: run(*OFF), repeats)


def _written(count: int) -> str:
    """The file of a suite of so many trivial tests."""
    tests = [f"def test_{number}():\n    assert {number} >= 0\n" for number in range(count)]
    Path(file := f"test_{count}_tests.py").write_text("\n".join(tests))
    return file


def _count(count: int) -> None:
    """Print both costs in millions of instructions."""

    def cost(*arguments: str) -> tuple[float, float]:
        """What the plugin adds, and what the run takes without it."""
        off = [argument for argument in arguments if argument != "--bncheck"]
        _pytest(*arguments)  # so that what Python compiles is there
        with_it, without = _instructions(*arguments), _instructions(*off, *OFF)
        return with_it - without, without

    more, bare = cost("--collect-only", *RUN)
    print(f"start-up: {more:+.1f} million instructions on {bare:.0f} ({more / bare:.1%})")
    few, many = (cost(*RUN, "--bncheck", _written(number)) for number in (1, 1 + count))
    more, bare = ((b - a) / count for a, b in zip(few, many, strict=True))
    print(f"an unmarked test: {more:+.3f} million instructions on {bare:.2f} ({more / bare:.1%})")


def _instructions(*arguments: str) -> float:
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    command += [sys.executable, "-m", "pytest", *ONLY, *arguments]
    environment = {**_environment(), "PYTHONHASHSEED": "0"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    return float(run.stderr.rpartition("Collected :")[2].split()[0]) / 1e6


def _middle(costs: list[float]) -> str:
    low, median, high = statistics.quantiles(costs, n=4)
    error = 0.93 * (high - low) / len(costs) ** 0.5  # of a median, where errors are normal
    return f"{median:+.1f} (± {error:.1f}; middle half {low:+.1f} to {high:+.1f})"


def _pytest(*arguments: str) -> None:
    command = [sys.executable, "-m", "pytest", *ONLY, *arguments]
    run = subprocess.run(command, env=_environment(), capture_output=True, text=True)
    if run.returncode not in (0, 5):  # 5: there are no tests, as when only starting
        sys.exit(f"{' '.join(command)} failed:\n{run.stdout}{run.stderr}")


def _environment() -> dict[str, str]:
    """With what Python has compiled kept, as in an installation."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def _modules(*arguments: str) -> set[str]:
    command = [sys.executable, "-c", LIST, *ONLY, *arguments]
    run = subprocess.run(command, env=_environment(), capture_output=True, text=True)
    return set(run.stdout.rpartition("MODULES ")[2].split())


if __name__ == "__main__":
    sys.exit(main())
