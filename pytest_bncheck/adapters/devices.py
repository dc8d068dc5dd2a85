"""Devices by the names that users type, and the rounding that goes with them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pytest_bncheck.adapters import accelerators
from pytest_bncheck.types import InputError


def pick(wish: str, devices: Sequence[str]) -> str:
    """The device that a user asks for: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, ``auto``.

    A kind of accelerator without a number, and ``auto``, which is the first kind, spread the
    workers of pytest-xdist over all devices of that kind.

    Parameters
    ----------
    wish
        A device; ``gpu``, ``cuda`` and ``rocm`` mean the same.
    devices
        The devices that the framework has, ``cpu`` among them, as the framework names them.

    Raises
    ------
    InputError
        If the machine has no such device.
    """
    name = wish.lower().removeprefix("/").removeprefix("device:")
    if name == "auto":
        name = next(filter(_is_accelerator, map(_kind, devices)), "cpu")
    alike = [] if ":" in name else [each for each in devices if _kind(each) == _kind(name)]
    if alike and _is_accelerator(name):
        worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
        return alike[(int(worker) if worker.isdigit() else 0) % len(alike)]
    for device in devices:
        if _plain(device) == _plain(name):
            return device
    raise InputError(f"device: {wish!r} is not there; this machine has {', '.join(devices)}")


def torch_devices(wish: str = "") -> list[str]:
    """The devices that PyTorch has; `wish` may name one of a kind that it lists nowhere."""
    return ["cpu", *accelerators.devices(wish.lower())]


def _plain(name: str) -> str:
    """One name per device: ``gpu:1`` for ``cuda:1``, ``cpu:0`` for ``cpu``."""
    return f"{_kind(name)}:{name.partition(':')[2] or 0}"


def _kind(name: str) -> str:
    kind = name.partition(":")[0]
    return "gpu" if kind in ("cuda", "rocm") else kind


def _is_accelerator(kind: str) -> bool:
    return kind != "cpu"


def rounding(dtype: str | None, device: str) -> float:
    """Largest relative difference of predictions that another batch size alone makes.

    With room to spare: it is about 1e-6 to 1e-5 in float32 on a CPU; TF32 on a GPU keeps three
    digits, and other accelerators are taken to do so too.

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
