"""Moving a model to another device for the time of a check."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from pytest_bncheck.adapters.torch.internals import hooks_of, set_hooks, swap_memory


def move(model: nn.Module, device: torch.device) -> Callable[[], None]:
    """Move a model; returns what gives its parameters the memory back that they had.

    Its parameters stay the objects that optimizers and the user's code hold. PyTorch itself does
    that for its own devices only: on a third party's a moved model has other parameters.
    """
    pairs = [] if keeps_objects(device) else exchanged(model.parameters(), device)
    model.to(device)

    def back() -> None:
        for parameter, twin in pairs:
            swap_memory(parameter, twin)

    return back


def exchanged(tensors: Iterable[Tensor], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Tensors that are on a device now; each with the one that has its memory of before."""
    pairs = [(tensor, _twin(tensor, device)) for tensor in tensors]
    for tensor, twin in pairs:
        swap_memory(tensor, twin)
    return pairs


def _twin(tensor: Tensor, device: torch.device) -> Tensor:
    """The same tensor on another device, with its gradient and hooks."""
    twin = tensor.detach().to(device).requires_grad_(tensor.requires_grad)
    if tensor.is_leaf and tensor.grad is not None:
        twin.grad = tensor.grad.to(device)
    if tensor.is_leaf:
        set_hooks(twin, hooks_of(tensor))
    return twin


def keeps_objects(device: torch.device) -> bool:
    """Whether a tensor can go from the CPU to a device and be the same object."""
    tensor = torch.empty(0, device="cpu")
    try:
        tensor.data = torch.empty(0, device=device)
    except (RuntimeError, TypeError):
        return False
    return True
