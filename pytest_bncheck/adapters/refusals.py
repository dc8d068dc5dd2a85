"""Batches that no framework can use, refused with the same words in each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from pytest_bncheck.adapters.hints import kind, seen
from pytest_bncheck.types import InputError
from pytest_bncheck.wording import plural


def refuse_source(batch: Any) -> None:
    """Raise an InputError for what gives batches or samples, handed over as one batch."""
    if not _gives_batches(batch):
        return
    name = kind(batch)
    if _is_of_samples(batch):
        loader = "torch.utils.data.DataLoader(..., batch_size=32)"
        raise InputError(
            f"batch: {name} gives one sample after the other; make batches of them, "
            f"batches={loader}, or override bncheck_batches, for example in conftest.py:\n\n"
            + _BATCHES.format(batches=loader)
        )
    raise InputError(
        f"batch: {name} gives batches and is none itself; pass it as batches=, or override "
        "bncheck_batches in place of bncheck_batch, for example in conftest.py:\n\n"
        + _BATCHES.format(batches="...  # what bncheck_batch returned")
    )


_BATCHES = """\
    @pytest.fixture
    def bncheck_batches():
        return {batches}
"""


def _gives_batches(batch: Any) -> bool:
    known = (Mapping, list, tuple, str, bytes, set, frozenset)
    if isinstance(batch, (*known, type)) or hasattr(batch, "shape"):
        return False
    if dataclasses.is_dataclass(batch) or hasattr(batch, "y"):  # a batch as an object
        return False
    indexed = hasattr(batch, "__len__") and hasattr(batch, "__getitem__")
    return isinstance(batch, Iterable) or indexed


def _is_of_samples(batch: Any) -> bool:
    """Whether it is a data set of PyTorch, which a loader makes batches of."""
    return any(
        (each.__module__, each.__name__) == ("torch.utils.data.dataset", "Dataset")
        for each in type(batch).__mro__
    )


def no_samples(batch: Any) -> InputError:
    """The error for a batch of length zero."""
    return InputError(
        "batch: it holds no sample (its leading axis has length 0); at least one is needed "
        f"({seen(batch)})"
    )


def one_sample(batch: Any) -> InputError:
    """The error for targets that are a single number."""
    return InputError(
        "batch: its targets are a single number, so it seems to be one sample and no batch; "
        f"put samples together along a leading axis ({seen(batch)})"
    )


def not_finite_in(path: str, count: int, total: int) -> str:
    """Where a batch holds NaN or infinity."""
    return f"batch{path} holds NaN or infinity in {count} of {total} places"


def no_such_label(wrong: int, outputs: int) -> str:
    """What is wrong with a class index that has no output."""
    return (
        f"the batch's targets hold the label {wrong}, but the model has "
        f"{plural(outputs, 'output')}: labels from 0 to {max(outputs - 1, 1)} are allowed"
    )


NOTHING_TO_TRAIN = (
    "model: it has no trainable parameter, so it cannot be trained; steps=0 judges it as it is"
)
