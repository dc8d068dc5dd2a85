"""Tensors of a model by owner and name: layers reassign them, so no object stands for one."""

from __future__ import annotations

import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pytest_bncheck.adapters.containers import container_type, members_of, refill, with_item
from pytest_bncheck.adapters.references import PLAIN, package_of, passes_for_another
from pytest_bncheck.adapters.torch.internals import plain_name
from pytest_bncheck.adapters.torch.state import equal, is_readable, is_walked, overwrite

Place: TypeAlias = tuple[str, Any, Any]
"""The path of a tensor in the model, its owner, and its name or index there."""

_HOSTS = {"accelerate", "lightning", "lightning_fabric", "pytorch_lightning", "transformers"}
"""Packages whose objects drive a training and hold more than a model's state."""

Kept: TypeAlias = tuple[Place, Tensor, Tensor]
"""A place, the tensor that it held, and a copy of its values."""

DEEP = 3
"""Containers and helper objects within each other that are looked into."""


class Buffers:
    """Some tensors as they are now: which objects, and their values.

    Parameters
    ----------
    places
        Where they are; a place that holds no tensor is left out.
    """

    def __init__(self, places: Iterable[Place]) -> None:
        self._kept: list[Kept] = [
            (place, tensor, tensor.detach().clone())
            for place in places
            if is_readable(tensor := held(place[1], place[2]))
        ]
        self._containers = [each.keep() for each in _containers(self._kept)]

    def moved(self) -> list[str]:
        """Paths of the tensors that hold other values now, compared in one transfer."""
        return [name for (name, _, _), _, _ in _changed(self._kept)]

    def put_back(self) -> None:
        """Every owner gets its tensors back, with the values that they had."""
        self._put_containers_back()
        _put(self._kept)

    def put_back_moved(self) -> list[str]:
        """As `put_back`, without a write to what holds the same values; paths of what did not."""
        changed = _changed(self._kept)
        self._put_containers_back()
        _put(changed)
        return [name for (name, _, _), _, _ in changed]

    def _put_containers_back(self) -> None:
        for back in self._containers:
            back()


def _containers(kept: Sequence[Kept]) -> list[_Inside]:
    """The places of all containers and helper objects, the outer ones first."""
    found: dict[int, tuple[int, _Inside]] = {}
    for (_, owner, _), _, _ in kept:
        around, deep = owner, 0
        while isinstance(around, _Inside):
            found.setdefault(id(around.now()), (-deep, around))
            around, deep = around.owner, deep + 1
    return [each for _, each in sorted(found.values(), key=lambda pair: pair[0])]


def _changed(kept: Sequence[Kept]) -> list[Kept]:
    """Those of which the place holds other values now, compared in one transfer."""
    if not kept:
        return []
    home = kept[0][2].device
    same = torch.stack(
        [_same(held(owner, key), values).to(home) for (_, owner, key), _, values in kept]
    ).tolist()
    return [each for each, equals in zip(kept, same, strict=True) if not equals]


def _put(kept: Sequence[Kept]) -> None:
    for (_, owner, key), tensor, _ in kept:
        assign(owner, key, tensor)
    for _, tensor, values in _changed(kept):  # memory that nobody wrote to may be read-only
        if tensor.shape == values.shape:
            overwrite(tensor.data, values)
        else:  # a buffer that grows by `resize_`
            tensor.data = values.clone()


def places(model: nn.Module) -> list[Place]:
    """Every tensor of a model once that is no parameter, also one that several modules share.

    Registered buffers, attributes, and what lists, dictionaries and helper objects hold.
    """
    found: dict[int, Place] = {}
    modules = [(plain_name(path), module) for path, module in model.named_modules()]
    for look in (_buffers, _attributes):  # attributes may list what is registered elsewhere
        for path, module in modules:
            for name, owner, key in look(module, f"{path}." if path else ""):
                if is_readable(held(owner, key)):
                    found.setdefault(id(held(owner, key)), (name, owner, key))
    return list(found.values())


def parameter_places(model: nn.Module) -> list[Place]:
    """Every parameter of a model once."""
    return [
        (plain_name(f"{path}.{key}" if path else key), module, key)
        for path, module in model.named_modules()
        for key, parameter in module.named_parameters(recurse=False)
        if not nn.parameter.is_lazy(parameter)
    ]


