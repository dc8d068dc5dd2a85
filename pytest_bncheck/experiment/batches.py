"""The batches of a check, taken from a list, a loader or a data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from pytest_bncheck.adapters.loaders import generators_kept
from pytest_bncheck.adapters.random_state import seeded
from pytest_bncheck.errors import InputError

HELD = 32
"""Mini-batches that a check takes and keeps in memory."""


def gather(batch: Any, batches: Iterable[Any] | None, seed: int) -> list[Any]:
    """Take the batches of a check from the user's arguments.

    Parameters
    ----------
    batch, batches
        Exactly one of them; the other is None. Only the first `HELD` of `batches` are used.
    seed
        For loaders that shuffle; every random state, also that of a loader, is as before
        afterwards.

    Returns
    -------
    list
        At least one batch.

    Raises
    ------
    InputError
        If both or none are given, there is no batch, or `batches` cannot be iterated.
    """
    if (batch is None) == (batches is None):
        raise InputError(
            "a check needs either batch=(inputs, targets) or batches=[...]; "
            f"{'neither was' if batch is None else 'both were'} given."
        )
    if batches is None:
        return [batch]
    with seeded(seed), generators_kept(batches):
        gathered = list(islice(_each(batches), HELD))
    if not gathered:
        raise InputError("batches is empty; a check needs at least one batch.")
    if any(item is None for item in gathered):
        raise InputError(
            "batch: it is None; expected (inputs, targets). Does the function that makes it "
            "return it?"
        )
    return gathered


def _each(batches: Any) -> Iterator[Any]:
    if isinstance(batches, (str, bytes, Mapping)) or hasattr(batches, "shape"):
        raise InputError(
            f"batches is of type {type(batches).__name__}; allowed is a list, a loader or another "
            "iterable of batches. For a single batch use batch=, or bncheck_batch."
        )
    if hasattr(batches, "num_batches") and hasattr(batches, "__getitem__"):  # a Keras PyDataset
        count = batches.num_batches
        return (batches[index] for index in range(HELD if count is None else count))
    try:
        iterator: Iterator[Any] = iter(batches)
    except TypeError:
        raise InputError(
            f"batches is of type {type(batches).__name__}; allowed is a list, a loader or another "
            "iterable of batches."
        ) from None
    return iterator
