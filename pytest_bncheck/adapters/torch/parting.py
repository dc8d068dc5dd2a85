"""Where two passes of a PyTorch model part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from pytest_bncheck.adapters.parting import Recorded, Recorder, parting
from pytest_bncheck.adapters.references import package_of
from pytest_bncheck.adapters.torch.data import leaves, on_host, widest
from pytest_bncheck.types import Parting


def part(
    training: Callable[[], object],
    evaluation: Callable[[], object],
    paths: Mapping[nn.Module, str],
) -> Parting | None:
    """The place at which the second pass begins to compute something else; None if nowhere."""
    first, second = _recorded(training), _recorded(evaluation)
    return parting(first, second, paths.get, call="forward", is_library=_is_torchs)


def _recorded(run: Callable[[], object]) -> Recorded:
    recorder = Recorder()

    def enter(module: nn.Module, args: Any) -> None:
        recorder.enter(module, _sizes(args))

    def leave(module: nn.Module, _: Any, outputs: Any) -> None:
        recorder.leave(module, _sizes(outputs))

    hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        return recorder.run(run, on_host)
    finally:
        for hook in hooks:
            hook.remove()


def _is_torchs(module: nn.Module) -> bool:
    return package_of(module) == "torch"


@torch.no_grad()
def _sizes(value: Any) -> list[Tensor]:
    tensors = (leaf for _, leaf in leaves(value) if isinstance(leaf, Tensor))
    dense = (leaf for leaf in tensors if leaf.layout is torch.strided and not leaf.is_nested)
    return [_size(leaf) for leaf in dense if leaf.is_floating_point()]


def _size(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1).to(widest(tensor.device))
    weights = torch.arange(flat.numel(), device=flat.device, dtype=flat.dtype).cos()
    return torch.stack([torch.linalg.vector_norm(flat), flat @ weights])
