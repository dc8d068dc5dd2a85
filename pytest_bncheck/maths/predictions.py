"""How far two predictions are apart, and how much of training survives in eval mode."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pytest_bncheck.types import Array

FLOOR = 0.1
"""Share of the outputs' own size below which their spread over the batch is not trusted."""


def gap(prediction: Mapping[str, Array], reference: Mapping[str, Array]) -> float | None:
    """The largest `relative_difference` over all outputs; None if they cannot be aligned.

    Outputs are aligned by their path in the output structure and must agree in shape. NaN where
    one holds a value that is not finite and the other does not hold the same.
    """
    if not reference or prediction.keys() != reference.keys():
        return None
    if any(prediction[k].shape != reference[k].shape for k in reference):
        return None
    gaps = [relative_difference(prediction[k], reference[k]) for k in reference]
    return math.nan if any(math.isnan(g) for g in gaps) else max(gaps)


def worst_output(prediction: Mapping[str, Array], reference: Mapping[str, Array]) -> str:
    """Path of the output with the largest `relative_difference`, one that is NaN before all others.

    Both have the same outputs, at least one.
    """

    def size(path: str) -> float:
        apart = relative_difference(prediction[path], reference[path])
        return math.inf if math.isnan(apart) else apart

    return max(reference, key=size)


def relative_difference(prediction: Array, reference: Array) -> float:
    r"""Centred relative L2 difference, >= 0; 0 for equal arrays.

    .. math:: \|y - y_t\| / \max(\|y_t - \bar y_t\|, 0.1\,\|y_t\|)

    with :math:`\bar y_t` the mean over the batch, the leading axis: the difference in units of
    what tells the samples apart. Free of scale, sensitive to shifts; ``1 - gap²`` is the R² of
    eval against training predictions. The second term guards near-constant outputs, and gives
    one sample a yardstick.
    """
    if np.array_equal(prediction, reference, equal_nan=True):
        return 0.0
    with np.errstate(all="ignore"):
        difference = float(np.linalg.norm(prediction - reference))
        spread = float(np.linalg.norm(reference - reference.mean(axis=0, keepdims=True)))
        size = max(spread, FLOOR * float(np.linalg.norm(reference)))
    if not math.isfinite(difference) or not math.isfinite(size):
        return math.nan
    return difference / size if size > 0 else math.inf


def argmax_agreement(
    prediction: Mapping[str, Array], reference: Mapping[str, Array]
) -> float | None:
    """Share of argmax decisions over axis 1 that are equal, in [0, 1]; None if not a classifier.

    Looks at the first output with at least two columns.
    """
    for key, expected in reference.items():
        given = prediction.get(key)
        if given is not None and given.shape == expected.shape and _columns(expected) >= 2:
            return float(np.mean(given.argmax(axis=1) == expected.argmax(axis=1)))
    return None


def finite(prediction: Mapping[str, Array]) -> bool:
    """Whether every output is finite."""
    return all(bool(np.isfinite(output).all()) for output in prediction.values())


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
