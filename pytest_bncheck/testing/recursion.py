r"""Whether running statistics move as the adapter says: update rate and kind of variance.

A step with c calls of a layer has to lead from r to :math:`(1-α)^c r + (1 - (1-α)^c) b`, for the
batch statistics b of that step and biased variances.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pytest_bncheck.adapters.base import Mode
from pytest_bncheck.maths.running import bessel, remaining_share
from pytest_bncheck.testing.bench import Bench, index_of
from pytest_bncheck.types import Layer, Statistics

if TYPE_CHECKING:
    from pytest_bncheck.types import Array

ROUNDINGS = 16
"""Roundings of the stored numbers that an update and the conversion of a variance cost."""

CONTRACT = (
    "a step with c calls leads from r to (1-a)^c * r + (1-(1-a)^c) * b, for the update rate a, the "
    "step's batch statistics b, and biased variances (divided by n)"
)


@dataclass(frozen=True)
class Update:
    """What one training step did to one layer.

    Attributes
    ----------
    layer
        The layer.
    done, calls
        Calls before the step and in it, means over all steps.
    n
        Values per channel in a call, if known.
    before, after, batch
        Mean and variance before and after the step, and of its batch.
    noise
        Relative rounding error of the batch statistics.
    """

    layer: Layer
    done: float
    calls: float
    n: int | None
    before: tuple[Array, Array]
    after: tuple[Array, Array]
    batch: tuple[Array, Array]
    noise: float

    def fits(self, rate: float | None, *, mean: bool = True, scale: float = 1.0) -> bool:
        """Whether the step obeys the recursion.

        Parameters
        ----------
        rate
            The update rate.
        mean
            Look at the mean; else at the variance.
        scale
            What the batch's variance is multiplied by.
        """
        part = 0 if mean else 1
        old, new, batch = (pair[part] for pair in (self.before, self.after, self.batch))
        kept = remaining_share(rate, self.done, self.calls)
        wanted = kept * old + (1.0 - kept) * (batch if mean else scale * batch)
        rounding = ROUNDINGS * self.layer.resolution
        centre, spread = np.abs(self.batch[0]), np.sqrt(np.maximum(self.batch[1], 0.0))
        error = self.noise * (centre + spread if mean else self.batch[1]) + rounding * centre**2
        allowed = rounding * (np.abs(old) + np.abs(new)) + (1.0 - kept) * error + rounding
        return bool((np.abs(new - wanted) <= allowed).all())

    @property
    def rate(self) -> float | None:
        """The update rate that the mean moved with; None if it did not move along."""
        way, whole = self.after[0] - self.before[0], self.batch[0] - self.before[0]
        length = float(whole @ whole)
        share = float(way @ whole) / length if length else 0.0
        rate = 1.0 - max(1.0 - share, 0.0) ** (1.0 / max(self.calls, 1.0))
        return rate if self.fits(rate) else None


def recursion(bench: Bench) -> str | None:
    """The second and the last step move running statistics as the adapter says.

    Not the first: only then an adapter may know the order of the layers.
    """
    __tracebackhide__ = True
    run, updates = bench.first, 0
    for step in sorted({1, bench.steps - 1}):
        with bench.open(bench.settled()) as lab:
            bench.train(lab, step)
            clean = lab.run(index_of(step), Mode.BATCH_STATISTICS)
            batch = lab.run(index_of(step), Mode.TRAINING).statistics
        for k, layer in enumerate(run.layers):
            if run.stochastic and not _agree(clean.statistics, batch, k, run.noise):
                continue  # random numbers reach it, others in each pass
            updates += 1
            update = Update(
                layer,
                done=step * run.calls.training[k] / bench.steps,
                calls=run.calls.training[k] / bench.steps,
                n=clean.calls.values[k],
                before=_of(run.history[step], k),
                after=_of(run.history[step + 1], k),
                batch=_of(batch, k),
                noise=run.noise,
            )
            breach = _breach(update)
            if breach is not None:
                bench.demand(False, *breach, contract=CONTRACT)
    return None if updates else "no layer with running statistics that is free of random numbers"


def _of(statistics: Statistics, k: int) -> tuple[Array, Array]:
    return statistics.mean[k], statistics.var[k]


def _agree(one: Statistics, other: Statistics, k: int, noise: float) -> bool:
    pairs = zip(_of(one, k), _of(other, k), strict=True)
    return all(np.allclose(*pair, rtol=noise, atol=noise) for pair in pairs)


def _breach(update: Update) -> tuple[str, str] | None:
    """The member at fault and what is wrong, as it most probably is; None if nothing."""
    name, rate = repr(update.layer.name), update.layer.update_rate
    if update.fits(rate) and update.fits(rate, mean=False):
        return None
    said = f"says that update_rate of {name} is {'None' if rate is None else format(rate, 'g')}"
    if rate is not None and update.fits(1 - rate) and update.fits(1 - rate, mean=False):
        return "layers", (
            f"{said}, and its running statistics moved as with {1 - rate:g}: "
            "this is probably the framework's momentum, the weight of the past"
        )
    if not update.fits(rate):
        if update.rate is None:
            return (
                "history",
                f"shows that the running mean of {name} moved, but not towards the batch mean",
            )
        return "layers", f"{said}, and its running mean moved as with {update.rate:.3g}"
    factor = bessel(update.n)
    for member, scale in (("read", factor), ("run", 1.0 / factor)):
        if update.fits(rate, mean=False, scale=scale):
            return member, (
                f"gives a variance of {name} that is n/(n-1) times too large, n={update.n}: "
                "this is probably the unbiased one, divided by n-1"
            )
    old, new, batch = (
        float(pair[1].flat[0]) for pair in (update.before, update.after, update.batch)
    )
    return "history", (
        f"shows that the variance of {name} moved from {old:.6g} to {new:.6g} in its first "
        f"channel, where the batch has {batch:.6g}, and the mean moved as it should"
    )
