"""Random graphs of objects, changed at random, are put back bit for bit."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from random_graphs import trial
from torch_graphs import KINDS, remembered


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_whatever_changes_in_a_random_graph_goes_back(first):
    for seed in range(first, first + 20):
        before, changed, after = trial(seed, KINDS, remembered)
        assert changed != before, seed
        assert after == before, seed
