"""A batch for a model that comes with none: its inputs are noise, its targets are made up."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pytest_bncheck.types import InputError

if TYPE_CHECKING:
    from pytest_bncheck.types import Array

SAMPLES = 8
"""Samples of a batch whose size nobody gave."""

SIDES = (64, 32, 28, 96, 128, 224, 256, 299)
"""Heights and widths of pictures that are tried, the usual ones first."""

LENGTHS = (64, 128, 256, 1024, 4096, 16000)
"""Lengths of signals that are tried."""

TOKENS = 16
"""Length of a sequence."""

CLASSES = 4
"""Most classes that targets come from; a net learns so many from noise within a check."""

CODES = 100
"""Integers are below it, so that they fit a byte, and below the rows of the first embedding."""

DTYPES = (
    *("float16", "bfloat16", "float32", "float64"),
    *("bool", "uint8", "int8", "int16", "int32", "int64"),
)
"""Types that an input can be asked for in."""


class Shape(NamedTuple):
    """One input: the name of its type, and its shape with the samples first."""

    dtype: str
    sizes: tuple[int, ...]

    def __str__(self) -> str:
        sizes = "x".join(map(str, self.sizes))
        return sizes if self.dtype == "float32" else f"{self.dtype}:{sizes}"

    @property
    def is_float(self) -> bool:
        """Whether it holds real numbers."""
        return "float" in self.dtype


Shapes = tuple[Shape, ...]
"""All inputs of a model."""


class Invented(NamedTuple):
    """A batch that a model takes.

    Attributes
    ----------
    batch
        Inputs and targets.
    shapes
        The inputs' types and shapes.
    ran
        Whether the model ran to find that out, so that it is no longer as it was made.
    """

    batch: Any
    shapes: Shapes
    ran: bool


def parse(text: str) -> Shapes:
    """The inputs in a text such as ``8x3x64x64`` or ``int64:8x128,8x4``.

    Raises
    ------
    ValueError
        If it is none.
    """
    return tuple(_parse(part.strip()) for part in text.split(","))


def _parse(text: str) -> Shape:
    found = re.fullmatch(r"(?:(\w+):)?(\d+(?:x\d+)*)", text)
    if found is None:
        raise ValueError
    shape = Shape(found[1] or "float32", tuple(int(size) for size in found[2].split("x")))
    if shape.dtype not in DTYPES or 0 in shape.sizes:
        raise ValueError
    return shape


def listed(shapes: Iterable[Shape]) -> str:
    """Inputs as `parse` reads them."""
    return ",".join(map(str, shapes))


def classes(columns: int) -> int:
    """How many classes targets come from, for outputs of so many columns."""
    return min(columns, CLASSES)


def offsets(sizes: Sequence[int]) -> Array:
    """What is added to the noise of each sample: samples of a class share it.

    Nets that average over the pixels of a picture could not tell noise from noise.
    """
    rows = np.arange(sizes[0]) % CLASSES - (CLASSES - 1) / 2
    return rows.astype("float64").reshape(-1, *[1] * (len(sizes) - 1))


def none_found(tried: Sequence[tuple[Shapes, Exception]]) -> InputError:
    """The error where no input was found that the model takes."""
    text = (
        "the model comes with no batch, and no input was found that it takes; say its shape, for "
        "example --bncheck-input 8x3x64x64, several inputs by commas, integers as int64:8x128"
    )
    if tried:
        error = tried[-1][1]
        text += (
            f" (tried: {' and '.join(listed(shapes) for shapes, _ in tried)}; the last one gave "
            f"{reason(error)})"
        )
    return InputError(text)


def does_not_fit(shapes: Shapes, error: Exception) -> InputError:
    """The error where the model does not take the inputs that were asked for."""
    return InputError(
        f"--bncheck-input {listed(shapes)}: the model does not take it; calling the model gave "
        f"{reason(error)}"
    )


def reason(error: Exception) -> str:
    """An exception on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 200 else text[:197] + '...'}"