def _buffers(module: nn.Module, prefix: str) -> Iterator[Place]:
    for key, _ in module.named_buffers(recurse=False):
        yield f"{prefix}{key}", module, key


def _attributes(module: nn.Module, prefix: str) -> Iterator[Place]:
    for key, value in vars(module).items():
        if type(value) in PLAIN:
            continue
        if not key.startswith("_") or not isinstance(value, dict):  # no registry of PyTorch
            yield from _of(module, key, value, f"{prefix}{key}")


@dataclass(frozen=True, eq=False)
class _Inside:
    """Whatever a place holds now: a pass can put another container, or another object, there."""

    owner: Any
    key: Any

    def now(self) -> Any:
        return held(self.owner, self.key)

    def write(self, key: Any, tensor: Any) -> None:
        now = self.now()
        if isinstance(now, tuple):
            assign(self.owner, self.key, with_item(now, key, tensor))
        else:
            assign(now, key, tensor)

    def keep(self) -> Callable[[], None]:
        """Remember which container it is, and how many it holds; returns the way back."""
        now = self.now()
        members = None if container_type(now) is None else members_of(now)

        def back() -> None:
            assign(self.owner, self.key, now)
            if members is not None:
                refill(now, members)

        return back


def _of(owner: Any, key: Any, value: Any, path: str, deep: int = DEEP) -> Iterator[Place]:
    """The tensors at a place, or within what is there: a container, or a helper object."""
    if type(value) in PLAIN or passes_for_another(value):
        return
    if isinstance(value, Tensor):
        if not isinstance(value, nn.Parameter):
            yield path, owner, key
    elif deep == 0 or isinstance(value, nn.Module):
        return
    elif container_type(value) in (list, deque, dict, OrderedDict):
        is_dict = issubclass(container_type(value), dict)
        members = [
            member if is_dict else (k, *member) for k, member in enumerate(members_of(value))
        ]
        for inner, child in members:
            if type(child) not in PLAIN:
                yield from _of(_Inside(owner, key), inner, child, f"{path}[{inner!r}]", deep - 1)
    elif isinstance(value, tuple):
        for inner, child in enumerate(tuple.__iter__(value)):
            yield from _of(_Inside(owner, key), inner, child, f"{path}[{inner}]", deep - 1)
    elif _is_helper(value):
        for inner, child in vars(value).items():
            yield from _of(_Inside(owner, key), inner, child, f"{path}.{inner}", deep - 1)


def _is_helper(value: Any) -> bool:
    """Whether an object may hold state of a module: neither a trainer nor an optimizer."""
    if isinstance(value, types.SimpleNamespace):
        return True
    apart = (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, torch.amp.GradScaler)
    if isinstance(value, apart) or package_of(value) in _HOSTS:
        return False
    return is_walked(value)


def held(owner: Any, key: Any) -> Any:
    """What a place holds; None where there is no such place any more."""
    owner = owner.now() if isinstance(owner, _Inside) else owner
    if container_type(owner) is not None or isinstance(owner, tuple):
        try:
            return owner[key]
        except (LookupError, TypeError):
            return None
    return getattr(owner, key, None)


def is_among(tensor: Tensor, some: Mapping[int, Tensor]) -> bool:
    """Whether a tensor, or one with the same values, is among `some`, a mapping from ids."""
    return id(tensor) in some or any(
        each.shape == tensor.shape and bool(equal(each, tensor.to(each))) for each in some.values()
    )


def _same(now: Any, then: Tensor) -> Tensor:
    if not is_readable(now) or now.shape != then.shape or now.device != then.device:
        return torch.tensor(False)
    return equal(now, then)


def assign(owner: Any, key: Any, tensor: Any) -> None:
    """Let a place hold a tensor, unless it is fixed."""
    if held(owner, key) is tensor:
        return
    try:
        if isinstance(owner, _Inside):
            owner.write(key, tensor)
        elif container_type(owner) is None:
            setattr(owner, key, tensor)
        else:
            owner[key] = tensor
    except (AttributeError, LookupError, TypeError):  # a property that views something else
        return
