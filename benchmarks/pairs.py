"""Ratios measured in alternating pairs, so that a machine's moods hit both sides alike."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

BACKENDS = ("torch", "jax", "tensorflow")
"""The backends of Keras."""


def seconds(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def pairs(
    first: Callable[[], Any], second: Callable[[], Any], repeats: int
) -> list[tuple[float, float]]:
    """Wall times of both, in pairs that start with either in turn."""
    found = []
    for repeat in range(repeats):
        if repeat % 2:
            late, early = seconds(second), seconds(first)
            found.append((early, late))
        else:
            found.append((seconds(first), seconds(second)))
    return found


def ratio(measured: list[tuple[float, float]]) -> float:
    """The median of first / second."""
    return statistics.median(first / second for first, second in measured)


def spread(measured: list[tuple[float, float]]) -> str:
    """``1.03 [1.01, 1.08], 4.12 s against 3.98 s``: median, least and most; median times."""
    ratios = sorted(first / second for first, second in measured)
    times = [statistics.median(side) for side in zip(*measured, strict=True)]
    return (
        f"{ratio(measured):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}], "
        f"{times[0]:.2f} s against {times[1]:.2f} s"
    )


def in_a_process(script: str, backend: str, *arguments: str) -> dict[str, Any]:
    """What a script prints last, as JSON, in a new process with a backend of Keras.

    So nothing profits from what was compiled before.
    """
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
