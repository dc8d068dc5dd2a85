"""Arrays and numbers as users have them, before a framework makes tensors of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_bncheck.types import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEPTH = 100
"""Most levels of containers in a batch."""

_KINDS = {
    "O": "objects",
    "S": "words",
    "U": "words",
    "M": "dates",
    "m": "spans of time",
    "V": "records",
}


def native(array: NDArray[Any], path: str) -> NDArray[Any]:
    """A copy that every framework can read: numbers in the machine's byte order, end to end.

    Parameters
    ----------
    path
        Where in the batch it is, for the error.

    Raises
    ------
    InputError
        If it holds no real numbers, or hides some of them.
    """
    if np.ma.is_masked(array):
        raise InputError(
            f"batch{path} is a masked array, and a tensor has no mask: the numbers behind it would "
            "be trained on. Pass the numbers (array.filled(0)) and the mask (array.mask) as two "
            "arrays"
        )
    refuse_kind(array.dtype, path)
    whole = np.array(np.ma.getdata(array), order="C")
    if whole.dtype.kind == "f" and whole.dtype.itemsize > 8:  # extended precision
        return whole.astype(np.float64)
    return whole.astype(whole.dtype.newbyteorder("="), copy=False)


def refuse_kind(dtype: np.dtype[Any], path: str) -> None:
    """Raise an InputError if numbers of this type are no real ones."""
    if dtype.kind == "c":
        raise complex_numbers(path, str(dtype))
    # Types of other packages, such as bfloat16, call themselves records too.
    if dtype.kind in _KINDS and (dtype.kind != "V" or issubclass(dtype.type, np.void)):
        raise InputError(
            f"batch{path} is an array of {_KINDS[dtype.kind]} (dtype {dtype}), which cannot become "
            "a tensor"
        )


def complex_numbers(path: str, dtype: str) -> InputError:
    """The error for complex numbers, of which a layer would keep the real part alone."""
    return InputError(
        f"batch{path} holds complex numbers ({dtype}), of which layers of real numbers would keep "
        "the real part alone; pass real and imaginary parts as numbers of their own"
    )


def from_numbers(value: Any, path: str) -> NDArray[Any]:
    """The array of a sequence of numbers, however nested.

    Raises
    ------
    InputError
        If its rows differ in length.
    """
    try:
        array = np.array(value)
    except ValueError:
        raise InputError(
            f"batch{path} is a {type(value).__name__} of numbers whose rows differ in length; "
            "make them equally long, for example by padding"
        ) from None
    return native(array, path)


def is_numbers(value: Any) -> bool:
    """Whether a list or tuple holds nothing but Python's and NumPy's numbers, however nested."""
    if isinstance(value, (list, tuple)):
        return bool(value) and not hasattr(value, "_fields") and all(map(_is_number_or_row, value))
    return False


def _is_number_or_row(value: Any) -> bool:
    return isinstance(value, (bool, int, float, complex, np.number)) or is_numbers(value)


def refuse_depth(batch: Any, name: str = "batch") -> None:
    """Raise an InputError if containers hold themselves, or more levels than anybody writes."""
    level = [batch]
    for _ in range(DEPTH):
        # One of equal ones is enough, and those that hold each other would never end.
        level = list({id(item): item for each in level for item in _items(each)}.values())
        if not level:
            return
    raise InputError(
        f"{name}: its containers hold themselves, or more than {DEPTH} levels of others"
    )


def _items(value: Any) -> Iterator[Any]:
    """The containers in a container."""
    items = value.values() if isinstance(value, Mapping) else value
    if isinstance(value, (Mapping, list, tuple)):
        yield from (item for item in items if isinstance(item, (Mapping, list, tuple)))
