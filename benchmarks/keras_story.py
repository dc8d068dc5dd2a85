"""A check of the three-image ResNet-50 at K = 5, against the script whose fault it finds.

    python benchmarks/keras_story.py [--backends tensorflow torch jax] [--repeats 3]

The script is the user's: compile, fit five epochs, predict, evaluate. Each measurement is a
process of its own, so that neither profits from what the other compiled; both orders alternate.
Importing Keras and building the model is left out of both. Prints, for each backend, the median
times and the median of the ratios.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

FIXTURE = Path(__file__).parents[1] / "fixtures" / "three_images_keras"
EPOCHS = 5


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


def measure(what: str, backend: str) -> dict[str, object]:
    """One measurement in a new process."""
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, __file__, "--measure", what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def compare(backend: str, repeats: int) -> None:
    """Print one line about a backend."""
    times: dict[str, list[float]] = {"check": [], "script": []}
    codes: object = None
    for k in range(repeats):
        for what in ("check", "script") if k % 2 == 0 else ("script", "check"):
            found = measure(what, backend)
            times[what].append(found["seconds"])  # type: ignore[arg-type]
            codes = found.get("codes", codes)
    ratios = [a / b for a, b in zip(times["check"], times["script"], strict=True)]
    a, b = (statistics.median(times[what]) for what in ("check", "script"))
    print(
        f"{backend:>10}: check {a:6.1f} s, script {b:6.1f} s, ratio {statistics.median(ratios):.2f}"
        f" ({min(ratios):.2f} to {max(ratios):.2f} in {repeats}), found {codes}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--backends", nargs="*", default=["tensorflow", "torch", "jax"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", choices=["check", "script"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        sys.path[:0] = [str(FIXTURE), str(FIXTURE.parents[1])]
        print(json.dumps({"check": check, "script": script}[options.measure]()))
        return
    for backend in options.backends:
        if importlib.util.find_spec(backend) is None:
            print(f"{backend:>10}: not installed")
            continue
        compare(backend, options.repeats)


if __name__ == "__main__":
    main()
