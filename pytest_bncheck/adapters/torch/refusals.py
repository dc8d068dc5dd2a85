"""Models and batches that cannot be checked, refused in one line before PyTorch fails on them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pytest_bncheck.adapters.torch.data import leaves
from pytest_bncheck.types import InputError


def refuse_model(model: nn.Module) -> None:
    """Raise an InputError if a model has no numbers, or layers that cannot be watched."""
    if torch.is_inference_mode_enabled():
        raise InputError(
            "model: a check trains it, which torch.inference_mode() forbids; call the check "
            "outside of that block"
        )
    tensors = [*model.named_parameters(), *model.named_buffers()]
    empty = next((name for name, tensor in tensors if tensor.is_meta), None)
    if empty is not None:
        raise InputError(
            f"model: {empty} is on the meta device and holds no numbers; give the model its "
            "weights first (model.to_empty(device=...), then load_state_dict)"
        )
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and hasattr(module, "running_mean"):
            raise InputError(
                f"model: {name or 'it'} is part of a torch.jit.ScriptModule, which cannot be "
                "watched; pass the Python model that it was made from"
            )


def refuse_training(model: nn.Module) -> None:
    """Raise an InputError if a layer has no gradient to train with."""
    for name, module in model.named_modules():
        if ".quantized." in f"{type(module).__module__}.":
            raise InputError(
                f"model: {name or 'it'} is a quantised {type(module).__name__}, which cannot be "
                "trained; pass the model before its quantisation, or steps=0 to judge it as it is"
            )


def refuse_synchronised(model: nn.Module, device: torch.device) -> None:
    """Raise an InputError if a SyncBatchNorm would train on a device that it does not support.

    With a process group it takes tensors on a GPU only, even of a single process.
    """
    if device.type not in ("cpu", "mps") or not (dist.is_available() and dist.is_initialized()):
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.SyncBatchNorm) and module.training:
            raise InputError(
                f"model: {name or 'it'} is a SyncBatchNorm, which PyTorch trains on GPUs only once "
                f"a process group is initialised, and the model is on {device.type}; move it to a "
                "GPU, or check it with BatchNorm in its place"
            )


def refuse_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Raise an InputError if an optimizer trains nothing of a model."""
    own = {id(parameter) for parameter in model.parameters()}
    groups = optimizer.param_groups
    if not any(id(parameter) in own for group in groups for parameter in group["params"]):
        raise InputError(
            "optimizer: none of its parameters belongs to the model; make it from the "
            "parameters of the model that is checked"
        )


def not_finite(batch: Any) -> str | None:
    """Where a batch holds NaN or infinity, and how many; None if nowhere."""
    for path, leaf in leaves(batch):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and not leaf.is_sparse:
            count = int((~torch.isfinite(leaf)).sum())
            if count:
                return f"batch{path} holds NaN or infinity in {count} of {leaf.numel()} places"
    return None


def dtype_note(model: nn.Module, batch: Any) -> str | None:
    """A note on the dtypes of a model and its batch if they differ, after a failed forward pass."""
    floats = (p.dtype for p in model.parameters() if p.is_floating_point())
    own = next(floats, None)
    path, first = next(
        ((path, leaf) for path, leaf in leaves(batch) if isinstance(leaf, Tensor)), ("", None)
    )
    if own is None or first is None or first.dtype == own:
        return None
    return (
        f"pytest-bncheck: batch{path} is of {first.dtype}, the model's parameters of {own}; "
        "convert one of them."
    )
