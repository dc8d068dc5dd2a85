"""Models and batches that cannot be checked, refused in one line before PyTorch fails on them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pytest_bncheck.adapters.refusals import not_finite_in
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
                return not_finite_in(path, count, leaf.numel())
    return None


def dtype_note(error: BaseException, batch: Any) -> str | None:
    """A note on the tensor of a batch whose type another than the failing layer's is, or None."""
    found = _mismatch(error)
    if found is None:
        return None
    own, other = found
    for path, leaf in leaves(batch):
        if isinstance(leaf, Tensor) and leaf.dtype == other:
            return (
                f"pytest-bncheck: batch{path} is of {other}, the parameters of the layer that "
                f"failed are of {own}; convert one of them."
            )
    return None


def _mismatch(error: BaseException) -> tuple[torch.dtype, torch.dtype] | None:
    """The types of a failing layer's parameters and of its argument, if these are the fault."""
    layer, given = None, None
    trace = error.__traceback__
    while trace is not None:
        values = trace.tb_frame.f_locals
        owner = values.get("self")
        if trace.tb_frame.f_code.co_name == "forward" and isinstance(owner, nn.Module):
            layer, given = owner, [v for v in values.values() if isinstance(v, Tensor)]
        trace = trace.tb_next
    if layer is None or "type" not in str(error):
        return None
    floats = (p.dtype for p in layer.parameters(recurse=False) if p.is_floating_point())
    own = next(floats, None)
    other = next((tensor.dtype for tensor in given or () if tensor.dtype != own), None)
    return None if own is None or other is None else (own, other)
