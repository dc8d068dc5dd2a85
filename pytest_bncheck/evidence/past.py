"""What the running statistics tell of a training that the check did not make (`steps=0`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from pytest_bncheck.maths import initial, running
from pytest_bncheck.types import Layer, Statistics

DOMINATES = 0.8
"""Share of the distance from which the initial value alone explains the statistics.

Of 204 spoilt checkpoints of known cause, those with the initial value as the cause had shares of
0.85 to 1, all others at most 0.69.
"""

CORROBORATED = 0.3
"""The same where the framework's counter says that so much must be left."""

AGREES = 0.02
"""Difference of two weights of the initial value that still counts as agreement."""


@dataclass(frozen=True)
class Group:
    """Layers with one update rate and one count of updates, and what is left of their start.

    Attributes
    ----------
    members
        Places of the layers.
    update_rate
        α of all of them.
    fit
        The initial value's weight as the statistics themselves show it.
    counted
        Updates that the framework counted in each of them; None if unknown.
    stuck
        Whether no update moves them: by momentum 0, or rounded away.
    """

    members: tuple[int, ...]
    update_rate: float | None
    fit: initial.InitialFit
    counted: int | None
    stuck: bool = False

    @property
    def counted_weight(self) -> float | None:
        """What would be left of the initial value after the updates that were counted."""
        if self.counted is None:
            return None
        return running.remaining_weight(self.update_rate, self.counted)

    @property
    def agrees(self) -> bool:
        """Whether the counter says the same as the statistics."""
        weight = self.counted_weight
        return weight is not None and abs(weight - self.fit.weight) <= AGREES

    @property
    def weight(self) -> float:
        """What is left of the initial value: as counted where the statistics say the same."""
        counted = self.counted_weight
        return counted if self.agrees and counted is not None else self.fit.weight

    @property
    def explains(self) -> bool:
        """Whether what is left of the initial value is why the statistics are wrong.

        A cumulative average forgets it with the first update, and what is stuck keeps it for ever.
        """
        if self.update_rate is None or self.stuck:
            return False
        share = CORROBORATED if self.agrees else DOMINATES
        return self.fit.weight >= running.SETTLED and self.fit.share >= share

    @property
    def made(self) -> int | None:
        """Updates that were made, as counted, or as they follow from the weight that is left."""
        if self.agrees or not self.explains:
            return self.counted
        if self.update_rate is None or not 0.0 < self.update_rate < 1.0:
            return None
        return round(math.log(self.fit.weight) / math.log1p(-self.update_rate))


@dataclass(frozen=True)
class Past:
    """What is left of each layer's initial value, and what it was.

    Attributes
    ----------
    groups
        Layers with the same history, as far as rate and counter tell.
    start
        The initial statistics of all layers.
    active
        Whether each layer uses batch statistics in training.
    """

    groups: Sequence[Group]
    start: Statistics
    active: Sequence[bool]

    @property
    def explaining(self) -> Group | None:
        """The group with most of its initial value left, if that is what is wrong."""
        found = [group for group in self.groups if group.explains]
        return max(found, key=lambda group: group.weight, default=None)

    @property
    def stuck(self) -> list[int]:
        """Places of the layers that no update moves."""
        return [k for group in self.groups for k in group.members if group.stuck]

    @property
    def weights(self) -> list[float]:
        """What is left of each layer's initial value, in [0, 1]; 0 where it explains nothing."""
        left = [0.0] * len(self.start)
        for group in self.groups:
            for k in group.members if group.explains else ():
                left[k] = group.weight
        return left

    @property
    def made(self) -> int | None:
        """Updates that were made, by the explaining group or as most layers count them."""
        group = self.explaining or max(self.groups, key=lambda g: len(g.members), default=None)
        return None if group is None else group.made

    @property
    def updates(self) -> list[int]:
        """Updates that each layer has made, as its group knows them; 0 where nobody knows."""
        updates = [0] * len(self.start)
        for group in self.groups:
            for k in group.members:
                updates[k] = group.made or 0
        return updates


def past(
    layers: Sequence[Layer],
    active: Sequence[bool],
    now: Statistics,
    batch: Statistics,
    values: Sequence[int | None],
    *,
    unbiased: bool,
) -> Past:
    """What running statistics tell of their past; see `maths.initial.fit`.

    Parameters
    ----------
    active
        Whether each layer uses batch statistics in training; the others tell nothing.
    now, batch
        Running statistics as they were handed over, and batch statistics.
    values
        n of each layer, values per channel; None where it did not run.
    unbiased
        Whether the framework stores the unbiased variance, whose initial 1 is (n-1)/n here.
    """
    ones = [1.0 / running.bessel(n) if unbiased else 1.0 for n in values]
    start = Statistics(
        tuple(np.zeros_like(mean) for mean in now.mean),
        tuple(np.full_like(var, one) for var, one in zip(now.var, ones, strict=True)),
    )
    alike: dict[tuple[float | None, int | None, bool], list[int]] = {}
    for k, layer in enumerate(layers):
        if active[k] and not layer.states:
            stuck = _is_stuck(layer, _only(now, [k]), _only(batch, [k]))
            alike.setdefault((layer.update_rate, layer.counted, stuck), []).append(k)
    groups, start = _of_states(layers, now, batch, start)
    for (rate, counted, stuck), members in alike.items():
        fit = initial.fit(
            _only(now, members),
            _only(batch, members),
            [layers[k].eps for k in members],
            [ones[k] for k in members],
        )
        groups.append(Group(tuple(members), rate, fit, counted, stuck))
    return Past(groups, start, active)


def _of_states(
    layers: Sequence[Layer], now: Statistics, batch: Statistics, start: Statistics
) -> tuple[list[Group], Statistics]:
    """Groups of layers that are known by what they do only, and what all layers began as."""
    alike: dict[float | None, list[int]] = {}
    for k, layer in enumerate(layers):
        if layer.states:
            alike.setdefault(layer.update_rate, []).append(k)
    groups, means = [], list(start.mean)
    for rate, members in alike.items():
        states = [
            pair
            for k in members
            for pair in zip(
                running.parts(now.mean[k], layers[k].sizes),
                running.parts(batch.mean[k], layers[k].sizes),
                strict=True,
            )
        ]
        fit, began = initial.fit_values(states)
        each = iter(began)
        for k in members:
            means[k] = np.concatenate(list(islice(each, len(layers[k].sizes))))
        groups.append(Group(tuple(members), rate, fit, None))
    return groups, Statistics(tuple(means), start.var)


def _is_stuck(layer: Layer, now: Statistics, batch: Statistics) -> bool:
    """Whether an update by this batch would leave most of a layer's statistics as they are."""
    rate = layer.update_rate
    if rate is None or not running.loses_updates(rate, layer.resolution):
        return False
    before, after = (np.concatenate([each.mean[0], each.var[0]]) for each in (now, batch))
    kept = running.rounds_away(rate, layer.resolution, before, after)
    return rate == 0.0 or bool(kept.mean() > 0.5)


def _only(statistics: Statistics, members: Sequence[int]) -> Statistics:
    return Statistics(
        tuple(statistics.mean[k] for k in members), tuple(statistics.var[k] for k in members)
    )
