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
    middle = [statistics.median(side) for side in zip(*measured, strict=True)]
    return (
        f"{ratio(measured):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}], "
        f"{middle[0]:.2f} s against {middle[1]:.2f} s"
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


def process_pairs(
    script: str, backend: str, sides: tuple[str, str], repeats: int, *arguments: str
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What ``--measure SIDE ARGUMENTS`` of a script prints for both, pairs starting with either."""
    found = []
    for repeat in range(repeats):
        order = sides[::-1] if repeat % 2 else sides
        ran = {side: in_a_process(script, backend, "--measure", side, *arguments) for side in order}
        found.append((ran[sides[0]], ran[sides[1]]))
    return found


def times(runs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[tuple[float, float]]:
    """The seconds that both sides of `process_pairs` printed."""
    return [(first["seconds"], second["seconds"]) for first, second in runs]
