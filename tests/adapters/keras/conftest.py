"""What the tests of the Keras adapter start from."""

from __future__ import annotations

import pytest


@pytest.fixture
def clean():
    """The same seed before each test, and no adapter left unrestored after it."""
    import keras

    from keras_adapter import labs

    keras.utils.set_random_seed(1)
    labs.clear()
    yield
    for lab in reversed(labs):  # a failed test leaves its adapter unrestored
        lab.restore()
