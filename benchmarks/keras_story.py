"""A check of the three-image ResNet-50 at K = 5, against finding out the same by hand.

    python benchmarks/keras_story.py [--backends torch jax tensorflow] [--repeats 3]

By hand is the user's script, five epochs of `fit`, `predict` and `evaluate`; one forward in
training mode, to see that it differs; and the script again with another momentum, to see that it
cures. Each measurement is a process of its own, so that neither profits from what the other
compiled; both orders alternate. Importing Keras and building the models is left out of both, with
what Python's garbage collector has to look through after it. The exit code is 1 where the check
takes longer; on TensorFlow, where `fit` compiles most, also where it takes longer than the script
alone.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

from pairs import BACKENDS, process_pairs, ratio, spread, times

FIXTURE = Path(__file__).parents[1] / "fixtures" / "three_images_keras"
EPOCHS = 5
LIMIT = 1.0

MOMENTUM = 0.3
"""About what the check proposes."""


def _start() -> float:
    gc.collect()  # else either side may have to look through all that was imported
    return time.perf_counter()


def _script(model: Any, images: Any, labels: Any) -> None:
    """What the user wrote."""
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images, labels, epochs=EPOCHS, verbose=0)
    model.predict(images, verbose=0)
    model.evaluate(images, labels, verbose=0)


def script() -> dict[str, object]:
    """The script alone."""
    from images import three_images
    from model import build_resnet

    model, batch = build_resnet(), three_images()
    start = _start()
    _script(model, *batch)
    return {"seconds": time.perf_counter() - start}


def by_hand() -> dict[str, object]:
    """The script, a look at training mode, and the script with another momentum."""
    from images import three_images
    from model import build_resnet

    model, other, batch = build_resnet(), build_resnet(MOMENTUM), three_images()
    start = _start()
    _script(model, *batch)
    model(batch[0], training=True)
    _script(other, *batch)
    return {"seconds": time.perf_counter() - start}


def check() -> dict[str, object]:
    """The check that finds the fault."""
    from images import three_images
    from model import build_resnet

    import pytest_bncheck

    model, batch = build_resnet(), three_images()
    start = _start()
    report = pytest_bncheck.check(model, batch, steps=EPOCHS)
    codes = [finding.code for finding in report.findings]
    return {"seconds": time.perf_counter() - start, "codes": codes, "parts": vars(report.seconds)}


def compare(backend: str, repeats: int) -> bool:
    """Print one line for each comparison on a backend; returns whether all are within the limit."""
    within = []
    for side in ("by_hand", "script") if backend == "tensorflow" else ("by_hand",):
        runs = process_pairs(__file__, backend, ("check", side), repeats)
        measured, codes = times(runs), runs[-1][0]["codes"]
        name = side.replace("_", " ")
        print(f"{backend:>10}: check / {name} {spread(measured)}, found {codes}", flush=True)
        within.append(ratio(measured) < LIMIT)
    return all(within)


SIDES = {"check": check, "by_hand": by_hand, "script": script}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--backends", nargs="*", default=BACKENDS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", choices=list(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        sys.path[:0] = [str(FIXTURE), str(FIXTURE.parents[1])]
        print(json.dumps(SIDES[options.measure]()))
        return 0
    print("median [least, most]")
    within = []
    for backend in options.backends:
        if importlib.util.find_spec(backend) is None:
            print(f"{backend:>10}: not installed")
        else:
            within.append(compare(backend, options.repeats))
    return int(not all(within))


if __name__ == "__main__":
    sys.exit(main())
