"""Devices by the names that users type, and the rounding that goes with them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from pytest_bncheck.types import InputError


def pick(wish: str, devices: Sequence[str]) -> str:
    """The device that a user asks for: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, ``auto``.

    ``cuda`` and ``auto`` spread the workers of pytest-xdist over all GPUs.

    Parameters
    ----------
    wish
        A device; ``gpu`` and ``cuda`` mean the same.
    devices
        The devices that the framework has, ``cpu`` among them, as the framework names them.

    Raises
    ------
    InputError
        If the machine has no such device.
    """
    spread = [name for name in devices if _kind(name) == "gpu"]
    name = wish.lower().removeprefix("/").removeprefix("device:")
    if name == "auto":
        name = "cuda" if spread else devices[-1]
    if name in ("cuda", "gpu") and spread:
        worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
        name = spread[(int(worker) if worker.isdigit() else 0) % len(spread)]
    for device in devices:
        if _plain(device) == _plain(name):
            return device
    raise InputError(f"device: {wish!r} is not there; this machine has {', '.join(devices)}")


def torch_devices() -> list[str]:
    """The devices that PyTorch has."""
    torch: Any = sys.modules["torch"]
    found = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
    return [*found, "mps"] if torch.backends.mps.is_available() else found


def _plain(name: str) -> str:
    """One name per device: ``gpu:1`` for ``cuda:1``, ``cpu:0`` for ``cpu``."""
    kind, _, index = name.partition(":")
    return f"{_kind(kind)}:{index or 0}"


def _kind(name: str) -> str:
    kind = name.partition(":")[0]
    return "gpu" if kind == "cuda" else kind


def rounding(dtype: str | None, device: str) -> float:
    """Largest relative difference of predictions that another batch size alone makes.

    With room to spare: it is about 1e-6 to 1e-5 in float32 on a CPU; TF32 on a GPU keeps three
    digits.

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
