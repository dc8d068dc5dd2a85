"""A check of the three-image ResNet-50 at K = 5, against the script whose fault it finds.

    python benchmarks/keras_story.py [--backends torch jax tensorflow] [--repeats 3]

The script is the user's: compile, fit five epochs, predict, evaluate. Each measurement is a
process of its own, so that neither profits from what the other compiled; both orders alternate.
Importing Keras and building the model is left out of both. The exit code is 1 where the check takes
longer than the script.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path

from pairs import BACKENDS, process_pairs, ratio, spread, times

FIXTURE = Path(__file__).parents[1] / "fixtures" / "three_images_keras"
EPOCHS = 5
LIMIT = 1.0


def script() -> dict[str, object]:
    """What the user wrote."""
    from images import three_images
    from model import build_resnet

    model, (images, labels) = build_resnet(), three_images()
    start = time.perf_counter()
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images, labels, epochs=EPOCHS, verbose=0)
    model.predict(images, verbose=0)
    model.evaluate(images, labels, verbose=0)
    return {"seconds": time.perf_counter() - start}


def check() -> dict[str, object]:
    """The check that finds the fault."""
    from images import three_images
    from model import build_resnet

    import pytest_bncheck

    model, batch = build_resnet(), three_images()
    start = time.perf_counter()
    report = pytest_bncheck.check(model, batch, steps=EPOCHS)
    codes = [finding.code for finding in report.findings]
    return {"seconds": time.perf_counter() - start, "codes": codes, "parts": vars(report.seconds)}


def compare(backend: str, repeats: int) -> bool:
    """Print one line about a backend; returns whether it is within the limit."""
    runs = process_pairs(__file__, backend, ("check", "script"), repeats)
    measured, codes = times(runs), runs[-1][0]["codes"]
    print(f"{backend:>10}: {spread(measured)}, found {codes}", flush=True)
    return ratio(measured) < LIMIT


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--backends", nargs="*", default=BACKENDS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", choices=["check", "script"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        sys.path[:0] = [str(FIXTURE), str(FIXTURE.parents[1])]
        print(json.dumps({"check": check, "script": script}[options.measure]()))
        return 0
    print("check / script: median [least, most]")
    within = []
    for backend in options.backends:
        if importlib.util.find_spec(backend) is None:
            print(f"{backend:>10}: not installed")
        else:
            within.append(compare(backend, options.repeats))
    return int(not all(within))


if __name__ == "__main__":
    sys.exit(main())
