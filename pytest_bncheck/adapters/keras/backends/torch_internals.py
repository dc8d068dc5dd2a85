"""What Keras does not promise to keep of its torch backend, for `backends.torch` alone."""

from __future__ import annotations

from typing import Any

import keras

from pytest_bncheck.adapters import versions

PATHS = ("keras.src.backend.torch.core.get_device",)

_get_device = versions.find(PATHS[0])


def require() -> None:
    """Refuse a version of Keras that lacks one of the names.

    Raises
    ------
    InputError
        With the names that are missing.
    """
    missing = [path for path in PATHS if versions.find(path) is None]
    versions.require("Keras", keras.__version__, missing)


def buffers_of(module: Any) -> dict[str, Any]:
    """The buffers of a module by name, without those of inner modules."""
    return module._buffers  # type: ignore[no-any-return]


def default_device() -> str:
    """Where Keras would make a variable now."""
    return str(_get_device())
