"""Remember a PyTorch model and everything it refers to, and put it back bit for bit.

One walk over the object graph, from the model and the user's functions: modules (also those kept
in plain lists), containers, tensors, generators, optimizers, the variables that a function closes
over. Everything is put back in place, so that every object keeps its identity.
"""

from __future__ import annotations

import functools
import random
import sys
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import nn

from pytest_bncheck.adapters.containers import container_type, members_of, refill
from pytest_bncheck.adapters.torch.internals import (
    default_device,
    plain_name,
    registries,
    set_version,
    version_of,
)

Undo = Callable[[], None]

_FOREIGN = sys.stdlib_module_names | {"torch", "numpy", "pytest", "_pytest", "pytest_bncheck"}
_OURS_TO_WALK = (
    nn.Module,
    torch.optim.Optimizer,
    torch.optim.lr_scheduler.LRScheduler,
    torch.amp.GradScaler,
)
_NOT_STATE = (type, types.ModuleType, torch.utils.data.Dataset, torch.utils.data.DataLoader)


class Snapshot:
    """The state of everything reachable from `roots`, remembered on construction.

    Attributes
    ----------
    paths
        The shortest path to each module from the first root: ``encoder.blocks[1].norm``.
    values
        The values of every tensor, by its id.
    """

    def __init__(self, *roots: Any) -> None:
        self.paths: dict[nn.Module, str] = {}
        self.values: dict[int, torch.Tensor] = {}
        self._seen: dict[int, Any] = {}
        self._undo: list[Undo] = []
        waiting = deque((root, "") for root in roots)
        while waiting:
            item, path = waiting.popleft()
            if id(item) in self._seen or type(item) in weakref.ProxyTypes:
                continue  # a proxy passes for what it points to, which is reached otherwise
            if isinstance(item, nn.Module):
                self.paths[item] = plain_name(path.removeprefix("."))
            self._keep(item)
            for attributes in _attributes(item):
                self._keep(attributes)
            waiting.extend((child, path + step) for step, child in _children(item))
        self._undo.append(global_flags())  # put back first: the default device rules every call

    def _keep(self, item: Any) -> None:
        self._seen[id(item)] = item  # held, so that no other object gets its id
        undo = self._remember_tensor(item) if isinstance(item, torch.Tensor) else _remember(item)
        if undo is not None:
            self._undo.append(undo)

    def _remember_tensor(self, tensor: torch.Tensor) -> Undo | None:
        if not _has_numbers(tensor):
            return None  # nothing to put back: no numbers yet, or they cannot change
        values = self.values[id(tensor)] = tensor.data.clone()
        return _remember_tensor(tensor, values)

    def unchanged(self, tensors: Iterable[torch.Tensor]) -> list[bool]:
        """Whether each tensor still holds the values that were remembered, in one transfer."""
        pairs = [(tensor.detach(), self.values.get(id(tensor))) for tensor in tensors]
        alike = [then is not None and then.shape == now.shape for now, then in pairs]
        same = [
            (now == then.to(now.device)).all()
            for (now, then), comparable in zip(pairs, alike, strict=True)
            if comparable and then is not None
        ]
        values = iter(
            torch.stack([each.to(same[0].device) for each in same]).tolist() if same else ()
        )
        return [comparable and bool(next(values)) for comparable in alike]

    def restore(self) -> None:
        """Put everything back. May be called once."""
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
        self.values.clear()


def _attributes(item: Any) -> list[dict[str, Any]]:
    """The dictionaries that hold an object's attributes, if it is walked into."""
    if not is_walked(item):
        return []
    return [*(registries(item) if isinstance(item, nn.Module) else ()), item.__dict__]


def _slots(item: Any) -> Iterator[tuple[types.MemberDescriptorType, Any]]:
    """The slots of an object of a user's class, with their values."""
    if isinstance(item, _NOT_STATE) or _is_foreign(type(item).__module__):
        return
    for base in type(item).__mro__:
        for slot in () if _is_foreign(base.__module__) else vars(base).values():
            if isinstance(slot, types.MemberDescriptorType):
                with suppress(AttributeError):  # an empty slot
                    yield slot, slot.__get__(item)


def _children(item: Any) -> Iterator[tuple[str, Any]]:
    """The objects that an object refers to, each with its part of the path."""
    if isinstance(item, torch.jit.ScriptModule):
        yield from (("", tensor) for tensor in (*item.parameters(), *item.buffers()))
    elif isinstance(item, dict):
        yield from ((f"[{key!r}]", value) for key, value in item.items())
        yield from (("", key) for key in item if isinstance(key, torch.Tensor))
    elif isinstance(item, (list, tuple, deque)):
        yield from ((f"[{index}]", value) for index, value in enumerate(item))
    elif isinstance(item, (set, frozenset)):
        yield from (("", value) for value in item)
    elif isinstance(item, functools.partial):
        yield from (("", part) for part in (item.func, item.args, item.keywords))
    elif isinstance(item, types.MethodType):
        yield from (("", part) for part in (item.__self__, item.__func__))
    elif isinstance(item, types.FunctionType):
        yield from (("", part) for part in (item.__defaults__, item.__kwdefaults__))
        yield from (("", value) for _, value in _cells(item))
        yield from (("", value) for _, value in _globals(item))
    else:
        for attributes in _attributes(item):
            yield from ((f".{key}", value) for key, value in attributes.items())
        yield from ((f".{slot.__name__}", value) for slot, value in _slots(item))


