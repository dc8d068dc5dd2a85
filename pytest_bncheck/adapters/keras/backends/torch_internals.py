"""What Keras does not promise to keep of its torch backend, for `backends.torch` alone."""

from __future__ import annotations

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


def default_device() -> str:
    """Where Keras would make a variable now."""
    return str(_get_device())
