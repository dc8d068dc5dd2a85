"""What the experiment measured: the only thing that rules look at."""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_bncheck.maths import predictions, running, verdict
from pytest_bncheck.maths.verdict import Scores
from pytest_bncheck.types import (
    BNVerdict,
    Calls,
    Dialect,
    Layer,
    Prediction,
    Settings,
    Statistics,
    Trace,
)

if TYPE_CHECKING:
    from pytest_bncheck.types import Array


@dataclass
class Evidence:
    """One experiment's measurements; lists and arrays over layers run in the order of `layers`.

    Attributes
    ----------
    layers
        The layers with running statistics, in the order in which they run.
    active
        Whether each one used batch statistics in training.
    calls, calls_in_pass
        Calls over all training steps, and in one batch-statistics pass.
    losses
        Training loss of every step.
    start, stop
        Running statistics before and after training.
    batch, noisy_batch
        Batch statistics with stochastic layers off, and on as in training.
    train, eval, path
        Predictions with batch statistics, in eval mode, and on the training path.
    projected, recalibrated, replaced, debiased
        Eval mode with other running statistics: projected to the planned updates; the batch's, as
        the framework would store them; the batch's own biased ones; without the initial value.
    half, again, half_again
        Eval mode on half of the batch, once more on all of it, and once more on the half.
    traces
        Calls in an eval pass that behave as in training; looked for only if something is off.
    idle
        Layers that ran in inference mode only in some training step, without being frozen.
    asleep
        Layers in a part of the model that was handed over in eval mode, though it trains.
    sticky
        Attributes that an eval pass changed for good.
    too_few
        A layer that refused to train on one value per channel.
    further_updates
        Training steps until the prediction would pass, with the weights as they are.
    sufficient_rate
        The smallest update rate with which the steps that were made would have sufficed.
    stream
        Whether several mini-batches were trained on, which doubles the limits.
    """

    settings: Settings
    dialect: Dialect
    batch_size: int | None
    layers: list[Layer]
    active: list[bool]
    calls: Calls
    calls_in_pass: Calls
    losses: list[float]
    start: Statistics
    stop: Statistics
    batch: Statistics
    noisy_batch: Statistics
    train: Prediction | None = None
    eval: Prediction | None = None
    path: Prediction | None = None
    projected: Prediction | None = None
    recalibrated: Prediction | None = None
    replaced: Prediction | None = None
    debiased: Prediction | None = None
    half: Prediction | None = None
    again: Prediction | None = None
    half_again: Prediction | None = None
    traces: Sequence[Trace] = ()
    idle: Sequence[str] = ()
    asleep: Sequence[str] = ()
    sticky: Sequence[str] = ()
    noise: float = 1e-4
    further_updates: int | None = None
    sufficient_rate: float | None = None
    stochastic: bool = False
    too_few: str | None = None
    stream: bool = False
    projected_statistics: Statistics | None = None
    history: list[Statistics] = field(default_factory=list)

    # training ---------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Training steps that were made."""
        return len(self.losses)

    @property
    def first_loss(self) -> float | None:
        """The first training loss, or None without training."""
        return self.losses[0] if self.losses else None

    @property
    def trained(self) -> bool:
        """Whether training lowered the loss by a tenth, to a finite value."""
        train = self.train.loss if self.train else None
        if train is None and self.losses:
            train = self.losses[-1]
        return predictions.achieved(self.first_loss, train)

    # layers -----------------------------------------------------------------------------------

    @property
    def eps(self) -> list[float]:
        """The constant that each layer adds to its variance."""
        return [layer.eps for layer in self.layers]

    @property
    def initial_weights(self) -> list[float]:
        """What is left of each layer's initial value, in [0, 1]."""
        return [
            running.remaining_weight(layer.update_rate, updates)
            for layer, updates in zip(self.layers, self.calls.training, strict=True)
        ]

    def distortions(self, statistics: Statistics, batch: Statistics | None = None) -> Array:
        """Distortion of each layer under some running statistics, against the training batch."""
        return running.distortion(statistics, batch or self.noisy_batch, self.eps)

    @property
    def judged_statistics(self) -> Statistics:
        """The running statistics that the verdict is taken on: projected ones if declared."""
        return self.projected_statistics or self.stop

    @property
    def judged_distortions(self) -> Array:
        """Distortion of each layer under the statistics that the verdict is taken on."""
        return self.distortions(self.judged_statistics)

    def distorted(self, beyond: Sequence[str] = ()) -> list[str]:
        """Names of the layers over the distortion limit, worst first, without those in `beyond`."""
        pairs = [
            (-d if d == d else -float("inf"), layer.name)
            for d, layer in zip(self.judged_distortions.tolist(), self.layers, strict=True)
            if not d <= self.distortion_limit and layer.name not in beyond
        ]
        return [name for _, name in sorted(pairs, key=lambda pair: pair[0])]

    # limits -----------------------------------------------------------------------------------

    @property
    def slack(self) -> float:
        """What all limits are multiplied by: a mini-batch of a stream differs from the others."""
        return 2.0 if self.stream else 1.0

    @property
    def gap_limit(self) -> float:
        """The largest gap allowed."""
        return self.settings.gap_tolerance * self.slack

    @property
    def distortion_limit(self) -> float:
        """The largest distortion allowed."""
        return self.settings.distortion_tolerance * self.slack

    # predictions ------------------------------------------------------------------------------

    @property
    def judged(self) -> Prediction | None:
        """The prediction that the verdict is taken on: projected, if updates are planned."""
        return self.projected or self.eval

    def gap(self, prediction: Prediction | None, reference: Prediction | None) -> float | None:
        """Relative difference of two predictions, or None if they cannot be aligned."""
        if prediction is None or reference is None:
            return None
        return predictions.gap(prediction.outputs, reference.outputs)

    def retained(self, prediction: Prediction | None) -> float | None:
        """Share of training's progress that a prediction keeps."""
        if prediction is None or self.train is None:
            return None
        return predictions.retained(
            self.first_loss, self.train.constant_loss, self.train.loss, prediction.loss
        )

    @property
    def floor(self) -> float | None:
        """The gap that converged statistics would leave."""
        return self.gap(self.recalibrated, self.train)

    @property
    def surviving_gap(self) -> float | None:
        """The gap that is left with the batch's own statistics in place of the running ones."""
        return self.gap(self.replaced, self.train)

    @property
    def half_gap(self) -> float | None:
        """How far half of the batch's predictions move when its other half is left out."""
        if self.half is None or self.eval is None or not self.half.outputs:
            return None
        whole = {key: value[: len(value) // 2] for key, value in self.eval.outputs.items()}
        return predictions.gap(self.half.outputs, whole)

    @property
    def repeat_gap(self) -> float | None:
        """How far two eval passes on the same samples are apart; None if there was no second."""
        pairs = ((self.again, self.eval), (self.half_again, self.half))
        gaps = [gap for gap in (self.gap(*pair) for pair in pairs) if gap is not None]
        return max(gaps, key=lambda gap: (gap != gap, gap), default=None)

    @property
    def is_random(self) -> bool:
        """Whether eval mode gives another prediction each time, so that none can be compared."""
        repeat = self.repeat_gap
        return repeat is not None and not repeat <= self.noise

    def stuck(self, taken: Set[str]) -> Set[str]:
        """Modules that ran in training mode in eval mode, as far as a finding explains them."""
        return set() if self.eval is None else taken & set(self.eval.in_training)

    @property
    def depends_on_batch(self) -> bool:
        """Whether a sample's prediction changes with its batch mates, and not by chance."""
        half = self.half_gap
        return half is not None and not half <= self.noise and not self.is_random

    def beyond(self, stuck: Collection[str], kind: str) -> list[Trace]:
        """The traces of a kind outside of modules that ignore the mode."""
        return [trace for trace in self.traces if trace.kind == kind and trace.module not in stuck]

    @property
    def path_gap(self) -> float | None:
        """How far the training path differs from the eval path; None where that tells nothing.

        Random numbers, a changed buffer or another output structure all explain a difference.
        """
        if self.path is None or self.train is None:
            return None
        if self.path.random or self.path.mutated or self.path.structure != self.train.structure:
            return None
        return self.gap(self.path, self.train)

    # verdict ----------------------------------------------------------------------------------

    def scores(self, prediction: Prediction, statistics: Statistics) -> Scores:
        """What the verdict looks at, for eval mode with these running statistics."""
        distortions = self.distortions(statistics)
        recalibrated = self.recalibrated
        return Scores(
            gap=self.gap(prediction, self.train),
            distortion=float(distortions.max()) if distortions.size else 0.0,
            excess=self.gap(prediction, recalibrated) if recalibrated else None,
            retained=self.retained(prediction),
            loss=prediction.loss,
            accuracy=prediction.accuracy,
            finite=predictions.finite(prediction.outputs)
            and (prediction.loss is None or abs(prediction.loss) < float("inf")),
        )

    def judge(self, scores: Scores) -> BNVerdict | None:
        """The verdict on some scores under this check's limits."""
        best = self.recalibrated or self.train
        accuracy = best.accuracy if best else None
        return verdict.judge(scores, accuracy, self.gap_limit, self.distortion_limit, self.slack)

    @property
    def measured_verdict(self) -> BNVerdict | None:
        """The verdict as the numbers give it, whether or not training achieved anything."""
        if self.judged is None or self.is_random:
            return None
        return self.judge(self.scores(self.judged, self.judged_statistics))

    @property
    def inconclusive(self) -> bool:
        """Whether training achieved nothing, so that no verdict is possible."""
        if not self.steps or not self.layers or self.too_few is not None or self.trained:
            return False
        path = self.path if self.path_gap else None  # another path may well have learnt
        return path is None or not predictions.achieved(self.first_loss, path.loss)

    @property
    def bn_verdict(self) -> BNVerdict | None:
        """The BN verdict, or None where none is possible."""
        return None if self.inconclusive else self.measured_verdict

    def fails(self, prediction: Prediction | None) -> bool:
        """Whether a prediction decides worse than training mode does."""
        if prediction is None or self.train is None:
            return False
        scores = Scores(
            gap=None,
            distortion=0.0,
            retained=self.retained(prediction),
            loss=prediction.loss,
            accuracy=prediction.accuracy,
            finite=predictions.finite(prediction.outputs),
        )
        return verdict.decisions_suffer(scores, self.train.accuracy) is True

    @property
    def initial_share(self) -> float:
        """How much of the distortion the initial value makes, against lag, in [0, 1].

        r - b = w0·(r0 - b) + (1-w0)·(r̂ - b), r̂ the statistics without the initial value. The two
        parts' squared distortions are compared, summed over the layers.
        """
        weights = self.initial_weights
        target, settled = self.noisy_batch, self.judged_statistics
        if self.projected_statistics is not None:
            weights = [
                w * running.remaining_share(layer.update_rate, done, self.further(layer, done))
                for w, layer, done in zip(weights, self.layers, self.calls.training, strict=True)
            ]
        clean = running.debias(settled, self.start, weights)
        initial = self.distortions(running.project(self.start, target, weights))
        lag = self.distortions(running.project(clean, target, [1.0 - w for w in weights]))
        total = float((initial**2).sum() + (lag**2).sum())
        return float((initial**2).sum()) / total if total > 0 else 0.0

    def further(self, layer: Layer, done: int) -> int:
        """Updates that the planned training makes on top of the check's, for one layer."""
        planned = self.settings.planned_updates
        if planned is None:
            return 0
        per_step = done / self.steps if self.steps else 1.0
        return max(0, round(per_step * (planned - self.steps)))
