"""Why layers are distorted: by their initial value, by lag, by noise, or by too few values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pytest_bncheck.evidence.judgement import Judgement
from pytest_bncheck.maths import distances, running

if TYPE_CHECKING:
    from pytest_bncheck.types import Array


@dataclass(frozen=True)
class Parts:
    """Parts of each layer's distortion, in standard deviations; arrays of shape (layers,).

    Attributes
    ----------
    initial
        By what is left of the initial value.
    lag
        By weights that move faster than the running average follows.
    noise
        By the scatter of the mini-batches.
    few
        That of converged statistics, where the unbiased variance is stored.
    """

    initial: Array
    lag: Array
    noise: Array
    few: Array

    def initial_share(self, counted: Collection[bool]) -> float:
        """How much of the distortion the initial value makes, against lag and noise, in [0, 1].

        The squared distortions are compared, summed over the layers that are `counted`.
        """
        which = np.array(counted, dtype=bool)
        initial, lag, noise = (part[which] for part in (self.initial, self.lag, self.noise))
        squares = float((initial**2).sum())
        total = squares + float((lag**2 + noise**2).sum())
        return squares / total if total > 0 else 0.0

    def commonest(self, counted: Collection[bool]) -> dict[str, int]:
        """How many of the layers that are `counted` suffer most from what, the commonest first."""
        named = {
            "initial value": self.initial,
            "lag": self.lag,
            "noise": self.noise,
            "too few values": self.few,
        }
        largest = [
            max(named, key=lambda name: named[name][k]) for k, is_in in enumerate(counted) if is_in
        ]
        return dict(Counter(largest).most_common())


def parts(judgement: Judgement, *, unbiased: bool) -> Parts:
    """The parts of each layer's distortion.

    r - b = w0·(r0 - b) + (1-w0)·(r̂ - b), r̂ the statistics without the initial value.

    Parameters
    ----------
    unbiased
        Whether the framework stores the unbiased variance.
    """
    training, passes = judgement.training, judgement.passes
    weights, target = training.initial_weights, passes.noisy_batch
    if passes.projection is not None:
        kept = training.kept_until(judgement.settings.planned_updates)
        weights = [w * share for w, share in zip(weights, kept, strict=True)]
    clean = running.debias(judgement.judged_statistics, training.start, weights)
    initial = judgement.distortions(running.project(training.start, target, weights))
    rest = judgement.distortions(running.project(clean, target, [1.0 - w for w in weights]))
    noise = np.zeros(len(training.layers))
    if judgement.stream:
        rates = [layer.update_rate for layer in training.layers]
        noise = distances.noise(training.logged_batches, target, training.eps, rates)
    noise = np.minimum(noise, rest)
    few = [1.0 - running.bessel(n) ** -0.5 if n and unbiased else 0.0 for n in passes.calls.values]
    return Parts(initial, np.sqrt(rest**2 - noise**2), noise, np.array(few))
