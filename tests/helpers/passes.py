"""Passes of an adapter, as tests ask for them."""

from __future__ import annotations

from pytest_bncheck.adapters.base import Adapter, Mode
from pytest_bncheck.types import Calls, Prediction, Statistics


def with_batch_statistics(lab: Adapter, index: int = 0) -> tuple[Prediction, Statistics, Calls]:
    """The prediction with batch statistics, those statistics, and the calls of each layer."""
    found = lab.run(index, Mode.BATCH_STATISTICS)
    assert found.prediction is not None
    return found.prediction, found.statistics, found.calls


def in_training(lab: Adapter, index: int = 0) -> Statistics:
    """The batch statistics of a pass in training mode."""
    return lab.run(index, Mode.TRAINING).statistics


def on_training_path(lab: Adapter, index: int = 0) -> Prediction | None:
    """The prediction on the training path."""
    return lab.run(index, Mode.TRAINING_PATH).prediction
