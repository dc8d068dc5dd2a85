"""PyTorch's generator and the settings that it keeps for the whole process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from clauses import Clause


def cudnn(_: object) -> tuple[bool, ...]:
    flags = torch.backends.cudnn
    return flags.enabled, flags.benchmark, flags.deterministic


SWITCHES = {
    "random state of torch": Clause(
        lambda _: torch.get_rng_state().numpy().tobytes(), lambda _: torch.rand(1)
    ),
    "grad mode": Clause(
        lambda _: (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        lambda _: torch.set_grad_enabled(False),
    ),
    "anomaly detection": Clause(
        lambda _: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda _: torch.autograd.set_detect_anomaly(True, check_nan=False),
    ),
    "determinism": Clause(
        lambda _: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        lambda _: torch.use_deterministic_algorithms(True, warn_only=True),
    ),
    "flags of cuDNN": Clause(cudnn, lambda _: setattr(torch.backends.cudnn, "benchmark", True)),
    "autocast": Clause(
        lambda _: [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")],
        lambda _: torch.set_autocast_enabled("cpu", True),
    ),
    "precision of products": Clause(
        lambda _: torch.get_float32_matmul_precision(),
        lambda _: torch.set_float32_matmul_precision("medium"),
    ),
    "default dtype": Clause(
        lambda _: torch.get_default_dtype(), lambda _: torch.set_default_dtype(torch.float64)
    ),
    "default device": Clause(
        lambda _: getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None),
        lambda _: torch.set_default_device("meta"),
    ),
    "number of threads": Clause(
        lambda _: torch.get_num_threads(),
        lambda _: torch.set_num_threads(torch.get_num_threads() + 1),
        undone=False,
    ),
}


@contextmanager
def switches_kept() -> Iterator[None]:
    """A switch that a test moves, or a check loses, is no fault of the next tests."""
    threads = torch.get_num_threads()
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    torch.use_deterministic_algorithms(False)
    torch.autograd.set_detect_anomaly(False)
    torch.set_float32_matmul_precision("highest")
    torch.set_autocast_enabled("cpu", False)
    torch.backends.cudnn.benchmark = False
    torch.set_num_threads(threads)
