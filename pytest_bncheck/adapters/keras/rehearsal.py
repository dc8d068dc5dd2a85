"""A training pass just before a training step of the user's, and what the step did otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pytest_bncheck.adapters.keras import internals
from pytest_bncheck.adapters.keras.backends.base import Tensor
from pytest_bncheck.adapters.keras.layers import Layers
from pytest_bncheck.adapters.keras.modes import Ran
from pytest_bncheck.maths.settling import MOVE_ROUNDINGS, OTHERWISE
from pytest_bncheck.types import Rehearsal


@dataclass(frozen=True)
class Rehearsed:
    """A pass in training mode.

    Attributes
    ----------
    before, after
        `Layers.packed` around it; None after it where random numbers were left out.
    ran
        What it ran.
    """

    before: Tensor
    after: Tensor | None
    ran: Ran


def compared(layers: Layers, pass_: Rehearsed, packed: Tensor, step: Ran) -> Rehearsal:
    """The pass beside the step that followed.

    Parameters
    ----------
    packed
        `Layers.packed` after the step.
    step
        What the step ran.
    """
    trained, ran = step.modes, pass_.ran.modes
    statistics = set(map(id, layers.tracking))
    absent, untrained, learned = [], [], False
    runs = []
    for layer, path in layers.named:
        weights = [v for v in internals.trainable_variables(layer) if v.trainable]
        learns = (bool(weights) or id(layer) in statistics) and trained.get(id(layer))
        if learns and id(layer) not in ran:
            absent.append(path)
        learned |= bool(learns and weights and id(layer) in ran)
        if (weights or internals.trainable_variables(layer)) and id(layer) in ran:
            runs.append(path)
            untrained += [path] * (id(layer) not in trained)
    if not learned:  # what predicts may run in the step, too, as a teacher does
        untrained = runs
    after = pass_.after
    changed = [] if after is None else _changed(layers, pass_.before, after, packed, pass_, step)
    return Rehearsal(
        absent=tuple(absent),
        untrained=tuple(untrained),
        changed=tuple(changed),
        comparable=after is not None or bool(absent),
    )


def _changed(
    layers: Layers, before: Tensor, after: Tensor, now: Tensor, pass_: Rehearsed, step: Ran
) -> list[str]:
    """The layers and states that the step moved otherwise, in as many calls; the worst first."""
    if now is None:
        return []
    states = layers.states.owners
    owners = [*map(id, layers.tracking), *states.values()]
    names = [*layers.names, *states]
    rows = zip(*(_rows(layers, packed) for packed in (now, after, before)), strict=True)
    found = []
    for name, owner, (end, mine, start) in zip(names, owners, rows, strict=True):
        calls = step.calls[owner]
        if not calls or calls != pass_.ran.calls[owner]:
            continue
        allowed = OTHERWISE * _norm(end - start) + MOVE_ROUNDINGS * 2.0**-23 * _norm(end)
        if _norm(end - mine) > allowed:
            found.append((_norm(end - mine) / max(allowed, 1e-30), name))
    return [name for _, name in sorted(found, reverse=True)]


def _rows(layers: Layers, packed: Tensor) -> Sequence[np.ndarray]:
    """The values of each known layer, then of each state."""
    statistics = layers.unpacked(packed)
    pairs = zip(statistics.mean, statistics.var, strict=True)
    return [*map(np.concatenate, pairs), *layers.states.unpacked(packed)]


def _norm(values: np.ndarray) -> float:
    return float(np.linalg.norm(values))
