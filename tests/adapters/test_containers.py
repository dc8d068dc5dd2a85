"""Containers of the user's code, put back with the same members."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque

import pytest

from pytest_bncheck.adapters.containers import container_type, holds, members_of, refill


class Guarded(dict):
    """Refuses what goes through its own methods."""

    def update(self, *args, **kwargs):
        raise AssertionError

    clear = update


@pytest.mark.parametrize(
    ("container", "plain"),
    [
        ([1, "a"], list),
        ({"a": 1, "b": None}, dict),
        ({1, 2}, set),
        (deque([1, 2], maxlen=4), deque),
        (OrderedDict(a=1, b=2), OrderedDict),
        (defaultdict(list, a=[1]), dict),
        (Guarded(a=1), dict),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_container_gets_its_members_back(container, plain):
    before, wanted = container.copy(), members_of(container)
    assert container_type(container) is plain
    assert holds(container, wanted)
    plain.clear(container)
    assert not holds(container, wanted)
    refill(container, wanted)
    assert holds(container, wanted)
    assert container == before


def test_an_equal_member_is_not_the_same():
    one, other = [1], [1]
    container = {"a": one}
    wanted = members_of(container)
    container["a"] = other
    assert not holds(container, wanted)
    refill(container, wanted)
    assert container["a"] is one


@pytest.mark.parametrize("value", [None, (1, 2), "text", frozenset({1}), 3])
def test_what_cannot_change_is_no_container(value):
    assert container_type(value) is None
