"""The modes of a PyTorch model's modules: which depend on it, and in which one they ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pytest_bncheck.adapters.references import package_of

NORMALISATIONS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip
_DROPOUTS = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout
)  # fmt: skip

_LIBRARIES = ("torch", "torchvision", "timm", "transformers", "torchmetrics")
"""Packages whose layers are library layers on the training path."""


def depends_on_mode(module: nn.Module) -> bool:
    """Whether a module computes something else in training mode than in eval mode.

    Layers of PyTorch are known; any other module does if its `forward` reads `training`.
    """
    if isinstance(module, (*NORMALISATIONS, nn.RReLU)):
        return True
    if isinstance(module, _DROPOUTS):
        return bool(module.p > 0)
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.dropout > 0)
    if isinstance(module, nn.RNNBase):
        return bool(module.dropout > 0) and module.num_layers > 1
    if package_of(module) == "torch":
        return False
    code = getattr(type(module).forward, "__code__", None)
    return code is not None and "training" in code.co_names


class Watch:
    """Records which modules ran in which mode, by one hook on all modules.

    Attributes
    ----------
    training, inference
        Modules that ran in this mode, in the order of their first call.
    order
        All of them in that order.
    learning, taught
        Those that ran in inference mode, and in training mode, with gradients on.
    calls
        How often each ran in training mode.
    low_precision
        The 16-bit type in which some module got its input, or None.
    """

    def __init__(self) -> None:
        self.training: dict[nn.Module, None] = {}
        self.inference: dict[nn.Module, None] = {}
        self.order: dict[nn.Module, None] = {}
        self.learning: dict[nn.Module, None] = {}
        self.taught: dict[nn.Module, None] = {}
        self.calls: Counter[nn.Module] = Counter()
        self.low_precision: torch.dtype | None = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Watch for the time of a ``with`` block."""
        handle = register_module_forward_pre_hook(self._see)
        try:
            yield
        finally:
            handle.remove()

    def _see(self, module: nn.Module, inputs: Any) -> None:
        if inputs and getattr(inputs[0], "dtype", None) in (torch.float16, torch.bfloat16):
            self.low_precision = inputs[0].dtype
        self.order.setdefault(module)
        self.calls[module] += bool(module.training)  # None counts as eval mode, as in PyTorch
        if torch.is_grad_enabled():
            (self.taught if module.training else self.learning).setdefault(module)
        (self.training if module.training else self.inference).setdefault(module)


def is_library_leaf(module: nn.Module) -> bool:
    """Whether a module is a layer of a library and has no children that act by themselves.

    Attention of torch draws its own dropout, and its children only hold parameters.
    """
    if package_of(module) not in _LIBRARIES:
        return False
    return isinstance(module, nn.MultiheadAttention) or not any(module.children())


def asleep(model: nn.Module, modes: Mapping[nn.Module, bool]) -> list[nn.Module]:
    """Modules in eval mode within a part that is in eval mode as a whole, though it trains.

    Parameters
    ----------
    modes
        Whether each module is in training mode when the model trains.
    """
    found: dict[nn.Module, None] = {}
    for part in model.modules():
        members = [module for module in part.modules() if not modes.get(module, True)]
        if part in members and any(part.children()) and _trains(members):
            found.update(dict.fromkeys(members))
    return list(found)


def _trains(modules: Sequence[nn.Module]) -> bool:
    """Whether direct parameters of the modules train, other than those of normalisations."""
    others = [m for m in modules if "Norm" not in type(m).__name__]
    return any(p.requires_grad for m in others for p in m.parameters(recurse=False))
