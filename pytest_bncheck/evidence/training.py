"""What the training logged. No option of the check and no pass after it has a part in this."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from pytest_bncheck.evidence.past import Past
from pytest_bncheck.maths import running
from pytest_bncheck.types import Calls, Layer, Modes, Rehearsal, Statistics, Streams

LAST = 4
"""Steps whose batch statistics stand for the data as training steps change it."""


@dataclass(frozen=True)
class Training:
    """The training of one check; lists over layers run in the order of `layers`.

    Attributes
    ----------
    layers
        The layers with running statistics, in the order in which they run.
    batch_size
        Samples in the first batch, or None if unknown.
    losses
        Training loss of every step.
    calls
        Calls of each layer over all training steps.
    history
        Running statistics before the first step and after each, as far as they were logged.
    stop
        Running statistics after the training.
    kept_in_steps
        The share of its statistics that each layer kept in each step; empty where every call had
        the layer's update rate.
    schedules
        The same of running state that a pass found, where its rate changed, by the layer's name.
    streams
        What each call in a training step normalised, of layers that are called several times.
    replicas
        Running statistics of each process that trained the model; empty where it was one.
    idle
        Layers that ran in inference mode only in some training step, without being frozen.
    asleep
        Layers in a part of the model that was handed over in eval mode, though it trains.
    unsaved
        Layers whose statistics are not part of the model's own state.
    stochastic
        Whether a training step drew random numbers.
    past
        What the running statistics tell of a training before the check; None if the check trained.
    ended
        What the framework did to the weights at the end of the training; None if nothing. Training
        mode is then that of the weights before, and eval mode that of those after.
    modes
        Whether a training step showed in which modes the layers train; "hidden" of a finished
        program, whose layers cannot be seen.
    rehearsal
        A pass in training mode beside the training step that followed; None if there was none.
    """

    layers: Sequence[Layer]
    batch_size: int | None
    losses: Sequence[float]
    calls: Calls
    history: Sequence[Statistics]
    stop: Statistics
    kept_in_steps: Sequence[Sequence[float]] = ()
    schedules: Mapping[str, Sequence[float]] = field(default_factory=dict)
    streams: Mapping[str, Streams] = field(default_factory=dict)
    replicas: Sequence[Statistics] = ()
    idle: Sequence[str] = ()
    asleep: Sequence[str] = ()
    unsaved: Sequence[str] = ()
    stochastic: bool = False
    past: Past | None = None
    ended: str | None = None
    modes: Modes = "observed"
    rehearsal: Rehearsal | None = None

    @property
    def steps(self) -> int:
        """Training steps that the check made."""
        return len(self.losses)

    @property
    def made(self) -> int | None:
        """Updates that the model has made: in the check, or before it, as far as that is known."""
        return self.steps if self.past is None else self.past.made

    @property
    def start(self) -> Statistics:
        """Running statistics before the training, the check's or that before it."""
        return self.history[0] if self.past is None else self.past.start

    @property
    def is_logged(self) -> bool:
        """Whether the running statistics after every step are known."""
        return len(self.history) == self.steps + 1

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
    def calls_per_step(self) -> list[float]:
        """How often each layer ran with batch statistics in a training step.

        Without training nobody knows how often a layer runs in a step; once is assumed.
        """
        if self.past is not None:
            return [float(active) for active in self.past.active]
        return [count / max(self.steps, 1) for count in self.updates]

    @cached_property
    def logged_batches(self) -> list[Statistics]:
        """The batch statistics of every training step, as far as rounding lets them be read."""
        return [
            running.recover_batch(before, after, self._kept_in(step))
            for step, (before, after) in enumerate(pairwise(self.history))
        ]

    def as_in_steps(self, batch: Statistics) -> Statistics:
        """Batch statistics, with those of the last steps where these changed the data.

        Augmentation, or several views of a sample: what a pass on the batch as it is would show is
        not what was trained on.
        """
        changed = self.changed
        if not changed or not self.is_logged:
            return batch
        last = running.mean(self.logged_batches[-LAST:])
        own = [layer.name in changed for layer in self.layers]
        return Statistics(
            tuple(m if mine else b for b, m, mine in zip(batch.mean, last.mean, own, strict=True)),
            tuple(v if mine else b for b, v, mine in zip(batch.var, last.var, own, strict=True)),
        )

    @property
    def changed(self) -> Sequence[str]:
        """The layers that the last step moved otherwise than a pass on the batch as it is."""
        return self.rehearsal.changed if self.rehearsal else ()

    @property
    def changes_data(self) -> bool:
        """Whether training steps feed the layers something else than the batch as it is."""
        return bool(self.changed)

    def _kept_in(self, step: int) -> Sequence[float]:
        """The share of its statistics that each layer kept in a step that was made."""
        shares = (
            self.kept_in_steps[step]
            if self.kept_in_steps
            else [
                running.remaining_share(layer.update_rate, step * calls, calls)
                for layer, calls in zip(self.layers, self.calls_per_step, strict=True)
            ]
        )
        known = [self.schedules.get(layer.name) for layer in self.layers]
        return [own[step] if own else share for own, share in zip(known, shares, strict=True)]

    @property
    def updates(self) -> Sequence[int]:
        """How often each layer ran with batch statistics, over all training steps."""
        return self.calls.training if self.past is None else self.past.updates

    # what is left ---------------------------------------------------------------------------------

    @property
    def initial_weights(self) -> list[float]:
        """What is left of each layer's initial value, in [0, 1]."""
        if self.past is not None:
            return self.past.weights
        if self.kept_in_steps or self.schedules:
            rows = map(self._kept_in, range(self.steps))
            return [math.prod(shares) for shares in zip(*rows, strict=True)]
        return [
            running.remaining_weight(layer.update_rate, updates)
            for layer, updates in zip(self.layers, self.updates, strict=True)
        ]

    def largest_initial_weight(self, explained: Collection[str] = ()) -> float:
        """The most that is left of an initial value, in a layer that updates.

        A layer that is frozen, or does not run, keeps its initial value, and is right to. Layers
        in `explained` do not count.
        """
        rows = zip(self.layers, self.initial_weights, self.updates, strict=True)
        left = (
            weight for layer, weight, updates in rows if updates and layer.name not in explained
        )
        return max(left, default=0.0)

    def kept(self, steps: int) -> list[float]:
        """The share of its statistics that each layer keeps over `steps` more training steps."""
        rows = zip(self.layers, self.updates, self.calls_per_step, strict=True)
        return [
            running.remaining_share(layer.update_rate, done, round(calls * steps))
            for layer, done, calls in rows
        ]

    def kept_until(self, updates: int | None) -> list[float]:
        """The share that each layer keeps until `updates` steps are made in all; 1 for None."""
        return self.kept(0 if updates is None else max(0, updates - (self.made or 0)))
