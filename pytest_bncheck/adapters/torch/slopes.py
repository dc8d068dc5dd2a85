"""How a prediction reacts to the normalised output of every layer: one forward, one backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pytest_bncheck.adapters.torch.data import on_device, on_host
from pytest_bncheck.adapters.torch.internals import parameters_by_name
from pytest_bncheck.adapters.torch.state import is_sharded

if TYPE_CHECKING:
    from pytest_bncheck.types import Array, Slope

_Affine = tuple[Tensor, Tensor]


def slopes(
    modules: Mapping[str, Any],
    forward: Callable[[], Mapping[str, Tensor]],
    direction: Mapping[str, Array],
) -> list[Slope | None] | None:
    """γ·∂/∂γ and γ·∂/∂β of ⟨outputs, direction⟩ for each layer; see `Adapter.slopes`."""
    with _affine(modules) as leaves, torch.enable_grad():
        outputs = forward()
        along = [
            (outputs[path] * on_device(value, outputs[path])).sum()
            for path, value in direction.items()
        ]
        aim = torch.stack(along).sum()
        if not aim.requires_grad:
            return None
        wanted = [leaf for pair in leaves.values() for leaf in pair]
        try:
            found = torch.autograd.grad(aim, wanted, allow_unused=True)
        except RuntimeError:  # some operation has no gradient in eval mode
            return None
        gradients = dict(zip(leaves, zip(found[::2], found[1::2], strict=True), strict=True))
    if not leaves:
        return [None] * len(modules)
    own = {name: _slope(pair[0], *gradients[name]) for name, pair in leaves.items()}
    found_of = dict(zip(own, on_host(list(own.values())), strict=True))
    return [(*found_of[name],) if name in own else None for name in modules]


@contextmanager
def _affine(modules: Mapping[str, Any]) -> Iterator[dict[str, _Affine]]:
    """Give every layer copies of its scale and offset that need a gradient, for one pass.

    Frozen ones too, and 1 and 0 for a layer that has none. The user's parameters are not touched.
    """
    own = {
        name: (module, dict(parameters_by_name(module)))
        for name, module in modules.items()
        if {"weight", "bias"} <= parameters_by_name(module).keys()
        and _has_own_scale(module)
        and not any(map(is_sharded, module.parameters()))  # which the wrapper puts back itself
    }
    leaves = {}
    try:
        for name, (module, before) in own.items():
            for key, neutral in (("weight", 1.0), ("bias", 0.0)):
                there = before[key]
                value = (
                    torch.full_like(module.running_mean, neutral)
                    if there is None
                    else there.detach().clone()
                )
                parameters_by_name(module)[key] = nn.Parameter(value)
            leaves[name] = module.weight, module.bias
        yield leaves
    finally:
        for module, before in own.values():
            parameters_by_name(module).clear()
            parameters_by_name(module).update(before)


def _has_own_scale(module: Any) -> bool:
    """Whether each running statistic has a scale of its own, unlike those of parts of a batch."""
    scale = module.weight
    channels = getattr(module, "num_features", None) if scale is None else scale.numel()
    return channels in (None, module.running_mean.numel())


def _slope(scale: Tensor, by_scale: Tensor | None, by_offset: Tensor | None) -> Tensor:
    """A layer that the outputs do not depend on has slope 0; still on the device."""
    zero = torch.zeros_like(scale)
    pair = (by_scale, by_offset)
    parts = [zero if part is None else scale * part for part in pair]
    return torch.stack(parts).detach()
