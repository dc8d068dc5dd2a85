"""A user's forward that asks for the mode of each pass."""

from __future__ import annotations

import functools

import pytest

from pytest_bncheck.adapters.signatures import forwarded, takes_training


def plain(model, batch):
    return model, batch, None


def third(model, batch, mode):
    return model, batch, mode


def named(model, batch, *, training=False):
    return model, batch, training


@pytest.mark.parametrize(
    ("forward", "asks"),
    [
        (plain, False),
        (third, True),
        (named, True),
        (lambda m, b, head=3: (m, b, None), False),  # what it closes over
        (functools.partial(third, mode=4), False),
        (functools.partial(plain), False),
        (max, False),  # no signature to read
    ],
)
def test_who_asks_for_the_mode(forward, asks):
    assert takes_training(forward) is asks


@pytest.mark.parametrize("forward", [third, named])
@pytest.mark.parametrize("training", [True, False])
def test_who_asks_is_told(forward, training):
    assert forwarded(forward, "model", "batch", training=training) == ("model", "batch", training)


def test_nobody_else_is_told():
    assert forwarded(plain, "model", "batch", training=True) == ("model", "batch", None)
