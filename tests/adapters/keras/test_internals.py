"""Names that Keras and its backends do not promise to keep: a missing one is said, once."""

import os
from importlib import import_module
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
keras = pytest.importorskip("keras")

from pytest_bncheck import check
from pytest_bncheck.adapters import versions
from pytest_bncheck.adapters.keras import internals
from pytest_bncheck.adapters.keras.adapter import KerasAdapter
from pytest_bncheck.adapters.keras.backends.base import own_backend
from pytest_bncheck.types import InputError, Recipe

BACKEND = import_module(
    f"{own_backend.__module__.rpartition('.')[0]}.{keras.backend.backend()}_internals"
)


def model() -> Any:
    """A compiled model, whose attributes can all be looked up."""
    made = keras.Sequential([keras.layers.Input((2,)), keras.layers.BatchNormalization()])
    made.compile(loss="mse")
    return made


def test_every_name_is_there():
    assert [path for path in internals.PATHS if versions.find(path) is None] == []
    internals.require(model())
    BACKEND.require()


def without(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, _, name = path.rpartition(".")
    monkeypatch.delattr(versions.find(owner), name)


@pytest.mark.parametrize("path", internals.PATHS)
def test_a_missing_function_is_said(path, monkeypatch):
    made = model()
    without(path, monkeypatch)
    with pytest.raises(InputError) as error:
        check(made, (np.ones((4, 2), "float32"), np.ones((4, 2), "float32")))
    assert str(error.value).startswith(f"Keras {keras.__version__} is not supported by pytest-bnc")
    assert str(error.value).endswith(f"; it lacks {path}.")


@pytest.mark.parametrize("what", internals.ATTRIBUTES)
def test_a_missing_attribute_is_said(what, monkeypatch):
    monkeypatch.setitem(internals.ATTRIBUTES, what, ("_gone", "_gone_too"))
    with pytest.raises(InputError, match=f"it lacks _gone of {what}, _gone_too of {what}\\.$"):
        KerasAdapter(model(), [], Recipe(), None)


@pytest.mark.parametrize("path", BACKEND.PATHS)
def test_a_missing_name_of_the_backend_is_said(path, monkeypatch):
    monkeypatch.setattr(BACKEND, "PATHS", (f"{path}_gone",))
    with pytest.raises(InputError, match=rf"is not supported by .*; it lacks {path}_gone\.$"):
        KerasAdapter(model(), [], Recipe(), None)
