"""What the experiment measured: the only thing that rules look at."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np

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
    Streams,
    Trace,
)

if TYPE_CHECKING:
    from pytest_bncheck.types import Array

PATH_GAP = 0.01
"""Difference of the training and the eval path from which on it is the model's own code's."""

FEW = 3
"""Layers that are put right together, to see whether they make the gap."""

MOST = 0.8
"""Share of the gap that makes further layers unimportant."""

SAME = 0.01
"""Standard deviations up to which several calls of a layer are a repetition."""


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
    first
        As `train`, on the first batch alone.
    projected, recalibrated, replaced, debiased
        Eval mode with other running statistics: projected to the planned updates; the batch's, as
        the framework would store them; the batch's own biased ones; without the initial value,
        where they are `tried`.
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
    unsaved
        Layers whose statistics are not part of the model's own state.
    too_few
        A layer that refused to train on one value per channel.
    attribution
        Share of each layer in the gap; None where unknown, empty if it was not computed.
    without_culprits
        Eval mode with the statistics of the layers with the three largest shares put right, where
        that is `tried`.
    further_updates
        Training steps until the prediction would pass, with the weights as they are.
    sufficient_rates
        For a number of steps in all, the smallest update rate with which they would suffice, or
        None if there is none: for the steps that were made, and for more with the weights as
        they are.
    probed_updates, probed_rates
        Gaps that were predicted on the way, where they are `tried`: after so many further updates;
        for the steps that were made, at other update rates.
    stream
        Whether several mini-batches were trained on. Then all limits are doubled, predictions are
        on the first of them together, gaps are measured from eval mode with the mean of their
        statistics, and loss and accuracy of `train` are those of `own`.
    batches
        Batch statistics of each of them, as in training.
    own, settled
        Predictions with each mini-batch's own batch statistics, and with the mean of all.
    remixed
        As `own`, after their samples were dealt anew; only if `settled` decides worse.
    after_each
        Eval mode, where it is `tried`, if one of them came once more, for each; only where much
        depends on the last.
    program
        What the model is if it is a finished program, of which only the behaviour shows.
    replicas
        Running statistics of each process that trained the model; empty where it was one.
    streams
        What each call in a training step normalised, of layers that are called several times.
    scale
        What gaps are multiplied by; see `tried`.
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
    first: Prediction | None = None
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
    unsaved: Sequence[str] = ()
    noise: float = 1e-4
    attribution: Sequence[float | None] = ()
    without_culprits: Prediction | None = None
    further_updates: int | None = None
    sufficient_rates: dict[int, float | None] = field(default_factory=dict)
    probed_updates: dict[int, float | None] = field(default_factory=dict)
    probed_rates: dict[float, float | None] = field(default_factory=dict)
    stochastic: bool = False
    too_few: str | None = None
    stream: bool = False
    projected_statistics: Statistics | None = None
    history: list[Statistics] = field(default_factory=list)
    batches: Sequence[Statistics] = ()
    own: Prediction | None = None
    settled: Prediction | None = None
    remixed: Prediction | None = None
    after_each: Sequence[Prediction] = ()
    replicas: Sequence[Statistics] = ()
    program: str | None = None
    streams: Mapping[str, Streams] = field(default_factory=dict)
    scale: float = 1.0
    _distortions: tuple[Statistics, Statistics, Array] | None = None

    # training ---------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Training steps that were made."""
        return len(self.losses)

    @property
    def first_loss(self) -> float | None:
        """The first training loss, or None without training.

        Of several mini-batches the mean over their first turn, where that is more: the very first
        can be one that is easy to guess.
        """
        if not self.losses:
            return None
        turn = self.losses[: max(len(self.batches), 1)]
        return max(self.losses[0], sum(turn) / len(turn))

    @property
    def trained(self) -> bool:
        """Whether training lowered the loss by a tenth, to a finite value."""
        train = self.train.loss if self.train else None
        if train is None and self.losses:
            train = self.losses[-1]
        if self.in_parts:  # on the whole batch training mode may do worse than on its parts
            train = min(self.losses[-1], self.losses[-1] if train is None else train)
        return predictions.achieved(self.first_loss, train)

    # layers -----------------------------------------------------------------------------------

    @property
    def calls_per_step(self) -> list[float]:
        """How often each layer ran with batch statistics in a training step."""
        return [count / max(self.steps, 1) for count in self.calls.training]

    @cached_property
    def logged_batches(self) -> list[Statistics]:
        """The batch statistics of every training step, as far as rounding lets them be read."""
        pairs = list(zip(self.layers, self.calls_per_step, strict=True))
        found = []
        for step, (before, after) in enumerate(pairwise(self.history)):
            kept = [
                running.remaining_share(layer.update_rate, step * calls, calls)
                for layer, calls in pairs
            ]
            found.append(running.recover_batch(before, after, kept))
        return found

    @property
    def eps(self) -> list[float]:
        """The constant that each layer adds to its variance."""
        return [layer.eps for layer in self.layers]

    @property
    def forgetful(self) -> list[Layer]:
        """The layers in which the last batch makes at least half of the running statistics."""
        return [
            layer
            for layer in self.layers
            if layer.update_rate is not None
            and layer.update_rate >= running.FORGETFUL
            and not layer.frozen
        ]

    @property
    def initial_weights(self) -> list[float]:
        """What is left of each layer's initial value, in [0, 1]."""
        return [
            running.remaining_weight(layer.update_rate, updates)
            for layer, updates in zip(self.layers, self.calls.training, strict=True)
        ]

    def largest_initial_weight(self, beyond: Collection[str] = ()) -> float:
        """The most that is left of an initial value, in a layer that updates and not in `beyond`.

        A layer that is frozen, or does not run, keeps its initial value, and is right to.
        """
        rows = zip(self.layers, self.initial_weights, self.calls.training, strict=True)
        left = (weight for layer, weight, calls in rows if calls and layer.name not in beyond)
        return max(left, default=0.0)

    def distortions(self, statistics: Statistics, batch: Statistics | None = None) -> Array:
        """Distortion of each layer under some running statistics, against the training batch."""
        against = batch or self.noisy_batch
        known = self._distortions
        if known is not None and known[0] is statistics and known[1] is against:
            return known[2]
        found = running.distortion(statistics, against, self.eps)
        if statistics is self.judged_statistics:  # which nearly every rule asks for
            self._distortions = statistics, against, found
        return found

    @property
    def judged_statistics(self) -> Statistics:
        """The running statistics that the verdict is taken on: projected ones if declared."""
        return self.projected_statistics or self.stop

    @property
    def judged_distortions(self) -> Array:
        """Distortion of each layer under the statistics that the verdict is taken on."""
        return self.distortions(self.judged_statistics)

    def distorted(self, beyond: Sequence[str] = ()) -> list[str]:
        """Names of the layers over the distortion limit, worst first, without those in `beyond`.

        The worst has the largest share in the gap, or the largest distortion where shares are
        unknown.
        """
        distortions, limit = self.judged_distortions.tolist(), self.distortion_limit
        shares = self.attribution or [None] * len(distortions)
        keys = [
            (-(share or 0.0), -d if d == d else -float("inf"))
            for share, d in zip(shares, distortions, strict=True)
        ]
        found = [
            (key, layer.name)
            for key, d, layer in zip(keys, distortions, self.layers, strict=True)
            if not d <= limit and layer.name not in beyond
        ]
        return [name for _, name in sorted(found, key=lambda pair: pair[0])]

    @property
    def culprits(self) -> list[str]:
        """The layers with the largest shares in the gap: as many as make most of it, up to 3."""
        pairs = zip(self.attribution, self.layers, strict=False)
        known = [(share, layer.name) for share, layer in pairs if share is not None and share > 0]
        largest = sorted(known, key=lambda pair: -pair[0])[:FEW]
        before = [0.0, *accumulate(share for share, _ in largest)]
        return [
            name
            for (_, name), sum_before in zip(largest, before, strict=False)
            if sum_before < MOST
        ]

    @property
    def culprits_explain(self) -> float | None:
        """Share of the gap that goes when the `culprits` are put right; None if not tried."""
        tried = self.tried
        gap, left = (
            tried.gap(prediction, tried.train)
            for prediction in (tried.judged, tried.without_culprits)
        )
        return None if not gap or left is None else 1.0 - left / gap

    # limits -----------------------------------------------------------------------------------

    @property
    def slack(self) -> float:
        """What all limits are multiplied by: a mini-batch of a stream differs from the others."""
        return 2.0 if self.stream or self.in_parts else 1.0

    @property
    def in_parts(self) -> bool:
        """Whether a training step goes through the batch in parts that differ."""
        rows = zip(self.layers, self.calls_per_step, self.calls_in_pass.training, strict=True)
        return any(
            calls > in_pass
            and running.spread(self.streams[layer.name].statistics, layer.eps) > SAME
            for layer, calls, in_pass in rows
            if layer.name in self.streams
        )

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
        gap = predictions.gap(prediction.outputs, reference.outputs)
        return None if gap is None else self.scale * gap

    @property
    def typical(self) -> int:
        """The mini-batch with the judged gap that is nearest to that on all of them together."""
        if self.judged is None or self.train is None or not self.train.parts:
            return 0
        whole = self.gap(self.judged, self.train)
        pairs = zip(self.judged.parts, self.train.parts, strict=True)
        gaps = [self.gap(*pair) for pair in pairs]
        return min(range(len(gaps)), key=lambda k: abs((gaps[k] or 0.0) - (whole or 0.0)))

    @property
    def tried(self) -> Evidence:
        """The evidence where other statistics are tried: of several mini-batches the typical one.

        On all of them each try would cost as many passes. Gaps are scaled so that the judged one is
        that on all.
        """
        k, one = self.typical, copy.copy(self)
        for name in ("train", "eval", "projected", "recalibrated"):
            prediction = getattr(self, name)
            if prediction is not None and prediction.parts:
                setattr(one, name, prediction.parts[k])
        whole, gap = (evidence.gap(evidence.judged, evidence.train) for evidence in (self, one))
        if whole and gap and 0.0 < whole / gap < float("inf"):
            one.scale = self.scale * whole / gap
        return one

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
    def gap_without_initial_value(self) -> float | None:
        """The gap that is left if the initial value is taken out of the running statistics."""
        tried = self.tried
        return tried.gap(tried.debiased, tried.train)

    @property
    def cured_by_converging(self) -> bool:
        """Whether the prediction is broken, or converged statistics close most of its gap.

        With stochastic layers they are one random draw, and with several mini-batches one of
        many: no yardstick for small gaps.
        """
        if self.bn_verdict == "broken":
            return True
        gap, floor = self.gap(self.judged, self.train), self.floor
        if gap is None or floor is None or self.stochastic or self.slack > 1.0:
            return False
        return gap > verdict.DEGRADED_GAP * self.slack and floor < 0.5 * gap

    @property
    def surviving_gap(self) -> float | None:
        """The gap that is left with the batch's own statistics in place of the running ones."""
        return self.gap(self.replaced, self.train)

    @property
    def half_gap(self) -> float | None:
        """How far half of the batch's predictions move when its other half is left out."""
        if self.half is None or self.eval is None or not self.half.outputs:
            return None
        return predictions.gap(self.half.outputs, _rows(self.eval, self.half))

    @property
    def repeat_gap(self) -> float | None:
        """How far two eval passes on the same samples are apart; None if there was no second."""
        pairs = ((self.again, self.eval), (self.half_again, self.half))
        both = [(one, other) for one, other in pairs if one and other]
        found = [predictions.gap(one.outputs, _rows(other, one)) for one, other in both]
        gaps = [gap for gap in found if gap is not None]
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
        if self.path is None or self.first is None:
            return None
        if self.path.random or self.path.mutated or self.path.structure != self.first.structure:
            return None
        return self.gap(self.path, self.first)

    @property
    def takes_another_path(self) -> bool:
        """Whether the model's own code computes something else in eval mode."""
        gap = self.path_gap
        differs = gap is not None and not gap <= max(PATH_GAP, self.noise)
        return differs or self.feeds_layers_otherwise

    @property
    def feeds_layers_otherwise(self) -> bool:
        """Whether layers see another distribution in eval mode, and no dropout explains it.

        Batch statistics can hide that from the predictions.
        """
        if self.path_gap is None or self.stochastic or self.stream:
            return False
        shifted = self.distortions(self.noisy_batch, self.batch)
        return bool((shifted > verdict.DEGRADED_DISTORTION).any())  # NaN tells nothing

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
    def cured_by_planning(self) -> bool:
        """Whether the prediction is only broken until the planned updates are made."""
        if self.projected is None or self.eval is None or self.measured_verdict == "broken":
            return False
        return self.judge(self.scores(self.eval, self.stop)) == "broken"

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

    @property
    def spreads(self) -> list[float]:
        """How far the mini-batches of a stream lie apart in each layer; see `running.spread`."""
        each = zip(running.by_layer(self.batches), self.eps, strict=False)
        return [running.spread(layer, eps) for layer, eps in each]

    def fails(self, prediction: Prediction | None) -> bool:
        """Whether a prediction decides worse than training mode does."""
        return self.suffers(prediction) is True

    def suffers(self, prediction: Prediction | None) -> bool | None:
        """Whether a prediction decides worse than training mode does; None if that is unknown."""
        if prediction is None or self.train is None:
            return None
        scores = Scores(
            gap=None,
            distortion=0.0,
            retained=self.retained(prediction),
            loss=prediction.loss,
            accuracy=prediction.accuracy,
            finite=predictions.finite(prediction.outputs),
        )
        return verdict.decisions_suffer(scores, self.train.accuracy)

    def initial_share(self, beyond: Collection[str] = ()) -> float:
        """How much of the distortion the initial value makes, against lag, in [0, 1].

        The squared distortions by either part are compared, summed over the layers but those in
        `beyond`.
        """
        counted = np.array([layer.name not in beyond for layer in self.layers], dtype=bool)
        initial, lag, noise = (part[counted] for part in self._parts())
        squares = float((initial**2).sum())
        total = squares + float((lag**2 + noise**2).sum())
        return squares / total if total > 0 else 0.0

    @property
    def causes(self) -> dict[str, int]:
        """How many of the distorted layers suffer from what, the commonest first.

        ``"initial value"``, ``"lag"`` behind moving weights, or ``"noise"`` of the mini-batches,
        whichever makes the largest part of a layer's distortion, and ``"too few values"`` where
        converged statistics would distort it too, being unbiased.
        """
        initial, lag, noise = self._parts()
        few = [1.0 - running.bessel(n) ** -0.5 if n else 0.0 for n in self.calls_in_pass.values]
        found, limit = Counter[str](), self.distortion_limit
        for k, distortion in enumerate(self.judged_distortions.tolist()):
            if not distortion <= limit:
                parts = {
                    "initial value": initial[k],
                    "lag": lag[k],
                    "noise": noise[k],
                    "too few values": few[k] if self.dialect.unbiased else 0.0,
                }
                found[max(parts, key=lambda name: parts[name])] += 1
        return dict(found.most_common())

    def _parts(self) -> tuple[Array, Array, Array]:
        """Distortion of each layer by its initial value, by lag and by noise.

        r - b = w0·(r0 - b) + (1-w0)·(r̂ - b), r̂ the statistics without the initial value.
        """
        weights = self.initial_weights
        target, settled = self.noisy_batch, self.judged_statistics
        if self.projected_statistics is not None:
            kept = self.kept_until_planned
            weights = [w * share for w, share in zip(weights, kept, strict=True)]
        clean = running.debias(settled, self.start, weights)
        initial = self.distortions(running.project(self.start, target, weights))
        rest = self.distortions(running.project(clean, target, [1.0 - w for w in weights]))
        noise = np.zeros(len(self.layers))
        if self.stream:
            rates = [layer.update_rate for layer in self.layers]
            noise = running.noise(self.logged_batches, target, self.eps, rates)
        noise = np.minimum(noise, rest)
        return initial, np.sqrt(rest**2 - noise**2), noise

    def kept(self, steps: int) -> list[float]:
        """What each layer keeps of its statistics over so many further training steps."""
        return self._kept(steps, self.calls_per_step)

    @property
    def kept_until_planned(self) -> list[float]:
        """What each layer keeps of its statistics until the planned updates are made.

        Without training nobody knows how often a layer runs in a step; once is assumed.
        """
        planned = self.settings.planned_updates
        further = 0 if planned is None else max(0, planned - self.steps)
        return self._kept(further, self.calls_per_step if self.steps else [1.0] * len(self.layers))

    def _kept(self, steps: int, calls_per_step: Sequence[float]) -> list[float]:
        rows = zip(self.layers, self.calls.training, calls_per_step, strict=True)
        return [
            running.remaining_share(layer.update_rate, done, round(calls * steps))
            for layer, done, calls in rows
        ]


def _rows(whole: Prediction, like: Prediction) -> Mapping[str, Array]:
    """The outputs of a prediction for as many samples, from the first on, as another has."""
    return {
        key: values[: len(like.outputs[key])] if key in like.outputs else values
        for key, values in whole.outputs.items()
    }
