"""How far two predictions are apart, and how much of training survives in eval mode."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_bncheck.types import Array

FLOOR = 0.1
"""Share of the outputs' own size below which their spread over the batch is not trusted."""


class Pair(NamedTuple):
    """One output in two predictions: its path in the first, and its values in both."""

    path: str
    prediction: Array
    reference: Array

    @property
    def apart(self) -> float:
        """See `relative_difference`."""
        return relative_difference(self.prediction, self.reference)


def aligned(prediction: Mapping[str, Array], reference: Mapping[str, Array]) -> list[Pair]:
    """The outputs that two predictions share.

    These have the same path and shape in both. Of entries of one list all have to: those that vary
    with what was predicted, as boxes do, are alike by chance only. Where one prediction is a single
    output, as a tensor in one mode and a tuple in the other, it is compared with the first output
    of its shape.
    """
    both = [path for path in prediction if path in reference]
    vary = {_entry(path) for path in both if prediction[path].shape != reference[path].shape}
    vary |= _ragged(prediction) | _ragged(reference)
    same = [
        Pair(path, prediction[path], reference[path]) for path in both if _entry(path) not in vary
    ]
    if same or 1 not in (len(prediction), len(reference)) or prediction.keys() & reference.keys():
        return same
    pairs = (Pair(path, p, r) for path, p in prediction.items() for r in reference.values())
    return [pair for pair in pairs if pair.prediction.shape == pair.reference.shape][:1]


def _entry(path: str) -> str:
    """A path without the places in lists: the same for all entries of a list."""
    return re.sub(r"\d+", "#", path)


def _ragged(outputs: Mapping[str, Array]) -> set[str]:
    """Lists whose entries have different numbers of rows."""
    rows: dict[str, set[int]] = {}
    for path, values in outputs.items():
        rows.setdefault(_entry(path), set()).add(len(values) if values.ndim else 0)
    return {entry for entry, found in rows.items() if len(found) > 1}


def gap(prediction: Mapping[str, Array], reference: Mapping[str, Array]) -> float | None:
    """The largest `relative_difference` over all `aligned` outputs; None if there are none.

    NaN where one holds a value that is not finite and the other a finite one.
    """
    gaps = [pair.apart for pair in aligned(prediction, reference)]
    return math.nan if any(map(math.isnan, gaps)) else max(gaps, default=None)


def worst_pair(prediction: Mapping[str, Array], reference: Mapping[str, Array]) -> Pair | None:
    """The aligned outputs that are furthest apart, NaN before all others; None without any."""

    def size(pair: Pair) -> float:
        return math.inf if math.isnan(pair.apart) else pair.apart

    return max(aligned(prediction, reference), key=size, default=None)


def relative_difference(prediction: Array, reference: Array) -> float:
    r"""Centred relative L2 difference, >= 0; 0 for equal arrays.

    .. math:: \|y - y_t\| / \max(\|y_t - \bar y_t\|, 0.1\,\|y_t\|)

    with :math:`\bar y_t` the mean over the batch, the leading axis: the difference in units of
    what tells the samples apart. Free of scale, sensitive to shifts; ``1 - gap²`` is the R² of
    eval against training predictions. The second term guards near-constant outputs, and gives
    one sample a yardstick.

    Entries that are finite in neither are left out, as masks of NaN or -inf are; NaN where an
    entry is finite in only one of the two.
    """
    known = np.isfinite(reference)
    if not np.array_equal(known, np.isfinite(prediction)):
        return math.nan
    with np.errstate(all="ignore"):
        counts = np.maximum(known.sum(axis=0, keepdims=True), 1)
        values = np.where(known, reference, 0.0)
        mean = values.sum(axis=0, keepdims=True) / counts
        difference = float(np.linalg.norm(np.where(known, prediction - reference, 0.0)))
        spread = float(np.linalg.norm(np.where(known, values - mean, 0.0)))
        size = max(spread, FLOOR * float(np.linalg.norm(values)))
    if difference == 0.0:
        return 0.0
    if not math.isfinite(difference) or not math.isfinite(size):
        return math.nan
    return difference / size if size > 0 else math.inf


def argmax_agreement(
    prediction: Mapping[str, Array], reference: Mapping[str, Array]
) -> float | None:
    """Share of argmax decisions over axis 1 that are equal, in [0, 1]; None if not a classifier.

    Looks at the first output with at least two columns. What is NaN is no candidate.
    """
    for pair in aligned(prediction, reference):
        if _columns(pair.reference) >= 2:
            return float(np.mean(_decisions(pair.prediction) == _decisions(pair.reference)))
    return None


def _decisions(output: Array) -> NDArray[np.intp]:
    decisions: NDArray[np.intp] = np.where(np.isnan(output), -np.inf, output).argmax(axis=1)
    return decisions


def finite(prediction: Mapping[str, Array], reference: Mapping[str, Array]) -> bool:
    """Whether every output is finite wherever the reference is.

    An output that cannot be aligned has to be finite throughout.
    """
    expected = {pair.path: np.isfinite(pair.reference) for pair in aligned(prediction, reference)}
    return all(
        bool((np.isfinite(output) | ~expected.get(path, np.True_)).all())
        for path, output in prediction.items()
    )


def retained(
    first: float | None, constant: float | None, train: float | None, other: float | None
) -> float | None:
    r"""Share of what training achieved that another mode keeps: 1 all, <= 0 nothing.

    .. math:: (L_{base} - L_{other}) / (L_{base} - L_{train})

    :math:`L_{base}` is the smaller of the first training loss and the loss of the constant mean
    prediction, where the latter leaves at least a tenth of the progress; else the first loss.
    None where training achieved nothing (see `achieved`) or a loss is missing or not finite.
    """
    if first is None or train is None or other is None or not achieved(first, train):
        return None
    base = first
    if constant is not None and constant - train >= 0.1 * (first - train):
        base = min(constant, first)
    value = (base - other) / (base - train)
    return value if math.isfinite(value) else None


def achieved(first: float | None, train: float | None) -> bool:
    """Whether the loss fell by more than a tenth of its first value; False if not finite."""
    if first is None or train is None or not (math.isfinite(first) and math.isfinite(train)):
        return False
    return first - train > 0.1 * abs(first)


def _columns(output: Array) -> int:
    return output.shape[1] if output.ndim >= 2 else 0
