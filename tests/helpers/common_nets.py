"""What the small networks of every framework are tested with: seeds, batches, findings, lines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

CLASSES = 4
SEEDS = range(int(os.environ.get("BNCHECK_SEEDS", "1")))
"""Draws of weights and data; one by default, since test_fuzz.py draws a hundred nets."""
SEED = pytest.mark.parametrize("seed", SEEDS)

Batch = tuple[NDArray[np.float32], NDArray[np.int64]]


def blobs(seed: int = 0, samples: int = 32) -> Batch:
    """Vectors of 20 numbers around one centre for each class, away from the origin."""
    rng = np.random.default_rng(seed)
    labels = np.arange(samples) % CLASSES
    centres = rng.normal(0.0, 3.0, (CLASSES, 20))
    inputs = centres[labels] + rng.normal(0.0, 1.0, (samples, 20)) + 5.0
    return inputs.astype("float32"), labels.astype("int64")


def waves(
    seed: int = 0, samples: int = 32, contrast: float = 1.0, *, channels_last: bool = False
) -> Batch:
    """Images of 8 × 8 in 3 channels, one pattern for each class, away from the origin."""
    rng = np.random.default_rng(seed)
    labels = np.arange(samples) % CLASSES
    grid = np.linspace(0.0, 2.0 * np.pi, 8)
    patterns = [np.sin((k + 1) * (grid[:, None] + k * grid[None])) for k in range(CLASSES)]
    signal = np.expand_dims(np.stack(patterns)[labels], -1 if channels_last else 1)
    noise = rng.normal(0.0, 0.3, (samples, 8, 8, 3) if channels_last else (samples, 3, 8, 8))
    inputs = contrast * signal + noise + 1.0
    return inputs.astype("float32"), labels.astype("int64")


def sole(report: Any, code: str) -> Any:
    """The only finding of a check, or the only note where there is none."""
    said = report.findings or report.notes
    assert [finding.code for finding in said] == [code], str(report)
    return said[0]


def silent(report: Any) -> None:
    """A check without any finding."""
    assert not report.findings, str(report)


def line(path: str, text: str) -> str:
    """How a finding names the one line of a file that holds a text."""
    lines = Path(path).read_text().splitlines()
    (number,) = (n for n, each in enumerate(lines, 1) if each.strip() == text)
    return f"{Path(path).name}:{number}: {text}"
