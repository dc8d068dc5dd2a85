"""What JAX does not promise to keep, for `backends.jax` alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax

from pytest_bncheck.adapters import versions

Tensor: TypeAlias = Any

PATHS = (
    "jax.core.Tracer",
    "jax.core.Tracer.to_concrete_value",
    "jax.config.jax_default_device",
    "jax.config.values",
    "jax.Array.committed",
)

_Tracer = versions.find(PATHS[0])

QUICK_TO_COMPILE: dict[str, Any] = {"xla_backend_optimization_level": 0}
"""Compiles twice as fast what runs half as fast, with the same numbers."""


def require() -> None:
    """Refuse a version of JAX that lacks one of the names.

    Raises
    ------
    InputError
        With the names that are missing.
    """
    missing = [path for path in PATHS if not _is_there(path)]
    versions.require("JAX", jax.__version__, missing)


def _is_there(path: str) -> bool:
    # A setting can be None, so that its value says nothing.
    owner, _, name = path.rpartition(".")
    return hasattr(versions.find(owner), name)


_Ref = versions.find("jax.Ref")


def is_ref(item: object) -> bool:
    """Whether an object is an array that changes in place, which newer versions have."""
    return _Ref is not None and isinstance(item, _Ref) and not isinstance(item, _Tracer)


def is_traced(tensor: Tensor) -> bool:
    """Whether this is a place in a trace instead of an array."""
    return isinstance(tensor, _Tracer)


def concrete(tensor: Tensor) -> Tensor | None:
    """The array behind a place in a trace, None where there is none yet."""
    return tensor.to_concrete_value()


def is_committed(array: Tensor) -> bool:
    """Whether the array was put on its device on purpose."""
    return bool(array.committed)


def default_device() -> Any:
    """The device that the user chose for new arrays, or None."""
    return jax.config.jax_default_device


def jit_is_off() -> bool:
    """Whether `jax.disable_jit` makes everything run eagerly, under which nothing is compiled."""
    return bool(jax.config.jax_disable_jit)


def remember_settings() -> Callable[[], None]:
    """Remember the settings of the whole process; returns the way back."""
    before = dict(jax.config.values)

    def back() -> None:
        for name, value in before.items():
            if jax.config.values[name] != value:
                jax.config.update(name, value)

    return back
