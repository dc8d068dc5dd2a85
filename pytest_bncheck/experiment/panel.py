"""The panel: the mini-batches on which a model is judged, as if they were one batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from pytest_bncheck.adapters.base import Adapter, Sloping
from pytest_bncheck.types import Prediction, Statistics

if TYPE_CHECKING:
    from pytest_bncheck.types import Array, Slope

MOST_BATCHES = 8
"""Mini-batches at frozen weights that stand for a stream."""


class Panel:
    """Some mini-batches of a check; a prediction is that on all of them together.

    Parameters
    ----------
    adapter
        The model under test.
    indices
        Which mini-batches.
    """

    def __init__(self, adapter: Adapter, indices: Sequence[int]) -> None:
        self._adapter = adapter
        self._indices = indices

    @classmethod
    def first(cls, adapter: Adapter, batches: int, steps: int) -> Panel:
        """The first few of all mini-batches, without those that no training step has used."""
        return cls(adapter, range(min(batches, MOST_BATCHES, steps or MOST_BATCHES)))

    @property
    def size(self) -> int:
        """How many mini-batches."""
        return len(self._indices)

    def only(self, k: int) -> Panel:
        """A panel of mini-batch `k` alone."""
        return Panel(self._adapter, self._indices[k : k + 1])

    def predict(self, *, observe: bool = True) -> Prediction:
        """The user's own eval mode."""
        return joined([self._adapter.predict(k, observe=observe) for k in self._indices])

    def predict_with(self, statistics: Statistics, *, exact: bool = False) -> Prediction:
        """Eval mode with other running statistics."""
        with self.statistics(statistics, exact=exact):
            return self.predict(observe=False)

    @contextmanager
    def trying(self) -> Iterator[Callable[[Statistics], Prediction]]:
        """`predict_with` of many in turn: the statistics of the model are put back at the end."""
        with self._kept_statistics():

            def predict(statistics: Statistics) -> Prediction:
                self._adapter.write(statistics)
                return self.predict(observe=False)

            yield predict

    @contextmanager
    def statistics(self, statistics: Statistics, *, exact: bool = False) -> Iterator[None]:
        """Other running statistics for a while; those of the model are put back."""
        with self._kept_statistics():
            self._adapter.write(statistics, exact=exact)
            yield

    @contextmanager
    def _kept_statistics(self) -> Iterator[None]:
        before = self._adapter.read(exact=True)
        try:
            yield
        finally:
            self._adapter.write(before, exact=True)

    def slopes(self, direction: Mapping[str, Array]) -> list[Slope | None] | None:
        """See `Adapter.slopes`; of a single mini-batch."""
        (index,) = self._indices
        adapter = self._adapter
        return adapter.slopes(index, direction) if isinstance(adapter, Sloping) else None


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

    outputs = {
        path: np.concatenate(values)
        for path, values in common.items()
        if len({value.shape[1:] for value in values}) == 1
    }
    lengths = {path: [len(values) for values in common[path]] for path in outputs}
    pieces = {  # no copies
        path: np.split(values, np.cumsum(lengths[path])[:-1]) for path, values in outputs.items()
    }
    return dataclasses.replace(
        each[0],
        outputs=outputs,
        loss=mean([prediction.loss for prediction in each]),
        accuracy=mean([prediction.accuracy for prediction in each]),
        # A batch of one sample is its own mean.
        constant_loss=mean([p.constant_loss for p in each]) if max(rows) > 1 else None,
        random=any(prediction.random for prediction in each),
        mutated=tuple(dict.fromkeys(name for p in each for name in p.mutated)),
        rewritten=tuple(dict.fromkeys(name for p in each for name in p.rewritten)),
        in_training=tuple(dict.fromkeys(name for p in each for name in p.in_training)),
        parts=tuple(
            dataclasses.replace(p, outputs={path: values[k] for path, values in pieces.items()})
            for k, p in enumerate(each)
        ),
    )


def averaged(draws: Sequence[Prediction]) -> Prediction:
    """Several predictions on one batch as one: the means of outputs, losses and accuracies.

    The loss is the mean of losses, not the loss of the mean output, which is an ensemble's.
    """
    if len(draws) == 1:
        return draws[0]

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if len(known) == len(draws) else None

    shared = {p for p in draws[0].outputs if all(p in each.outputs for each in draws)}
    outputs = {p: [each.outputs[p] for each in draws] for p in draws[0].outputs if p in shared}
    return dataclasses.replace(
        draws[0],
        outputs={
            p: np.mean(v, axis=0) for p, v in outputs.items() if len({x.shape for x in v}) == 1
        },
        loss=mean([each.loss for each in draws]),
        accuracy=mean([each.accuracy for each in draws]),
        constant_loss=mean([each.constant_loss for each in draws]),
    )


def _rows(prediction: Prediction) -> int:
    """Samples of a prediction; 1 where it has no output that tells."""
    outputs = prediction.outputs.items()
    return max((len(v) for path, v in outputs if path not in prediction.without_rows), default=1)