def _remember(item: Any) -> Undo | None:
    """How to put one object back, or None if it has no state besides its children's."""
    if isinstance(item, np.ndarray) and item.flags.writeable and item.dtype != object:
        values = item.copy()
        return lambda: np.copyto(item, values)
    if container_type(item) is not None:
        held = members_of(item)
        return lambda: refill(item, held)
    if isinstance(item, types.FunctionType):
        cells, names = list(_cells(item)), list(_globals(item))
        return lambda: _refill_variables(item, cells, names)
    if isinstance(item, torch.Generator):
        state = item.get_state()
        return lambda: _discard(item.set_state(state))
    if isinstance(item, random.Random):
        inner = item.getstate()
        return lambda: item.setstate(inner)
    if isinstance(item, np.random.RandomState):
        legacy = item.get_state()
        return lambda: item.set_state(legacy)
    if isinstance(item, np.random.Generator):
        bits = item.bit_generator.state
        return lambda: setattr(item.bit_generator, "state", bits)
    slots = list(_slots(item))
    return (lambda: _refill_slots(item, slots)) if slots else None


def _has_numbers(tensor: torch.Tensor) -> bool:
    return not (nn.parameter.is_lazy(tensor) or tensor.is_meta or tensor.is_inference())


def _remember_tensor(tensor: torch.Tensor, values: torch.Tensor) -> Undo:
    """How to put back values, storage, gradient and flags of a tensor.

    `data` is written, not the tensor itself, so that a graph the user still holds stays valid.
    """
    data, wanted, version = tensor.data, tensor.requires_grad, version_of(tensor)
    gradient = tensor.grad if tensor.is_leaf else None
    gradient_values = None if gradient is None else gradient.detach().clone()

    def undo() -> None:
        overwrite(data, values)
        if _moved(tensor, data):
            tensor.data = data
        if tensor.is_leaf:
            tensor.grad = gradient
            if tensor.requires_grad != wanted:
                tensor.requires_grad_(wanted)
        if gradient is not None and gradient_values is not None:
            overwrite(gradient.data, gradient_values)
        set_version(tensor, version)

    return undo


def overwrite(data: torch.Tensor, values: torch.Tensor) -> None:
    """Write values to a tensor's memory, also where `expand` made it the same for many elements."""
    if data.layout is torch.strided:
        for dim, stride in enumerate(data.stride()):
            if stride == 0:  # torch refuses to write one place several times
                data, values = data.narrow(dim, 0, 1), values.narrow(dim, 0, 1)
    data.copy_(values)


def _moved(tensor: torch.Tensor, data: torch.Tensor) -> bool:
    """Whether a tensor has other storage than it had, after ``model.to`` for example."""
    if tensor.device != data.device or tensor.dtype != data.dtype or tensor.shape != data.shape:
        return True
    return tensor.layout is torch.strided and tensor.data_ptr() != data.data_ptr()


def _refill_variables(
    function: types.FunctionType, cells: list[tuple[Any, Any]], names: list[tuple[str, Any]]
) -> None:
    for cell, value in cells:
        cell.cell_contents = value
    for name, value in names:
        if function.__globals__.get(name) is not value:
            function.__globals__[name] = value


def _refill_slots(item: Any, slots: list[tuple[types.MemberDescriptorType, Any]]) -> None:
    for slot, value in slots:  # past the `__setattr__` of a frozen dataclass
        slot.__set__(item, value)


def _discard(_: object) -> None:
    """Make a call that returns something an `Undo`."""


def _cells(function: types.FunctionType) -> Iterator[tuple[Any, Any]]:
    for cell in function.__closure__ or ():
        try:
            yield cell, cell.cell_contents
        except ValueError:  # a variable that is not assigned yet
            continue


def _globals(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """The variables of its module that a user's function uses: an optimizer, a scaler."""
    if _is_foreign(function.__module__):
        return
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield name, function.__globals__[name]


def _is_foreign(module: str | None) -> bool:
    return (module or "").split(".")[0] in _FOREIGN


def is_walked(item: Any) -> bool:
    """Whether an object's attributes belong to the user's state."""
    if isinstance(item, _NOT_STATE) or not isinstance(getattr(item, "__dict__", None), dict):
        return False
    return isinstance(item, _OURS_TO_WALK) or not _is_foreign(type(item).__module__)


def global_flags() -> Undo:
    """Remember the process-wide switches of PyTorch that a user's code can leave changed."""
    grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    device, matmul = default_device(), torch.get_float32_matmul_precision()
    anomaly = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn
    switches = (cudnn.enabled, cudnn.benchmark, cudnn.deterministic)
    autocast = {kind: torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")}

    def undo() -> None:
        if default_device() != device:
            torch.set_default_device(device)
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(matmul)
        torch.autograd.set_detect_anomaly(*anomaly)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = switches
        for kind, on in autocast.items():
            torch.set_autocast_enabled(kind, on)

    return undo
