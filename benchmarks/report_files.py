"""What a check costs in the files of a report, beyond the first.

    python benchmarks/report_files.py [--smoke]

A check of 53 normalisation layers that fails, with every plot that a report has, written once and
500 times over, in alternating pairs: the median of the seconds, and of the difference for each
check. The exit code is 1 where a file costs more than 20 ms a check, or 500 checks in HTML take
more than 15 seconds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from nets_torch import data, deep
from pairs import pairs

from pytest_bncheck import check
from pytest_bncheck.reports import html, wire

LIMIT, TOGETHER = 20.0, 15.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="20 checks: does it work?")
    options = parser.parse_args()
    count, repeats = (20, 1) if options.smoke else (500, 5)
    found = check(deep(53, 0), data(0), steps=20).to_dict()
    one, all_ = (
        wire.document([{**found, "nodeid": f"test_it.py::test_{k}"} for k in range(times)])
        for times in (1, count)
    )
    dear = False
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "report")
        kinds: dict[str, Callable[[Any], None]] = {
            "JSON": lambda document: wire.write(path, document),
            "HTML": lambda document: html.write(path, document, lambda check: False),
        }
        for kind, write in kinds.items():
            write(one)  # imports what it needs
            times = pairs(partial(write, all_), partial(write, one), repeats)
            whole = statistics.median(together for together, _ in times)
            cost = 1000 * statistics.median((a - b) / (count - 1) for a, b in times)
            dear |= cost > LIMIT or whole > TOGETHER
            print(
                f"{kind}: {count} checks in {whole:.2f} s, {cost:.1f} ms a check beyond the first"
            )
    return int(dear and not options.smoke)


if __name__ == "__main__":
    sys.exit(main())
