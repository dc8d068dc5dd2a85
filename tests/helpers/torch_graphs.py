"""What PyTorch adds to the kinds of `random_graphs`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pytest_bncheck.adapters.torch.state import Snapshot
from random_graphs import PLAIN, Kind

MODULE = Kind(
    lambda: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout()),
    lambda m: (
        [(id(p), p.detach().numpy().tobytes(), p.grad is None) for p in m.parameters()],
        [(id(b), b.numpy().tobytes()) for b in m.buffers()],
        [part.training for part in m.modules()],
        len(m[0]._forward_hooks),
    ),
    lambda m: (
        m.eval(),
        m[1].train(),
        m[0].register_forward_hook(print),
        nn.init.ones_(m[0].weight),
        m[1].running_mean.add_(1),
    ),
)


def _step(optimizer):
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def _of_inference():
    with torch.inference_mode():
        return torch.ones(2)


def _in_inference(tensor):
    with torch.inference_mode():
        tensor.add_(1)


KINDS = {
    **PLAIN,
    "module": MODULE,
    "tensor": Kind(
        lambda: torch.tensor([0.0, -0.0, float("nan")]),
        lambda t: (t.numpy().tobytes(), id(t)),
        lambda t: t.neg_().sub_(1),  # changed twice, it is not what it was
    ),
    "parameter": Kind(
        lambda: nn.Parameter(torch.ones(2)),
        lambda p: (p.tolist(), p.grad, p.requires_grad, p._backward_hooks, dict(vars(p))),
        lambda p: (
            p.register_hook(lambda g: g * 2),
            setattr(p, "ema", 1),
            p.sum().backward(),
            p.requires_grad_(False),
        ),
    ),
    "tensor of inference mode": Kind(_of_inference, torch.Tensor.tolist, _in_inference),
    "generator of torch": Kind(
        lambda: torch.Generator().manual_seed(0),
        lambda g: g.get_state().numpy().tobytes(),
        lambda g: torch.rand(1, generator=g),
    ),
    "optimizer": Kind(
        lambda: torch.optim.Adam([nn.Parameter(torch.ones(2))]),
        lambda o: (len(o.state), o.param_groups[0]["params"][0].tolist()),
        _step,
    ),
}


def remembered(root: Any) -> Callable[[], None]:
    """Remember a graph; returns the way back."""
    return Snapshot(root).restore
