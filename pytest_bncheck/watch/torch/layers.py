"""Layers that mind the mode, and what their running statistics look like after a step."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pytest_bncheck.adapters.accelerators import device_module
from pytest_bncheck.adapters.torch.data import widest
from pytest_bncheck.adapters.torch.internals import runs_plainly
from pytest_bncheck.adapters.torch.modes import NORMALISATIONS, depends_on_mode

NORMALISATION, DROPOUT = "normalisation", "dropout"

_RANDOM = (nn.RReLU, nn.MultiheadAttention, nn.RNNBase)
_RATES = ("p", "drop_prob", "drop_rate", "dropout")
"""Attributes of layers for random numbers, as libraries call them."""

ENOUGH = 4
"""Steps after which statistics that are still the same never move."""


def kind_of_type(module: nn.Module) -> str | None:
    """What a class's layers do in training mode; None for what does the same in both modes."""
    if isinstance(module, NORMALISATIONS) or has_statistics(module):
        return NORMALISATION
    if isinstance(module, _RANDOM) or "Dropout" in type(module).__name__:
        return DROPOUT
    code = getattr(forward_of(module), "__code__", None)
    reads = code is not None and "training" in code.co_names
    named = any(isinstance(getattr(module, name, None), float) for name in _RATES)
    return DROPOUT if reads and named and not any(module.children()) else None


def has_statistics(module: nn.Module) -> bool:
    """Whether a module is a normalisation that keeps running statistics."""
    mean, var = (getattr(module, name, None) for name in ("running_mean", "running_var"))
    return isinstance(mean, Tensor) and isinstance(var, Tensor)


def minds(module: nn.Module, kind: str) -> bool:
    """Whether this layer does something else in training mode: one with rate 0 does not."""
    if kind == NORMALISATION:
        return has_statistics(module)
    if isinstance(module, _RANDOM) or type(module).__module__.startswith("torch."):
        return depends_on_mode(module)
    return any(_is_positive(getattr(module, name, None)) for name in _RATES)


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


# statistics ---------------------------------------------------------------------------------------


class Fingerprint(NamedTuple):
    """Sums of running statistics, which change with any of them.

    Attributes
    ----------
    mean, var
        Sum of all channels.
    least
        The least variance.
    channels
        How many there are.
    """

    mean: float
    var: float
    least: float
    channels: int

    @property
    def is_initial(self) -> bool:
        """Whether the statistics are those of a new layer."""
        return self.mean == 0.0 and self.var == self.channels and self.least == 1.0

    @property
    def is_valid(self) -> bool:
        """Whether the statistics are finite, and the variances none below zero."""
        return math.isfinite(self.mean) and math.isfinite(self.var) and self.least >= 0.0


@torch.no_grad()
def fingerprint(layer: Any) -> Fingerprint | None:
    """Of a layer's running statistics; taken between the user's calls, never during one."""
    mean, var = layer.running_mean, layer.running_var
    if not var.numel() or var.is_meta or not runs_plainly() or is_captured(var):
        return None
    wide = widest(var.device)
    sums = torch.stack([mean.sum(dtype=wide), var.sum(dtype=wide), var.min().to(wide)])
    first, second, least = sums.tolist()
    return Fingerprint(first, second, least, var.numel())


def is_captured(tensor: Tensor) -> bool:
    """Whether the device records what it is asked to do, for a graph, and cannot be asked."""
    module = device_module(tensor.device.type)
    capturing = getattr(module, "is_current_stream_capturing", None)
    return capturing is not None and bool(capturing())


@torch.no_grad()
def has_finite_weights(layer: nn.Module) -> bool:
    """Whether a layer's own weights are numbers: where they are not, nothing is any more."""
    return all(bool(torch.isfinite(p).all()) for p in layer.parameters(recurse=False))


def updates_as_torch(layer: nn.Module) -> bool:
    """Whether a layer moves its statistics in every call, as those of PyTorch do."""
    return str(getattr(forward_of(layer), "__module__", "")).startswith("torch.")


def forward_of(module: nn.Module) -> Any:
    """The function of a module's class; None of one that was made by TorchScript."""
    return getattr(type(module), "forward", None)
