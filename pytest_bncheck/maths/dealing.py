"""Samples dealt anew to batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Indices: TypeAlias = NDArray[np.intp]


def deal(sizes: Sequence[int]) -> list[Indices]:
    """How to deal the samples of some batches anew: for each new batch, which ones it gets.

    The batches keep their sizes and every sample its place in a batch, which can mean something
    to a training step; sample i comes from the batch that is i places further on. So each
    batch takes samples from all of the old ones. A single batch where each held one sample.

    Parameters
    ----------
    sizes
        Samples in each batch; the result counts them through, batch after batch.
    """
    if max(sizes) == 1:
        return [np.arange(len(sizes))]
    starts = np.cumsum([0, *sizes])
    dealt: list[list[int]] = [[] for _ in sizes]
    for place in range(max(sizes)):
        holders = [k for k, size in enumerate(sizes) if size > place]
        for turn, k in enumerate(holders):
            source = holders[(turn + place) % len(holders)]
            dealt[k].append(int(starts[source]) + place)
    return [np.array(part, dtype=np.intp) for part in dealt]
