"""Healthy architectures at their defaults: does the check stay silent?

    python benchmarks/zoo.py [--of torch|keras|transformers] [--only TEXT] [--pixels N] [--smoke]

Each learns four noisy pictures in `steps="auto"`, with the default optimizer; PyTorch's at 32 and
at 64 pixels, in batches of 16 and of 8. The applications of Keras, whose default momentum of 0.99
needs more updates than a check makes, are checked with `planned_updates`. Prints a row for each
check, and what was found; the exit code is 1 where there is an error, or a warning in more than
5 % of them.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from typing import Any

from pytest_bncheck import check

MOST_WARNINGS = 0.05
FORMS = {
    "torch": ((32, 16), (64, 8)),
    "keras": ((32, 8),),
    "transformers": ((32, 16), (64, 8)),
}
"""Pixels and samples."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--of", choices=FORMS, default="torch")
    parser.add_argument("--only", default="", help="architectures with this in their name")
    parser.add_argument("--pixels", type=int, help="these alone, in batches of 8")
    parser.add_argument("--smoke", action="store_true", help="two small ones: does it work?")
    options = parser.parse_args()
    zoo = importlib.import_module(f"zoo_{options.of}")
    names = [name for name in zoo.ZOO if options.only in name]
    forms = ((options.pixels, 8),) if options.pixels else FORMS[options.of]
    if options.smoke:
        names, forms = names[-2:] if options.of == "torch" else names[:1], forms[:1]
    tried = errors = warned = 0
    for name in names:
        for size, samples in forms:
            report, seconds = _checked(zoo, name, size, samples)
            tried += 1
            errors += report.verdict == "fail"
            warned += report.verdict == "warn"
            found = ", ".join(f"{f.code} ({f.severity})" for f in report.findings)
            kept = report.predictions.retained
            retained = "" if kept is None else f"retained {kept:.2f}"
            print(
                f"{name:<32}{size:>4}{samples:>4}{report.steps:>5} steps {seconds:>6.1f} s  "
                f"{report.verdict} {found} {retained}",
                flush=True,
            )
    print(f"{len(names)} architectures, {tried} checks: {errors} errors, {warned} warnings")
    return int(errors > 0 or warned > MOST_WARNINGS * tried)


def _checked(zoo: Any, name: str, size: int, samples: int) -> tuple[Any, float]:
    model, batch = zoo.build(name, size, 0), zoo.data(name, size, samples, 0)
    planned = getattr(zoo, "PLANNED", None)
    began = time.perf_counter()
    report = check(model, batch, loss=zoo.loss, planned_updates=planned)
    return report, time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
