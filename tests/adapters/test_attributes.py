"""Plain attributes that an eval pass leaves changed, and which of them matter in training."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest

from pytest_bncheck.adapters.attributes import PlainAttributes


def part(**attributes):
    return SimpleNamespace(**attributes)


def test_only_plain_attributes_with_another_value_are_changed():
    one, two = (
        part(rate=0.5, name="a", weights=[1], nothing=None),
        part(bad=math.nan, training=True),
    )
    attributes = PlainAttributes([(one, "one"), (two, "")], without={"training"})
    assert attributes.changed() == {}
    one.rate, one.weights, two.training, one.new = 0.1, [2], False, 3
    assert attributes.changed() == {(0, "rate"): 0.1}
    del one.rate
    assert attributes.changed() == {}


def test_a_number_of_another_type_is_another_value():
    owner = part(flag=1)
    attributes = PlainAttributes([(owner, "")])
    owner.flag = True
    assert attributes.changed() == {(0, "flag"): True}


def test_attributes_are_as_before_for_a_while():
    owner = part(rate=0.5)
    attributes = PlainAttributes([(owner, "")])
    owner.rate = 0.1
    with pytest.raises(KeyError), attributes.as_before():  # noqa: PT012
        assert owner.rate == 0.5
        raise KeyError
    assert owner.rate == 0.1


def outputs(compute):
    return lambda: {"output": np.array([[compute()], [1.0]])}


def test_what_matters_alone_is_named_alone():
    layer, model = part(scale=1.0, count=0), part(count=0)
    attributes = PlainAttributes([(model, ""), (layer, "block.layer")])
    layer.scale, layer.count, model.count = 3.0, 7, 7

    assert attributes.sticky(outputs(lambda: layer.scale), 1e-4) == ["block.layer.scale"]
    assert (layer.scale, layer.count, model.count) == (3.0, 7, 7)


def test_what_matters_only_together_is_named_together():
    model = part(a=False, b=False)
    attributes = PlainAttributes([(model, "")])
    model.a = model.b = True

    assert attributes.sticky(outputs(lambda: float(model.a and model.b)), 1e-4) == ["a", "b"]


def test_what_only_counts_does_not_matter():
    model = part(count=0)
    attributes = PlainAttributes([(model, "")])
    model.count = 1

    def forward():
        model.count += 1
        return random.random()

    state = random.getstate()
    assert attributes.sticky(outputs(forward), 1e-4) == []
    assert random.getstate() == state, "each pass draws the same numbers"
    assert model.count == 1
