"""Devices by the names that users type, and the rounding that goes with them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from pytest_bncheck.types import InputError


def pick(wish: str, there: Sequence[str]) -> str:
    """The device that a user asks for: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, ``auto``.

    ``cuda`` and ``auto`` spread the workers of pytest-xdist over all GPUs.

    Parameters
    ----------
    wish
        A device; ``gpu`` and ``cuda`` mean the same.
    there
        The devices that the framework has, ``cpu`` among them, in the framework's own words.

    Raises
    ------
    InputError
        If it is not there.
    """
    spread = [name for name in there if _kind(name) == "gpu"]
    name = wish.lower().removeprefix("/").removeprefix("device:")
    if name == "auto":
        name = "cuda" if spread else there[-1]
    if name in ("cuda", "gpu") and spread:
        worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
        name = spread[(int(worker) if worker.isdigit() else 0) % len(spread)]
    for device in there:
        if _plain(device) == _plain(name):
            return device
    raise InputError(f"device: {wish!r} is not there; this machine has {', '.join(there)}")


def torch_devices() -> list[str]:
    """The devices that PyTorch has."""
    torch: Any = sys.modules["torch"]
    found = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
    return [*found, "mps"] if torch.backends.mps.is_available() else found


def _plain(name: str) -> str:
    """Names for the same device as one: ``cuda:1`` and ``gpu:1``, ``cpu`` and ``cpu:0``."""
    kind, _, index = name.partition(":")
    return f"{_kind(kind)}:{index or 0}"


def _kind(name: str) -> str:
    kind = name.partition(":")[0]
    return "gpu" if kind == "cuda" else kind


def rounding(dtype: str | None, device: str) -> float:
    """The relative difference that another batch size alone makes, with room to spare.

    About 1e-6 to 1e-5 in float32 on a CPU; TF32 on a GPU keeps three digits.

    Parameters
    ----------
    dtype
        Name of the type in which the model computes.
    device
        Name of the device.
    """
    if dtype in ("float16", "bfloat16"):
        return 5e-2
    exact = dtype == "float64" or device.partition(":")[0] == "cpu"
    return 1e-4 if exact else 1e-2
