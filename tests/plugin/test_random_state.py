"""Random state of Python, numpy and the frameworks, taken and put back."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys

import numpy as np
import pytest

from pytest_bncheck.adapters.random_state import (
    RandomState,
    fingerprint,
    seed_everything,
    seeded,
)


def draw():
    return random.random(), np.random.random(), np.random.standard_normal()


def test_seeds_and_puts_back():
    before = RandomState.capture()
    expected = draw()
    before.restore()
    with seeded(3):
        first = draw()
    assert draw() == expected
    with seeded(3):
        assert draw() == first
    before.restore()
    with pytest.raises(KeyError), seeded(4):  # noqa: PT012
        assert draw() != first
        raise KeyError
    assert draw() == expected


@pytest.mark.parametrize(
    ("moved", "drawn"), [("random", random.random), ("numpy", np.random.standard_normal)]
)
def test_a_fingerprint_tells_which_generator_moved(moved, drawn):
    with seeded(3):
        before = fingerprint()
        assert fingerprint() == before
        drawn()
        now = fingerprint()
    assert [name for name in now if now[name] != before[name]] == [moved]


def test_only_what_is_imported_is_touched():
    code = (
        "import sys; from pytest_bncheck.adapters.random_state import seeded\n"
        "with seeded(1): pass\n"
        "print([m for m in ('numpy', 'torch', 'keras', 'tensorflow') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


SCRIPT = """
import random
from pytest_bncheck.adapters.random_state import RandomState, seed_everything, seeded
{setup}
def draw():
    return {draw}
def same(a, b):
    return all(float(x) == float(y) for x, y in zip(a, b, strict=True))
{start}
before = RandomState.capture()
expected = draw()
before.restore()
with seeded(3):
    first = draw()
assert same(draw(), expected), "not put back"
with seeded(3):
    assert same(draw(), first), "the seed does not decide"
with seeded(4):
    assert not same(draw(), first)
seed_everything(3)
assert same(draw(), first)
"""


@pytest.mark.parametrize("start", ["draw()", "pass"], ids=["used", "fresh"])
@pytest.mark.parametrize(
    ("framework", "setup", "drawing"),
    [
        ("torch", "import torch", "[torch.rand(()), torch.randn(()), random.random()]"),
        (
            "tensorflow",
            "import tensorflow as tf; tf.random.set_seed(5)",
            "[tf.random.uniform(()), tf.random.normal(())]",
        ),
        (
            "keras",
            "import keras",
            "[keras.random.uniform(()), keras.initializers.RandomNormal()(()), random.random()]",
        ),
    ],
    ids=["torch", "tensorflow", "keras"],
)
def test_frameworks(framework, setup, drawing, start):
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")
    code = SCRIPT.format(setup=setup, draw=drawing, start=start)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


def test_numpys_range_of_seeds():
    with seeded(0):
        seed_everything(2**32 - 1)
        assert draw()
