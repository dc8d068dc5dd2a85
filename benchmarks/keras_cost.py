"""A check against the user's own fit of the same steps, predict and evaluate: Keras.

    python benchmarks/keras_cost.py [--backends torch jax tensorflow] [--repeats 5] [--smoke]

A residual net on one batch of 8 images of 64 x 64, for 5 and for 100 steps, at Keras' momentum: the
check finds the fault and diagnoses it, all of which counts. Each measurement is a process of its
own, without importing Keras and building the model. The exit code is 1 where the median ratio of
100 steps is above 1.1; 5 steps have a goal, 0.6, which needs something that the fit compiles and
the check does not.
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

GOALS, LIMITS = {5: 0.6}, {100: 1.1}
SAMPLES, CLASSES = 8, 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backends", nargs="*", default=BACKENDS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="one small pair: does it work?")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        what, steps, side = options.measure
        print(json.dumps({"seconds": _seconds(what, int(steps), int(side))}))
        return 0
    side, steps = ("16", (2,)) if options.smoke else ("64", (*GOALS, *LIMITS))
    there = [name for name in options.backends if importlib.util.find_spec(name) is not None]
    dear, repeats = False, 1 if options.smoke else options.repeats
    print("check / fit, predict and evaluate: median [least, most]")
    for backend in there[:1] if options.smoke else there:
        for count in steps:
            sides = "check", "script"
            runs = process_pairs(__file__, backend, sides, repeats, str(count), side)
            measured = times(runs)
            dear |= ratio(measured) > LIMITS.get(count, float("inf"))
            missed = "; goal missed" if ratio(measured) > GOALS.get(count, float("inf")) else ""
            print(f"{backend:>10}, {count:3} steps: {spread(measured)}{missed}", flush=True)
    return int(dear)


def _seconds(what: str, steps: int, side: int) -> float:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import keras
    import numpy as np

    import pytest_bncheck

    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).normal(0.5, 1.5, (SAMPLES, side, side, 3)).astype("float32")
    labels = np.arange(SAMPLES) % CLASSES
    model = _net(side)
    repeated = [np.concatenate([array] * steps) for array in (images, labels)]
    gc.collect()  # else either side may have to look through all that was imported
    begin = time.perf_counter()
    if what == "check":
        pytest_bncheck.check(model, (images, labels), steps=steps)
    else:
        model.fit(*repeated, batch_size=SAMPLES, shuffle=False, verbose=0)
        model.predict(images, verbose=0)
        model.evaluate(images, labels, verbose=0)
    return time.perf_counter() - begin


def _net(side: int) -> Any:
    import keras
    from keras import layers

    def block(x: Any, width: int, stride: int) -> Any:
        y = layers.Conv2D(width, 3, stride, padding="same", use_bias=False)(x)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        y = layers.BatchNormalization()(layers.Conv2D(width, 3, padding="same", use_bias=False)(y))
        if stride > 1:
            x = layers.BatchNormalization()(layers.Conv2D(width, 1, stride, use_bias=False)(x))
        return layers.ReLU()(layers.Add()([x, y]))

    inputs = keras.Input((side, side, 3))
    x = layers.Conv2D(32, 3, 2, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    for width, stride in ((32, 1), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
        x = block(x, width, stride)
    model = keras.Model(
        inputs, layers.Dense(CLASSES, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


if __name__ == "__main__":
    sys.exit(main())
