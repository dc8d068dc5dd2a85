"""Several mini-batches: what they have in common, and how they are judged as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from pytest_bncheck.adapters.base import Adapter
from pytest_bncheck.types import Prediction, Statistics

if TYPE_CHECKING:
    from pytest_bncheck.types import Array, Slope

MOST = 8
"""Mini-batches at frozen weights that stand for a stream."""


class Panel:
    """The first mini-batches of a check, on which predictions are judged as if on one batch.

    Parameters
    ----------
    lab
        The model under test.
    batches
        Mini-batches of the check.
    steps
        Training steps made: what was not trained on is not judged.
    """

    def __init__(self, lab: Adapter, batches: int, steps: int) -> None:
        self._lab = lab
        self._rows: list[int] = []
        self.size = min(batches, MOST, steps or MOST)

    def predict(self, *, observe: bool = True) -> Prediction:
        """The user's own eval mode."""
        each = [self._lab.predict(k, observe=observe) for k in range(self.size)]
        self._rows = [_rows(prediction) for prediction in each]
        return joined(each)

    def predict_with(self, statistics: Statistics, *, exact: bool = False) -> Prediction:
        """Eval mode with other running statistics."""
        with self.statistics(statistics, exact=exact):
            return self.predict(observe=False)

    @contextmanager
    def statistics(self, statistics: Statistics, *, exact: bool = False) -> Iterator[None]:
        """Other running statistics for a while; the model's own are put back."""
        own = self._lab.read(exact=True)
        self._lab.write(statistics, exact=exact)
        try:
            yield
        finally:
            self._lab.write(own, exact=True)

    def slopes(self, direction: Mapping[str, Array]) -> list[Slope | None] | None:
        """See `Adapter.slopes`; the sum over the mini-batches."""
        ends = np.cumsum(self._rows)[:-1]
        parts = {path: np.split(values, ends) for path, values in direction.items()}
        found = [
            self._lab.slopes(k, {path: pieces[k] for path, pieces in parts.items()})
            for k in range(self.size)
        ]
        known = [slopes for slopes in found if slopes is not None]
        if len(known) < len(found):
            return None
        return [_sum(layer) for layer in zip(*known, strict=True)]


def joined(each: Sequence[Prediction]) -> Prediction:
    """Predictions on several batches as one on all samples; the structure is the first one's.

    Outputs that differ in more than the number of samples are left out.
    """
    if len(each) == 1:
        return each[0]
    common = {
        path: [prediction.outputs[path] for prediction in each]
        for path in each[0].outputs
        if all(path in prediction.outputs for prediction in each)
    }
    rows = [_rows(prediction) for prediction in each]

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.average(known, weights=rows)) if len(known) == len(rows) else None

    return dataclasses.replace(
        each[0],
        outputs={
            path: np.concatenate(values)
            for path, values in common.items()
            if len({value.shape[1:] for value in values}) == 1
        },
        loss=mean([prediction.loss for prediction in each]),
        accuracy=mean([prediction.accuracy for prediction in each]),
        constant_loss=mean([prediction.constant_loss for prediction in each]),
        random=any(prediction.random for prediction in each),
        mutated=tuple(dict.fromkeys(name for p in each for name in p.mutated)),
        in_training=tuple(dict.fromkeys(name for p in each for name in p.in_training)),
    )


def _rows(prediction: Prediction) -> int:
    """Samples of a prediction; 1 where it has no output that tells."""
    return max((len(values) for values in prediction.outputs.values()), default=1)


def _sum(slopes: Sequence[Slope | None]) -> Slope | None:
    known = [slope for slope in slopes if slope is not None]
    if len(known) < len(slopes):
        return None
    scaled, shifted = (np.sum(parts, axis=0) for parts in zip(*known, strict=True))
    return scaled, shifted
