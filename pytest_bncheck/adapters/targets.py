"""What targets are, by their values; of NumPy arrays and of the frameworks' tensors alike."""

from __future__ import annotations

from typing import Any

KEYS = ("labels", "label", "targets", "target", "y", "y_true", "masks", "mask")
"""Names under which a batch holds its targets, the likelier one first."""


def is_binary(targets: Any) -> bool:
    """Whether they hold zeros and ones alone."""
    return bool(((targets == 0) | (targets == 1)).all())


def is_one_hot(targets: Any, axis: int) -> bool:
    """Whether a single one stands for the class along this axis."""
    return is_binary(targets) and bool((targets.sum(axis) == 1).all())


def wrong_label(labels: Any, classes: int) -> int | None:
    """The first class index that has no output, or None."""
    wrong = labels[(labels < 0) | (labels >= classes)]
    return int(wrong[0]) if len(wrong) else None
