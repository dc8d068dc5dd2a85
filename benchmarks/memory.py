"""What a check holds in memory beside the bare loop, and what 200 checks leave behind.

    python benchmarks/memory.py [--framework torch|keras] [--smoke]

Peaks are those of processes of their own (VmHWM of Linux) that make the same 20 training steps of
a model and two forwards, with and without a check around them: for ResNet-50, whose outputs are
nothing, in copies of its parameters and buffers; for a net that is nothing beside its outputs, a
class for each pixel, in copies of these (PyTorch only). The exit code is 1 where a check holds more
than one copy of parameters and buffers, or where the process grew by more than 5 MB from the 50th
check to the 200th.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
sys.path.insert(0, str(Path(__file__).parents[1]))

MB = 2**20
STEPS = 20
COPIES = 1.1
"""One copy of parameters and buffers; a tenth for the statistics of each step, and the allocator's
moods."""
GROWTH = 5.0
CLASSES = 16
ENDS = {"pass": "passes", "fail": "is diagnosed"}

# Memory that is given back is given back at once, so that a peak is what was in use.
QUIET = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--framework", choices=WORK, default="torch")
    parser.add_argument("--smoke", action="store_true", help="a small net: does it work?")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        WORK[options.framework](options.part, options.smoke)
        return 0
    measured = partial(_measure, options.framework, options.smoke)
    dear = False
    units = {"model": "parameters and buffers", "outputs": "outputs"}
    if options.framework != "torch":
        del units["outputs"]
    elif options.smoke:
        del units["model"]
    for what, unit in units.items():
        copy, bare = measured(f"{what} bare")
        print(f"{options.framework}: {copy:.0f} MB of {unit}, bare loop {bare:.0f} MB")
        for part in ("fail",) if options.smoke else ENDS:
            _, peak = measured(f"{what} {part}")
            held = (peak - bare) / copy
            dear |= what == "model" and held > COPIES
            print(f"  a check that {ENDS[part]}: {peak:.0f} MB, {held:.2f} copies more", flush=True)
    early, late = measured("many")
    print(f"  many checks in one process: {early:.1f} MB early, {late:.1f} MB late")
    dear |= late - early > GROWTH
    return int(dear and not options.smoke)


def _measure(framework: str, smoke: bool, part: str) -> tuple[float, float]:
    """Two figures that a process of its own prints."""
    command = [sys.executable, __file__, "--framework", framework, "--part", part]
    run = subprocess.run(
        [*command, *(["--smoke"] if smoke else [])],
        env={**os.environ, **QUIET},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    first, second = run.stdout.split()[-2:]
    return float(first), float(second)


def _memory(what: str) -> float:
    """VmRSS or VmHWM of this process in MB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.startswith(what))
    return int(line.split()[1]) / 1024


def _many(one: Callable[[int], Any], smoke: bool) -> None:
    """Check again and again, passing and failing in turn."""
    first, last = (2, 4) if smoke else (50, 200)
    found = []
    for k in range(1, last + 1):
        one(k)
        if k in (first, last):
            gc.collect()
            found.append(_memory("VmRSS"))
    print(*found)


# the same work in both frameworks ---------------------------------------------------------------


def _torch(part: str, smoke: bool) -> None:
    import torch
    from cost import OPTIMIZER, bare, resnet
    from nets_torch import build, data

    from pytest_bncheck import check

    if part == "many":
        _many(lambda k: check(build("residual", (0.4, 0.001)[k % 2], k), data(0), steps=20), smoke)
        return
    steps = 3 if smoke else STEPS
    check(build("residual", 0.4, 0), data(0), steps=2)  # the plugin's modules are no part of it
    what, part = part.split()
    if what == "model":
        model, side = resnet(18 if smoke else 50), 32 if smoke else 64
        batch = torch.randn(8, 3, side, side), torch.arange(8) % 4
        unit = sum(t.nbytes for t in (*model.parameters(), *model.buffers())) / MB
    else:
        torch.manual_seed(0)
        conv, side = torch.nn.Conv2d, 32 if smoke else 256
        norm = torch.nn.BatchNorm2d(4, momentum=0.6)
        model = torch.nn.Sequential(conv(3, 4, 1), norm, torch.nn.ReLU(), conv(4, CLASSES, 1))
        images = torch.randn(8, 3, side, side)
        batch = images, (images[:, 0] > 0) + 2 * (images[:, 1] > 0)
        unit = 8 * CLASSES * side**2 * 4 / MB
    if part == "fail":
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.001
    if part == "bare":
        bare(model, batch, steps)
    else:
        # The small net needs longer steps to learn anything in so few.
        optimizer = OPTIMIZER if what == "model" else partial(torch.optim.Adam, lr=0.05)
        report = check(model, batch, steps=steps, optimizer=optimizer)
        _expect(part, report, smoke)
    print(unit, _memory("VmHWM"))


def _keras(part: str, smoke: bool) -> None:
    import keras
    import numpy as np
    from nets_keras import build, data

    from pytest_bncheck import check

    if part == "many":
        # The same two models: building models leaves something behind in Keras itself.
        models = [build("residual", momentum, 0) for momentum in (0.6, 0.999)]
        _many(lambda k: check(models[k % 2], data(0), steps=20), smoke)
        return
    steps = 3 if smoke else STEPS
    check(build("residual", 0.6, 0), data(0), steps=2)  # the plugin's modules are no part of it
    keras.utils.set_random_seed(0)
    part = part.split()[1]
    side, application = (32, keras.applications.MobileNetV2) if smoke else (
        64, keras.applications.ResNet50)  # fmt: skip
    model = application(weights=None, input_shape=(side, side, 3), classes=4)
    images = np.random.default_rng(0).normal(size=(8, side, side, 3)).astype("float32")
    labels = np.arange(8) % 4
    unit = sum(np.prod(v.shape) * 4 for v in model.weights) / MB
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.999 if part == "fail" else 0.6
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    if part == "bare":
        model.fit(images, labels, batch_size=8, epochs=steps, verbose=0)
        model(images, training=True)
        model(images, training=False)
    else:
        _expect(part, check(model, (images, labels), steps=steps), smoke)
    print(unit, _memory("VmHWM"))


def _expect(part: str, report: Any, smoke: bool) -> None:
    """One check has something to diagnose, and does most; the other has nothing."""
    if (report.bn_verdict == "healthy") is (part == "fail") and not smoke:
        raise SystemExit(f"not what is measured here:\n{report}")


WORK: dict[str, Callable[[str, bool], None]] = {"torch": _torch, "keras": _keras}


if __name__ == "__main__":
    sys.exit(main())
