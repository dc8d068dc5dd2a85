"""Which layers make the gap: a gradient for their shares, a pass that confirms the largest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from pytest_bncheck.evidence import Attribution, Comparison, Judgement
from pytest_bncheck.evidence.diagnosis import MOST_OF_GAP
from pytest_bncheck.maths import attribution
from pytest_bncheck.maths.predictions import worst_pair
from pytest_bncheck.types import Layer, Prediction, Statistics

if TYPE_CHECKING:
    from pytest_bncheck.types import Array, Slope

    Direction: TypeAlias = Mapping[str, Array]
    React: TypeAlias = Callable[[Statistics, Direction], Sequence[Slope | None] | None]
    Predict: TypeAlias = Callable[[Statistics], Prediction]

MOST_CULPRITS = 3
"""Layers that are put right together at most, to see whether they make the gap."""


def attribute(
    judgement: Judgement, stored: Statistics, react: React, predict: Predict
) -> Attribution:
    """Each layer's share in the gap, and what is left of the gap without the largest shares.

    Parameters
    ----------
    judgement
        On the typical mini-batch.
    stored
        The running statistics exactly as eval mode uses them.
    react, predict
        `Sloping.slopes` and eval mode under given statistics, which are used exactly as they are.
    """
    direction = _direction(judgement.compared)
    if direction is None:
        return Attribution()
    total = sum(float((difference**2).sum()) for difference in direction.values())
    batch = judgement.passes.batch
    ends = (stored, batch, judgement.eps)

    def slope_at(alpha: float) -> list[float | None]:
        between = attribution.along(*ends, alpha)
        finite = all(np.isfinite(each).all() for each in (*between.mean, *between.var))
        reactions = react(between, direction) if finite else None
        if reactions is None:
            return [None] * len(judgement.layers)
        unknown = [None] * (len(judgement.layers) - len(reactions))  # no normalised output
        return attribution.slope(*ends, alpha, [*reactions, *unknown], total)

    shares = attribution.shares(slope_at)
    culprits = _largest(judgement.layers, shares)
    if not culprits:
        return Attribution(shares)
    right = [layer.name in culprits for layer in judgement.layers]
    return Attribution(shares, culprits, predict(_put_right(stored, batch, right)))


def _direction(compared: Comparison) -> Direction | None:
    """The worst output's difference between the modes; None if there is none to explain."""
    judged, train = compared.judged, compared.train
    if judged is None or train is None or not compared.judged_gap:
        return None
    worst = worst_pair(judged.outputs, train.outputs)
    if worst is None:
        return None
    with np.errstate(invalid="ignore"):  # a mask of infinities
        difference = worst.prediction - worst.reference
    return {worst.path: difference} if np.isfinite(difference).all() else None


def _largest(layers: Sequence[Layer], shares: Sequence[float | None]) -> list[str]:
    """The layers with the largest shares: as many as make most of the gap, up to 3."""
    pairs = zip(shares, layers, strict=True)
    known = [(share, layer.name) for share, layer in pairs if share is not None and share > 0]
    largest = sorted(known, key=lambda pair: -pair[0])[:MOST_CULPRITS]
    before = accumulate((share for share, _ in largest), initial=0.0)
    pairs_before = zip(largest, before, strict=False)  # the last sum is that of all
    return [name for (_, name), sum_before in pairs_before if sum_before < MOST_OF_GAP]


def _put_right(stored: Statistics, batch: Statistics, right: Collection[bool]) -> Statistics:
    """The stored statistics, with the batch's own where a layer is to be put right."""
    pairs = ((stored.mean, batch.mean), (stored.var, batch.var))
    mean, var = (
        tuple(b if cured else r for r, b, cured in zip(*pair, right, strict=True)) for pair in pairs
    )
    return Statistics(mean, var)
