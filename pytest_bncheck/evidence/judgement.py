"""Limits, scores and verdict: what the measurements mean under the options of the check."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pytest_bncheck.evidence.comparison import Comparison
from pytest_bncheck.evidence.passes import Passes
from pytest_bncheck.evidence.training import Training
from pytest_bncheck.maths import distances, predictions
from pytest_bncheck.maths.verdict import (
    USUAL_DISTORTION,
    USUAL_GAP,
    Scores,
    decisions_suffer,
    judge,
)
from pytest_bncheck.types import BNVerdict, Layer, Prediction, Settings, Statistics

if TYPE_CHECKING:
    from pytest_bncheck.types import Array

MOSTLY_RIGHT = 0.75
"""Accuracy that no untrained model has by chance."""

REPEATED = 0.01
"""Spread, in standard deviations, up to which several calls of a layer are a repetition."""


@dataclass(frozen=True)
class Judgement:
    """What training and passes mean, as far as it is known which predictions to compare.

    The experiment judges twice: before it tried converged statistics, and with them
    (`Comparison.recalibrated`). The verdict can differ, so each stage has a judgement of its own.

    Attributes
    ----------
    settings
        The options of the check.
    training, passes
        What was measured.
    compared
        The predictions to compare, on all mini-batches or on the typical one.
    """

    settings: Settings
    training: Training
    passes: Passes
    compared: Comparison

    @cached_property
    def typical(self) -> Judgement:
        """The same judgement on the typical mini-batch; see `Comparison.typical`."""
        return Judgement(self.settings, self.training, self.passes, self.compared.typical)

    # what is read most ----------------------------------------------------------------------------

    @property
    def layers(self) -> Sequence[Layer]:
        """The layers with running statistics, in the order in which they run."""
        return self.training.layers

    @property
    def steps(self) -> int:
        """Training steps that were made."""
        return self.training.steps

    @property
    def eps(self) -> list[float]:
        """The constant that each layer adds to its variance."""
        return self.training.eps

    @property
    def stream(self) -> bool:
        """Whether several mini-batches are judged together; see `MiniBatches`."""
        return self.passes.mini_batches is not None

    @property
    def train(self) -> Prediction | None:
        """The prediction with batch statistics."""
        return self.compared.train

    @property
    def judged(self) -> Prediction | None:
        """The prediction that the verdict is taken on: projected, if updates are planned."""
        return self.compared.judged

    @property
    def recalibrated(self) -> Prediction | None:
        """Eval mode with converged statistics; None where they were not tried."""
        return self.compared.recalibrated

    @property
    def judged_gap(self) -> float | None:
        """The gap between the judged prediction and training mode."""
        return self.compared.judged_gap

    @property
    def floor(self) -> float | None:
        """The gap that converged statistics would leave."""
        return self.compared.floor

    # limits ---------------------------------------------------------------------------------------

    @cached_property
    def slack(self) -> float:
        """What all limits are multiplied by: a mini-batch of a stream differs from the others."""
        return 2.0 if self.stream or self.in_parts else 1.0

    @cached_property
    def in_parts(self) -> bool:
        """Whether a training step goes through the batch in parts that differ."""
        training, in_pass = self.training, self.passes.calls.training
        rows = zip(self.layers, training.calls_per_step, in_pass, strict=True)
        return any(
            calls > calls_in_pass
            and distances.spread(training.streams[layer.name].statistics, layer.eps) > REPEATED
            for layer, calls, calls_in_pass in rows
            if layer.name in training.streams
        )

    @property
    def gap_limit(self) -> float:
        """The largest gap allowed."""
        return self.settings.gap_tolerance * self.slack

    @property
    def distortion_limit(self) -> float:
        """The largest distortion allowed."""
        return self.settings.distortion_tolerance * self.slack

    # training -------------------------------------------------------------------------------------

    @property
    def first_loss(self) -> float | None:
        """The first training loss; without training that of the mean prediction.

        Of several mini-batches the mean over their first turn, where that is more: the very first
        can be one that is easy to guess.
        """
        losses = self.training.losses
        if not losses:
            return self.train.constant_loss if self.train else None
        turn = losses[: max(len(self.passes.batches), 1)]
        return max(losses[0], sum(turn) / len(turn))

    @property
    def trained(self) -> bool:
        """Whether training lowered the loss by a tenth, to a finite value.

        Of a model that was handed over trained, whose first loss nobody knows and which has no
        constant prediction to compare with: whether it is right on most samples.
        """
        losses = self.training.losses
        if self.first_loss is None:
            return self.train is not None and (self.train.accuracy or 0.0) >= MOSTLY_RIGHT
        loss = self.train.loss if self.train else None
        if loss is None and losses:
            loss = losses[-1]
        if self.in_parts:  # on the whole batch training mode may do worse than on its parts
            loss = min(losses[-1], losses[-1] if loss is None else loss)
        return predictions.achieved(self.first_loss, loss)

    @property
    def inconclusive(self) -> bool:
        """Whether training achieved nothing, so that no verdict is possible."""
        if self.trained or self.first_loss is None:
            return False
        if not self.layers and np.isfinite(self.training.losses).all():
            return False  # nothing runs along that a longer training could spoil
        if self.training.past is not None and self._falls_apart:
            return False
        passes = self.passes
        path = passes.path if passes.path_gap else None  # another path may well have learnt
        return path is None or not predictions.achieved(self.first_loss, path.loss)

    @property
    def _falls_apart(self) -> bool:
        """Whether eval mode of a model that did move its statistics is far worse than a guess.

        Training mode on a single batch can be a little worse than a guess, where the targets
        hardly differ; that says nothing about an eval mode that is twice as bad as both.
        """
        judged, train, guess = self.judged, self.train, self.first_loss
        if judged is None or train is None or None in (judged.loss, train.loss, guess):
            return False
        moved = any(
            mean.any() or np.ptp(var)
            for mean, var in zip(self.training.stop.mean, self.training.stop.var, strict=True)
        )
        return moved and judged.loss > 2.0 * max(train.loss, guess)  # type: ignore[operator,type-var]

    # layers ---------------------------------------------------------------------------------------

    @property
    def judged_statistics(self) -> Statistics:
        """The running statistics that the verdict is taken on: projected ones if declared."""
        projection = self.passes.projection
        return projection.statistics if projection else self.training.stop

    @cached_property
    def judged_distortions(self) -> Array:
        """Distortion of each layer under the statistics that the verdict is taken on."""
        return self._distortions(self.judged_statistics)

    def distortions(self, statistics: Statistics) -> Array:
        """Distortion of each layer under some running statistics, against the training batch."""
        if statistics is self.judged_statistics:  # which nearly every rule asks for
            return self.judged_distortions
        return self._distortions(statistics)

    def _distortions(self, statistics: Statistics) -> Array:
        found = distances.distortion(statistics, self.passes.noisy_batch, self.eps)
        if self.training.past is None and not self.stream:
            return found
        # The statistics are of other batches, and those of this one are a single draw.
        batches, samples = max(len(self.passes.batches), 1), self.training.batch_size
        values = [n and n * batches for n in self.passes.calls.values]
        return distances.beyond_chance(found, values, samples and samples * batches)

    @property
    def distorted_layers(self) -> list[str]:
        """Names of the layers over the distortion limit."""
        limit = self.distortion_limit
        rows = zip(self.layers, self.judged_misplacements, strict=True)
        return [layer.name for layer, distortion in rows if not distortion <= limit]

    @cached_property
    def judged_misplacements(self) -> list[float]:
        """How wrong each layer's statistics are, to rank layers and to count them."""
        return self.misplacements(self.judged_statistics)

    def misplacements(self, statistics: Statistics) -> list[float]:
        """How wrong the statistics of each layer would be.

        The distortion; of running state that is known by what it does only, how far it is from
        its settled values, as a share of the way there from its start.
        """
        found: list[float] = self.distortions(statistics).tolist()
        target, start = self.passes.noisy_batch, self.training.start
        for k, layer in enumerate(self.layers):
            if layer.states:
                found[k] = distances.share_of_way(statistics.mean[k], start.mean[k], target.mean[k])
        return found

    @property
    def settles(self) -> bool:
        """Whether running state known by what it does closes half of the gap, once it settled.

        It has no distortion: what its values do to an output nobody knows.
        """
        gap, floor = self.judged_gap, self.floor
        known = any(layer.states for layer in self.layers)
        return known and gap is not None and floor is not None and floor <= 0.5 * gap

    # the model's own code -------------------------------------------------------------------------

    @property
    def takes_another_path(self) -> bool:
        """Whether the model's own code computes something else in eval mode."""
        gap = self.passes.path_gap
        differs = gap is not None and not gap <= self.passes.allowed_path_gap
        return differs or self.feeds_layers_otherwise

    @property
    def feeds_layers_otherwise(self) -> bool:
        """Whether layers see another distribution in eval mode, and no dropout explains it.

        Batch statistics can hide that from the predictions.
        """
        if self.passes.path_gap is None or self.training.stochastic or self.stream:
            return False
        if self.training.changes_data:
            return False
        return bool((self.shifts > USUAL_DISTORTION).any())  # NaN tells nothing

    @cached_property
    def shifts(self) -> Array:
        """How far the batch statistics of training mode are from those with a fixed eval path.

        Distortion of each layer, in standard deviations. Stochastic layers, and code that takes
        another path in training, make the difference.
        """
        return distances.distortion(self.passes.noisy_batch, self.passes.batch, self.eps)

    # verdict --------------------------------------------------------------------------------------

    def scores(self, prediction: Prediction, statistics: Statistics) -> Scores:
        """What the verdict looks at, for eval mode with these running statistics."""
        distortions = self.distortions(statistics)
        excess = self.compared.gap(prediction, self.recalibrated) if self.recalibrated else None
        return Scores(
            gap=self.compared.gap(prediction, self.train),
            distortion=float(distortions.max()) if distortions.size else 0.0,
            excess=excess,
            floor=self.floor,
            retained=self.retained(prediction),
            loss=prediction.loss,
            accuracy=prediction.accuracy,
            finite=self._is_finite(prediction)
            and (prediction.loss is None or abs(prediction.loss) < math.inf),
            settles=self.settles,
        )

    def _is_finite(self, prediction: Prediction) -> bool:
        """Whether a prediction is finite wherever that of training mode is."""
        reference = self.train.outputs if self.train else {}
        return predictions.finite(prediction.outputs, reference)

    def judge(self, scores: Scores) -> BNVerdict | None:
        """The verdict on some scores under this check's limits."""
        best = self.recalibrated or self.train
        return judge(
            scores,
            self._decisions(best) if best else None,
            self.gap_limit,
            self.distortion_limit,
            train=self.train,
            samples=self.samples,
        )

    @property
    def samples(self) -> int | None:
        """Samples that decisions are counted on; None if unknown."""
        size = self.training.batch_size
        return size and size * max(1, len(self.train.parts) if self.train else 0)

    @cached_property
    def measured_verdict(self) -> BNVerdict | None:
        """The verdict as the numbers give it, whether or not training achieved anything."""
        if self.judged is None or self.passes.is_random:
            return None
        if not self.layers:  # nothing runs along that could be wrong
            return "healthy"
        return self.judge(self.scores(self.judged, self.judged_statistics))

    @property
    def looks_off(self) -> bool:
        """Whether converged statistics are worth a try."""
        gap = self.judged_gap
        if gap is None:
            return self.measured_verdict != "healthy"
        return not gap <= USUAL_GAP

    @property
    def conclusive_verdict(self) -> BNVerdict | None:
        """The same, or None where training achieved nothing."""
        return None if self.inconclusive else self.measured_verdict

    def retained(self, prediction: Prediction | None) -> float | None:
        """Share of training's progress that a prediction keeps."""
        if prediction is None or self.train is None:
            return None
        return predictions.retained(
            self.first_loss, self.train.constant_loss, self.train.loss, prediction.loss
        )

    def fails(self, prediction: Prediction | None) -> bool:
        """Whether a prediction decides worse than training mode does."""
        return self.suffers(prediction) is True

    def suffers(self, prediction: Prediction | None) -> bool | None:
        """Whether a prediction decides worse than training mode does; None if that is unknown."""
        if prediction is None or self.train is None:
            return None
        return decisions_suffer(self._decisions(prediction), self.train, self.samples)

    def _decisions(self, prediction: Prediction) -> Scores:
        """What tells how well a prediction decides."""
        return Scores(
            gap=None,
            distortion=None,
            retained=self.retained(prediction),
            loss=prediction.loss,
            accuracy=prediction.accuracy,
            finite=self._is_finite(prediction),
        )

    @property
    def cured_by_planning(self) -> bool:
        """Whether the prediction is only broken until the planned updates are made."""
        before = self.compared.eval
        if self.compared.projected is None or before is None or self.measured_verdict == "broken":
            return False
        return self.judge(self.scores(before, self.training.stop)) == "broken"

    @property
    def cured_by_converging(self) -> bool:
        """Whether the prediction is broken, or converged statistics close most of its gap.

        With stochastic layers they are one random draw, and with several mini-batches one of
        many: no yardstick for small gaps.
        """
        if self.conclusive_verdict == "broken":
            return True
        gap, floor = self.judged_gap, self.floor
        if gap is None or floor is None or self.training.stochastic or self.slack > 1.0:
            return False
        return gap > USUAL_GAP * self.slack and floor < 0.5 * gap
