"""Buffers by owner and name: layers reassign them, so a tensor object does not stand for one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bncheck.adapters.torch.internals import plain_name

Place = tuple[str, nn.Module, str]
"""The name of a buffer in the state of the model, its owner, and its name there."""


class Buffers:
    """Some buffers as they are now: which tensors, and their values.

    Parameters
    ----------
    places
        Where they are; a place that holds no tensor is left out.
    """

    def __init__(self, places: Iterable[Place]) -> None:
        self._kept = [
            (place, tensor, tensor.detach().clone())
            for place in places
            if isinstance(tensor := getattr(place[1], place[2], None), Tensor)
        ]

    def moved(self) -> list[str]:
        """Names of the buffers that hold other values now, compared in one transfer."""
        return [name for (name, _, _), _, _ in self._changed()]

    def put_back(self) -> None:
        """Every owner gets its tensors back, with the values that they had."""
        for (_, owner, key), tensor, values in self._kept:
            _assign(owner, key, tensor)
            tensor.data.copy_(values)

    def put_back_moved(self) -> None:
        """As `put_back`, without a write to what holds the same values."""
        changed = self._changed()
        for (_, owner, key), tensor, values in changed:
            _assign(owner, key, tensor)
            tensor.data.copy_(values)

    def _changed(self) -> list[tuple[Place, Tensor, Tensor]]:
        if not self._kept:
            return []
        home = self._kept[0][2].device
        same = torch.stack(
            [
                _same(getattr(owner, key, None), values).to(home)
                for (_, owner, key), _, values in self._kept
            ]
        ).tolist()
        return [kept for kept, equals in zip(self._kept, same, strict=True) if not equals]


def places(model: nn.Module) -> list[Place]:
    """Every registered buffer of a model once, also one that several modules share."""
    found = {
        id(buffer): (plain_name(f"{path}.{key}" if path else key), module, key)
        for path, module in reversed(list(model.named_modules()))
        for key, buffer in reversed(list(module.named_buffers(recurse=False)))
    }
    return list(reversed(found.values()))


def equal(left: Tensor, right: Tensor) -> Tensor:
    """Equality in which NaN equals itself; still on the device."""
    return ((left == right) | ((left != left) & (right != right))).all()


def is_among(tensor: Tensor, some: Mapping[int, Tensor]) -> bool:
    """Whether a tensor, or one with the same values, is among `some`, a mapping from ids."""
    return id(tensor) in some or any(
        each.shape == tensor.shape and bool(equal(each, tensor.to(each))) for each in some.values()
    )


def _same(now: Any, then: Tensor) -> Tensor:
    if not isinstance(now, Tensor) or now.shape != then.shape or now.device != then.device:
        return torch.tensor(False)
    return equal(now, then)


def _assign(owner: nn.Module, key: str, tensor: Tensor) -> None:
    if getattr(owner, key, None) is tensor:
        return
    try:
        setattr(owner, key, tensor)
    except AttributeError:  # a property that gives a view of something else
        return
