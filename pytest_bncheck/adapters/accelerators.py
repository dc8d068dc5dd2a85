"""The accelerators of PyTorch, whichever backend they have: cuda, rocm, xpu, mps, a third party's.

PyTorch is taken from ``sys.modules``: nothing here imports it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import Any

_BUILT_IN = ("cuda", "xpu", "mps")
"""Kinds that PyTorch brings; `torch.accelerator` names one kind only, a third party's first."""


def kinds(wish: str = "") -> list[str]:
    """Every kind of accelerator that PyTorch knows of here, that of `torch.accelerator` first.

    Parameters
    ----------
    wish
        A device that a user asks for; its kind may be one that PyTorch names nowhere else.
    """
    torch: Any = sys.modules["torch"]
    own = torch.accelerator.current_accelerator()
    found = [] if own is None else [own.type]
    with suppress(RuntimeError):  # no name of a device
        found += [torch.device(wish).type] if wish else []
    known = [*found, *_BUILT_IN]
    return [
        kind for kind in dict.fromkeys(known) if kind != "cpu" and device_module(kind) is not None
    ]


def devices(wish: str = "") -> list[str]:
    """The accelerators of this machine by their names in PyTorch: ``["cuda:0", "cuda:1"]``."""
    return [f"{kind}:{k}" for kind in kinds(wish) for k in range(_count(kind))]


def device_module(kind: str) -> Any:
    """What PyTorch calls the device module: ``torch.cuda``, ``torch.xpu``."""
    return getattr(sys.modules["torch"], kind, None)


def _count(kind: str) -> int:
    count = getattr(device_module(kind), "device_count", None)
    return 0 if count is None else count()


@cache
def has_float64(kind: str) -> bool:
    """Whether devices of a kind compute in double precision."""
    torch: Any = sys.modules["torch"]
    try:
        torch.ones((), dtype=torch.float64, device=kind).sum()
    except (RuntimeError, TypeError):
        return False
    return True


# random state -------------------------------------------------------------------------------------


def random_state() -> dict[str, list[Any]]:
    """The states of the generators of all devices in use, by the kind of device."""
    found = {}
    for kind, module in _in_use():
        if hasattr(module, "get_rng_state_all"):
            found[kind] = module.get_rng_state_all()
        elif hasattr(module, "get_rng_state"):
            names = _names(kind)
            # Where there is one device, the function may take no argument.
            found[kind] = [module.get_rng_state(*name) for name in names]
    return found


def set_random_state(states: dict[str, list[Any]]) -> None:
    """Put the states of `random_state` back."""
    for kind, each in states.items():
        module = device_module(kind)
        if hasattr(module, "set_rng_state_all"):
            module.set_rng_state_all(each)
        else:
            for state, name in zip(each, _names(kind), strict=True):
                module.set_rng_state(state, *name)


def seed(number: int) -> None:
    """Seed the generators of all devices in use."""
    for _, module in _in_use():
        name = "manual_seed_all" if hasattr(module, "manual_seed_all") else "manual_seed"
        if hasattr(module, name):
            getattr(module, name)(number)


def _in_use() -> Iterator[tuple[str, Any]]:
    """Every kind of device that was used already, with its module: none is started for this."""
    for kind in kinds():
        module = device_module(kind)
        started = getattr(module, "is_initialized", None)
        if (started is None or started()) and _count(kind):
            yield kind, module


def _names(kind: str) -> list[tuple[str, ...]]:
    """The devices of a kind as arguments of a function; no argument for an only one."""
    count = _count(kind)
    return [()] if count == 1 else [(f"{kind}:{k}",) for k in range(count)]
