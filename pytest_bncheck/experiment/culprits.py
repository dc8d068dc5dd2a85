"""Which layers make the gap: a gradient for their shares, a pass that confirms the largest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.maths import attribution
from pytest_bncheck.maths.predictions import worst_output
from pytest_bncheck.types import Prediction, Statistics

if TYPE_CHECKING:
    from pytest_bncheck.types import Array, Slope

    Direction: TypeAlias = Mapping[str, Array]
    React: TypeAlias = Callable[[Statistics, Direction], Sequence[Slope | None] | None]
    Predict: TypeAlias = Callable[[Statistics], Prediction]


def attribute(evidence: Evidence, seen: Statistics, react: React, predict: Predict) -> None:
    """Fill in what `evidence` knows of single layers.

    Parameters
    ----------
    seen
        The running statistics exactly as eval mode uses them.
    react, predict
        `Adapter.slopes` and eval mode under given statistics, which are used exactly as they are.
    """
    direction = _direction(evidence.tried)
    if direction is None:
        return
    total = sum(float((difference**2).sum()) for difference in direction.values())
    layers = (seen, evidence.batch, evidence.eps)

    def slope_at(alpha: float) -> list[float | None]:
        there = attribution.along(*layers, alpha)
        finite = all(np.isfinite(each).all() for each in (*there.mean, *there.var))
        reactions = react(there, direction) if finite else None
        if reactions is None:
            return [None] * len(evidence.layers)
        return attribution.slope(*layers, alpha, reactions, total)

    evidence.attribution = attribution.shares(slope_at)
    if evidence.culprits:
        evidence.without_culprits = predict(_put_right(evidence, seen, evidence.culprits))


def _direction(evidence: Evidence) -> Direction | None:
    """The worst output's difference between the modes; None where there is none to explain."""
    judged, train = evidence.judged, evidence.train
    if judged is None or train is None or not evidence.gap(judged, train):
        return None
    worst = worst_output(judged.outputs, train.outputs)
    difference = judged.outputs[worst] - train.outputs[worst]
    return {worst: difference} if np.isfinite(difference).all() else None


def _put_right(evidence: Evidence, seen: Statistics, names: Collection[str]) -> Statistics:
    """The statistics with those of the named layers replaced by the batch's own."""
    right = [layer.name in names for layer in evidence.layers]
    pairs = ((seen.mean, evidence.batch.mean), (seen.var, evidence.batch.var))
    mean, var = (
        tuple(b if cured else r for r, b, cured in zip(*pair, right, strict=True)) for pair in pairs
    )
    return Statistics(mean, var)
