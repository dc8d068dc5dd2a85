"""Predictions that are compared with that of training mode."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from pytest_bncheck.maths import predictions
from pytest_bncheck.types import Prediction


@dataclass(frozen=True)
class Comparison:
    """Predictions on the same samples, compared with that of training mode.

    Attributes
    ----------
    train
        With batch statistics: what the others are compared with.
    eval
        In eval mode.
    projected
        In eval mode after the planned updates, where they are declared.
    recalibrated
        In eval mode with the batch's statistics, as the framework would store them. None before
        that pass was made.
    scale
        What gaps are multiplied by; see `typical`.
    """

    train: Prediction | None
    eval: Prediction | None
    projected: Prediction | None = None
    recalibrated: Prediction | None = None
    scale: float = 1.0

    @property
    def judged(self) -> Prediction | None:
        """The prediction that the verdict is taken on: projected, if updates are planned."""
        return self.projected or self.eval

    def gap(self, prediction: Prediction | None, reference: Prediction | None) -> float | None:
        """Relative difference of two predictions, or None if they cannot be aligned."""
        if prediction is None or reference is None:
            return None
        gap = predictions.gap(prediction.outputs, reference.outputs)
        return None if gap is None else self.scale * gap

    @cached_property
    def judged_gap(self) -> float | None:
        """The gap between the judged prediction and training mode."""
        return self.gap(self.judged, self.train)

    @cached_property
    def floor(self) -> float | None:
        """The gap that converged statistics would leave."""
        return self.gap(self.recalibrated, self.train)

    @cached_property
    def typical_index(self) -> int:
        """The mini-batch whose judged gap is nearest to that on all of them together."""
        if self.judged is None or self.train is None or not self.train.parts:
            return 0
        pairs = zip(self.judged.parts, self.train.parts, strict=True)
        gaps = [self.gap(*pair) for pair in pairs]
        whole = self.judged_gap or 0.0
        return min(range(len(gaps)), key=lambda k: abs((gaps[k] or 0.0) - whole))

    @cached_property
    def typical(self) -> Comparison:
        """The comparison on the typical mini-batch.

        There, statistics that are only tried out cost one pass, instead of one per mini-batch.
        Gaps are scaled so that the judged gap equals that on all mini-batches.
        """
        one = Comparison(
            self._part(self.train),
            self._part(self.eval),
            self._part(self.projected),
            self._part(self.recalibrated),
        )
        whole, gap = self.judged_gap, one.judged_gap
        if not whole or not gap or not 0.0 < whole / gap < math.inf:
            return one
        return Comparison(one.train, one.eval, one.projected, one.recalibrated, whole / gap)

    def _part(self, prediction: Prediction | None) -> Prediction | None:
        if prediction is None or not prediction.parts:
            return prediction
        return prediction.parts[self.typical_index]
