"""Samples of several batches, mixed."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_bncheck.adapters.batches import remix


def mixed(*batches, sizes=None):
    sizes = sizes or [len(batch[0]) for batch in batches]
    return remix(batches, sizes, np.concatenate, lambda leaf, rows: leaf[rows])


def pair(start, size):
    rows = np.arange(start, start + size)
    return rows, np.stack([rows, rows], axis=1)


def test_new_batches_hold_samples_of_every_old_one_with_their_targets():
    new = mixed(pair(0, 3), pair(10, 3))
    assert [size for _, size in new] == [3, 3]
    for (rows, twice), _ in new:
        assert (twice == rows[:, None]).all()
        assert {row // 10 for row in rows} == {0, 1}
    assert sorted(row for (rows, _), _ in new for row in rows) == [0, 1, 2, 10, 11, 12]


@pytest.mark.parametrize(
    "batches",
    [
        (pair(0, 3), (np.arange(3), np.zeros((3, 5)))),  # another shape
        (pair(0, 3), (np.arange(3.0), pair(0, 3)[1])),  # another type
        (pair(0, 3), (np.arange(3),)),  # fewer tensors
        ((np.arange(3), np.zeros((4, 2))), pair(0, 3)),  # not one row per sample
    ],
)
def test_batches_that_do_not_go_together_are_not_mixed(batches):
    assert mixed(*batches, sizes=[3, 3]) == []
