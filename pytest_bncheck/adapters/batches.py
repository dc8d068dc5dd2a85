"""Batches whose samples are mixed, whatever the framework."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pytest_bncheck.maths.dealing import deal

if TYPE_CHECKING:
    from pytest_bncheck.maths.dealing import Indices


def remix(
    leaves: Sequence[Sequence[Any]],
    sizes: Sequence[int],
    cat: Callable[[list[Any]], Any],
    take: Callable[[Any, Indices], Any],
) -> list[tuple[list[Any], int]]:
    """Mix the samples of several batches; each new batch takes some from every old one.

    Parameters
    ----------
    leaves
        The tensors of each batch, in the same order, each with a leading axis.
    sizes
        Samples in each batch.
    cat
        Joins tensors along their leading axis.
    take
        The rows of a tensor with these indices.

    Returns
    -------
    list of pairs
        For each new batch its tensors and its number of samples; see `deal`. Empty if a tensor
        does not have one row per sample, or the batches differ in shape or dtype.
    """
    rows = [(leaf, size) for own, size in zip(leaves, sizes, strict=True) for leaf in own]
    kinds = {tuple((tuple(leaf.shape[1:]), leaf.dtype) for leaf in own) for own in leaves}
    if len(kinds) != 1 or any(leaf.shape[0] != size for leaf, size in rows):
        return []
    joined = [cat(list(same)) for same in zip(*leaves, strict=True)]
    return [([take(leaf, part) for leaf in joined], len(part)) for part in deal(sizes)]
