"""Tests marked `device` run once more on another device, in a process of its own.

    BNCHECK_DEVICE=standin python -m pytest tests/adapters/torch

runs those alone; what they check is moved to that device, as by the option `device`. Any device of
the framework can be named; ``standin`` needs no hardware, and ``cpu:1`` is half of the CPU in
TensorFlow and JAX.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DEVICE = os.environ.get("BNCHECK_DEVICE", "")
IS_EXACT = DEVICE.startswith(("standin", "cpu"))
"""Whether it computes as the CPU does, bit for bit."""
NEVER = ("only", "no device")
"""Arguments of a mark for tests that make no sense on this backend."""
ROOT = Path(__file__).parents[2]
HALVES = "--xla_force_host_platform_device_count=2"


def run_on(device: str, *paths: str) -> str:
    """Run the tests marked `device` there; what pytest prints of them."""
    environment = {**os.environ, "BNCHECK_DEVICE": device, "XLA_FLAGS": HALVES}
    environment.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def runs(mark: pytest.Mark | None) -> bool:
    """Whether a test runs in this process.

    A mark may say ``"only"``, for tests that make sense on another device only, and then the name
    of the device.
    """
    only, device = (*(mark.args if mark else ()), "", "")[:2]
    return DEVICE.startswith(device) and mark is not None if DEVICE else not only


def prepare() -> None:
    """Make the device, before a framework computes anything."""
    if DEVICE.startswith("standin"):
        import standin

        standin.start()
        if os.environ["KERAS_BACKEND"] == "torch":
            standin.serve_keras()
    if DEVICE == "cpu:1" and os.environ["KERAS_BACKEND"] == "tensorflow":
        import tensorflow as tf

        half = tf.config.LogicalDeviceConfiguration()
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [half, half])


def generator_on(device: str) -> Any:
    """A generator of random numbers of PyTorch's."""
    if device.startswith("standin"):
        import standin

        return standin.generator(device)
    return sys.modules["torch"].Generator(device)


def becomes_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every check that names no device is on this one."""
    cores = [("adapters.torch.core", "TorchCore"), ("adapters.keras.core", "KerasCore")]
    for module, name in cores:
        core = getattr(sys.modules.get(f"pytest_bncheck.{module}"), name, None)
        if core is not None:
            monkeypatch.setattr(core, "__init__", _on_device(core.__init__))


def _on_device(original: Any) -> Any:
    def init(self: Any, model: Any, batches: Any, recipe: Any, device: str | None) -> None:
        original(self, model, batches, recipe, device or DEVICE)

    return init
