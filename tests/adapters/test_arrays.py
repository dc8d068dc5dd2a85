"""Arrays and numbers as users have them."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_bncheck.adapters.arrays import from_numbers, is_numbers, native, refuse_depth
from pytest_bncheck.adapters.batches import like
from pytest_bncheck.adapters.hints import PAGE, seen
from pytest_bncheck.types import InputError

ROWS = np.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize(
    "array",
    [
        ROWS,
        ROWS[:, ::-1],
        ROWS.T,
        np.asfortranarray(ROWS),
        ROWS.astype(">f8"),
        ROWS.astype(">i2"),
        ROWS.astype(np.longdouble),
        ROWS.astype("f2"),
        ROWS > 3,
        np.array(3.0),
        np.ma.masked_array(ROWS),
        np.broadcast_to(ROWS, (2, 3, 4)),
    ],
)
def test_numbers_are_the_same_and_readable(array: Any) -> None:
    made = native(array, "")
    assert type(made) is np.ndarray
    assert np.array_equal(made, array)
    assert made.shape == array.shape
    assert made.dtype.isnative
    assert made.dtype.itemsize <= 8
    assert made.flags.c_contiguous
    assert made.flags.owndata


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (ROWS + 1j, "holds complex numbers"),
        (np.ma.masked_equal(ROWS, 3), "is a masked array"),
        (np.array(["a"]), "an array of words"),
        (np.array([None]), "an array of objects"),
        (np.zeros(3, "M8[s]"), "an array of dates"),
        (np.zeros(3, "V4"), "an array of records"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused_with_its_place(array: Any, message: str) -> None:
    with pytest.raises(InputError, match=rf"^batch\[1\].*{message}"):
        native(array, "[1]")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1, 2.0, True], True),
        ([[1], (2,)], True),
        ((np.float32(1), 2), True),
        ([1j], True),  # to be refused as such
        ([], False),
        ([[]], False),
        ([1, "a"], False),
        ([1, None], False),
        (1, False),
        (namedtuple("Pair", "x y")(1, 2), False),
    ],
)
def test_sequences_of_numbers(value: Any, expected: bool) -> None:
    assert is_numbers(value) is expected


def test_rows_of_different_lengths_are_refused() -> None:
    with pytest.raises(InputError, match=r"batch\['x'\] is a list of numbers whose rows differ"):
        from_numbers([[1, 2], [3]], "['x']")


def test_containers_may_be_wide_and_not_endless() -> None:
    refuse_depth([{"x": [ROWS] * 1000}] * 1000)
    one: list[Any] = []
    other = {"one": one}
    one.append(other)
    for endless in (one, other, (ROWS, one)):
        with pytest.raises(InputError, match="hold themselves"):
            refuse_depth(endless)


class Two(list):  # type: ignore[type-arg]
    def __init__(self, one: Any, other: Any) -> None:
        super().__init__([one, other])
        self.name = "two"


class Three(tuple):  # type: ignore[type-arg]
    def __new__(cls, one: Any, other: Any, third: Any) -> Three:
        return super().__new__(cls, (one, other, third))


def test_containers_keep_their_class() -> None:
    pair = namedtuple("Pair", "x y")
    for container in (Two(1, 2), Three(1, 2, 3), pair(1, 2), [1], (1,)):
        made = like(container, [9] * len(container))
        assert type(made) is type(container)
        assert list(made) == [9] * len(container)
    assert like(Two(1, 2), [3, 4]).name == "two"


def test_an_error_shows_types_and_shapes() -> None:
    batch = {"image": ROWS, "more": [ROWS > 3, None], "rows": [[1, 2]] * 50}
    assert seen(batch) == (
        "batch['image']: float64 (3, 4), batch['more'][0]: bool (3, 4), "
        "batch['more'][1]: None, batch['rows']: a list of 50"
    )
    assert seen([ROWS] * 9).endswith("batch[5]: float64 (3, 4), ...")
    assert seen(()) == "batch: a tuple of 0"


def test_the_page_that_errors_name_is_there() -> None:
    assert "## Five ways out" in (Path(__file__).parents[2] / PAGE).read_text(encoding="utf-8")
