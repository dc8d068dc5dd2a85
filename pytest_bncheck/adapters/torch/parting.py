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

from pytest_bncheck.adapters.parting import Event, Recorded, first_difference, with_sizes
from pytest_bncheck.adapters.sources import frames_within, line_about_modes, line_of
from pytest_bncheck.adapters.torch.data import leaves, on_host, widest
from pytest_bncheck.types import Parting


def part(
    training: Callable[[], object],
    evaluation: Callable[[], object],
    paths: Mapping[nn.Module, str],
) -> Parting | None:
    """The place at which the second pass begins to compute something else; None if nowhere."""
    event = first_difference(_recorded(training), _recorded(evaluation))
    if event is None or event.around not in paths:
        return None
    kind = type(event.around)
    library = kind.__module__.split(".")[0] == "torch"
    source = "" if library else line_about_modes(kind.forward) or event.source
    return Parting(paths[event.around], kind.__name__, source, library)


def _recorded(run: Callable[[], object]) -> Recorded:
    """The modules that a pass enters and leaves, and what goes in and comes out."""
    events: list[Event] = []
    sizes: list[list[Tensor]] = []
    running: list[nn.Module] = []

    def enter(module: nn.Module, args: Any) -> None:
        around = running[-1] if running else None
        frames = (f for f in frames_within(_recorded.__code__) if f.f_locals.get("self") is around)
        source = next(map(line_of, frames), "") if running else ""
        events.append(Event(module, False, around, source))
        sizes.append(_sizes(args))
        running.append(module)

    def leave(module: nn.Module, _: Any, outputs: Any) -> None:
        running.pop()
        events.append(Event(module, True, module))
        sizes.append(_sizes(outputs))

    hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    host = on_host([size for of_event in sizes for size in of_event])
    return with_sizes(events, list(map(len, sizes)), host)


@torch.no_grad()
def _sizes(value: Any) -> list[Tensor]:
    tensors = (leaf for _, leaf in leaves(value) if isinstance(leaf, Tensor))
    dense = (leaf for leaf in tensors if leaf.layout is torch.strided and not leaf.is_nested)
    return [_size(leaf) for leaf in dense if leaf.is_floating_point()]


def _size(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1).to(widest(tensor.device))
    weights = torch.arange(flat.numel(), device=flat.device, dtype=flat.dtype).cos()
    return torch.stack([torch.linalg.vector_norm(flat), flat @ weights])
