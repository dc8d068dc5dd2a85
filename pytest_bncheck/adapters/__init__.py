"""Finding the adapter of a model.

A framework is looked at only if the program has imported it already: whoever has a model of a
framework has imported that framework.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module, metadata
from typing import Any

from pytest_bncheck.adapters.base import Adapter
from pytest_bncheck.types import InputError

GROUP = "pytest_bncheck_adapters"

# Keras first: on its torch backend a Keras model is also a torch.nn.Module, and so is a program.
_BUILT_IN = (
    ("keras", "keras.adapter", "KerasAdapter"),
    ("torch", "torch.program", "TorchProgramAdapter"),
    ("torch", "torch.adapter", "TorchAdapter"),
)
"""Framework, module and class of each adapter."""


def find(model: Any) -> type[Adapter]:
    """The adapter class for `model`.

    Raises
    ------
    InputError
        If no adapter takes the model.
    """
    return require(search(model), model)


def search(model: Any) -> type[Adapter] | None:
    """The adapter class for `model`, other packages' first, or None."""
    for finder in _entry_points():
        adapter = finder(model)
        if adapter is not None:
            return adapter
    for framework, module, name in _BUILT_IN:
        if framework in sys.modules:
            adapter = getattr(import_module(f"{__name__}.{module}"), name)
            if adapter.accepts(model):
                return adapter  # type: ignore[no-any-return]
    return None


def require(adapter: Any, model: Any) -> type[Adapter]:
    """`adapter` if it is an adapter class; otherwise an error that says what is wrong.

    Raises
    ------
    InputError
        If there is no adapter, or an object that is not one.
    """
    if isinstance(adapter, type) and issubclass(adapter, Adapter):
        return adapter
    if adapter is not None:
        raise InputError(
            f"{GROUP} must return a subclass of pytest_bncheck.adapters.base.Adapter or None, "
            f"not {adapter!r}."
        )
    if model is None:
        raise InputError("the model is None; does the function that makes it return it?")
    if isinstance(model, type):
        raise InputError(f"the model is the class {_name(model)}; pass an instance of it.")
    if any(kind.__module__.split(".")[0] == "tf_keras" for kind in type(model).__mro__):
        raise InputError(
            f"cannot check {_name(type(model))}: it is a model of tf_keras, the legacy Keras 2; "
            "build it with Keras 3 (import keras, without TF_USE_LEGACY_KERAS=1)."
        )
    raise InputError(
        f"cannot check a model of type {_name(type(model))}; supported are torch.nn.Module, "
        f"keras.Model and what an installed package or a conftest.py adds with {GROUP}."
    )


@cache
def _entry_points() -> tuple[Callable[[Any], type[Adapter] | None], ...]:
    finders = []
    for entry_point in metadata.entry_points(group=GROUP):
        try:
            finders.append(entry_point.load())
        except Exception as error:
            raise InputError(
                f"the adapter {entry_point.value} could not be loaded: "
                f"{type(error).__name__}: {error}"
            ) from error
    return tuple(finders)


def _name(kind: type) -> str:
    home = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return home + kind.__qualname__
