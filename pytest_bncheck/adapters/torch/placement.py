"""Moving a model to another device for the time of a check."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from pytest_bncheck.adapters.torch.internals import hooks_of, set_hooks, swap_memory


def move(model: nn.Module, device: torch.device) -> Callable[[], None]:
    """Move a model; returns what gives its parameters the memory back that they had.

    Its parameters stay the objects that optimizers and the user's code hold. PyTorch itself does
    that for its own devices only: on a third party's a moved model has other parameters.
    """
    twins = [] if _shares_objects(device) else [(p, _twin(p, device)) for p in model.parameters()]

    def exchange() -> None:
        for parameter, twin in twins:
            swap_memory(parameter, twin)

    exchange()
    model.to(device)
    return exchange


def _twin(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
    """The same parameter on another device, with its gradient and hooks."""
    twin = nn.Parameter(parameter.detach().to(device), parameter.requires_grad)
    if parameter.grad is not None:
        twin.grad = parameter.grad.to(device)
    set_hooks(twin, hooks_of(parameter))
    return twin


def _shares_objects(device: torch.device) -> bool:
    """Whether a tensor can go from the CPU to a device and be the same object."""
    tensor = torch.empty(0, device="cpu")
    try:
        tensor.data = torch.empty(0, device=device)
    except (RuntimeError, TypeError):
        return False
    return True
