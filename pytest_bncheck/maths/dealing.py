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

    Each takes samples from all of the old ones. As many batches as before, but a single one where
    each held one sample.

    Parameters
    ----------
    sizes
        Samples in each batch; the result counts them through, batch after batch.
    """
    turns = sorted((place, k) for k, size in enumerate(sizes) for place in range(size))
    starts = np.cumsum([0, *sizes])
    order = np.array([starts[k] + place for place, k in turns])
    return np.array_split(order, len(sizes) if max(sizes) > 1 else 1)
