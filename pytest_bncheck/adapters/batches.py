"""Batches whose samples are mixed, whatever the framework."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pytest_bncheck.maths.dealing import deal

if TYPE_CHECKING:
    from pytest_bncheck.maths.dealing import Indices


def like(container: Any, items: Sequence[Any]) -> Any:
    """A list or tuple of the same class with other items, even if its constructor takes others."""
    kind = type(container)
    if hasattr(container, "_make"):
        return container._make(items)
    if isinstance(container, list) and kind is not list:
        other = copy.copy(container)
        list.__setitem__(other, slice(None), items)
        return other
    try:
        return kind(items)
    except Exception:  # a constructor of another form
        return tuple.__new__(kind, items)


def axis_of_samples(shape: Sequence[int], sizes: Sequence[int]) -> int | None:
    """The axis of an output that holds the samples; None where none can be told.

    Parameters
    ----------
    sizes
        Numbers of samples, first the batch's, then that of the targets where it is another. Without
        any the first axis holds them.
    """
    if not sizes:
        return 0
    leading = [0 for size in sizes if shape[0] == size]
    others = [axis for size in sizes for axis, length in enumerate(shape) if length == size]
    return next(iter(leading + others), None)


def name_of_output(path: str, shape: Sequence[int], axis: int | None) -> str:
    """The path of an output; with the shape of a row where it has no axis of samples."""
    row = ", ".join(map(str, shape[1:]))
    return f"{path} (*, {row})" if axis is None and row else path


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
