"""Random graphs of objects, changed at random, are put back bit for bit."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from random_graphs import World
from torch_graphs import KINDS, remembered


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_whatever_changes_in_a_random_graph_goes_back(first):
    for seed in range(first, first + 20):
        world = World(seed, KINDS)
        before = world.read()
        put_back = remembered(world.root)
        world.change()
        assert world.read() != before, seed
        put_back()
        assert world.read() == before, seed
