"""Remember a PyTorch model and everything it refers to, and put it back bit for bit.

The walk of `graph.py`, from the model and the user's functions, with what PyTorch adds: modules
(also those kept in plain lists), tensors, generators, optimizers.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils.prune import BasePruningMethod

from pytest_bncheck.adapters.containers import members_of, refill
from pytest_bncheck.adapters.graph import Graph, is_open
from pytest_bncheck.adapters.loaders import remember_generators
from pytest_bncheck.adapters.objects import remember_class_attributes
from pytest_bncheck.adapters.torch.internals import (
    as_plain_tensors,
    buffers_by_name,
    global_hooks,
    hooks_of,
    parameters_by_name,
    plain_name,
    registries,
    script_attributes,
    set_hooks,
    set_version,
    version_of,
)
from pytest_bncheck.adapters.torch.switches import global_flags
from pytest_bncheck.adapters.undo import Undo, run_all

WALKED = (
    nn.Module,
    torch.Tensor,
    torch.optim.Optimizer,
    torch.optim.lr_scheduler.LRScheduler,
    torch.amp.GradScaler,
    torch.quasirandom.SobolEngine,
    torch.distributions.Distribution,
    torch.distributions.Transform,
    BasePruningMethod,
)
_DATA = (torch.utils.data.Dataset, torch.utils.data.DataLoader, torch.utils.data.Sampler)
_PASSED_BY = (*Graph.passed_by, *_DATA)


class Snapshot(Graph):
    """The state of everything reachable from `roots`, remembered on construction.

    Attributes
    ----------
    paths
        The shortest path to each module from the first root: ``encoder.blocks[1].norm``.
    values
        The values of every tensor, by its id.
    """

    walked, passed_by = WALKED, _PASSED_BY

    def __init__(self, *roots: Any) -> None:
        super().__init__()
        self.paths: dict[nn.Module, str] = {}
        self.values: dict[int, torch.Tensor] = {}
        self._modes: list[tuple[nn.Module, bool]] = []
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._same: set[int] = set()
        with as_plain_tensors():
            self.walk(roots)
        hooks = [(held, members_of(held)) for held in global_hooks()]
        self._undo += [partial(refill, held, items) for held, items in hooks]
        self._undo.append(global_flags())  # put back first: the default device rules every call
        self._undo.insert(0, self._put_modes_back)  # last: an attribute may decide what a mode is

    def reached(self, item: Any, path: str) -> None:
        if isinstance(item, nn.Module):
            self.paths[item] = plain_name(path.removeprefix("."))
            with suppress(AttributeError, RuntimeError):  # a module that was never set up
                self._modes.append((item, item.training))

    def remember(self, item: Any) -> Undo | None:
        if isinstance(item, torch.jit.ScriptModule):
            return _remember_script(item)
        if _is_made_for_one(item):
            return remember_class_attributes(item)
        if isinstance(item, torch.Tensor) and _has_numbers(item):
            if item.is_inference():
                return _remember_inference(item)
            data = item.data
            values = self.values[id(item)] = data.clone()
            self._kept.append((data, values))
            return _remember_tensor(item, data, values, self._same)
        if isinstance(item, _DATA):
            return partial(run_all, remember_generators(item))
        return remember_object(item)

    def attributes(self, item: Any) -> list[dict[str, Any]]:
        own = registries(item) if isinstance(item, nn.Module) else []
        return [*own, *super().attributes(item)]

    def children(self, item: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(item, torch.jit.ScriptModule):
            yield from (("", t) for t in (*item.parameters(), *item.buffers()))
            yield from ((f".{name}", child) for name, child in item.named_children())
            yield from ((f".{name}", value) for name, value in script_attributes(item).items())
            return
        if isinstance(item, torch.Tensor):
            gradient = _gradient_of(item)
            yield from ((".grad", each) for each in (gradient,) if each is not None)
            yield from (("", hook) for held, _ in hooks_of(item).values() for hook in _in(held))
            yield from (("", scale) for scale in _scales_of(item))
        if _is_made_for_one(type(item)):
            yield "", type(item)
        yield from super().children(item)

    def _put_modes_back(self) -> None:
        for module, training in self._modes:
            if module.training != training:
                module.training = training

    def unchanged(self, tensors: Iterable[torch.Tensor]) -> list[bool]:
        """Whether each tensor still holds the values that were remembered, in one transfer."""
        pairs = [(tensor, self.values.get(id(tensor))) for tensor in tensors]
        alike = [then is not None and then.shape == now.shape for now, then in pairs]
        same = [
            equal(now.detach(), then.to(now.device))
            for (now, then), comparable in zip(pairs, alike, strict=True)
            if comparable and then is not None
        ]
        values = iter(
            torch.stack([each.to(same[0].device) for each in same]).tolist() if same else ()
        )
        return [comparable and bool(next(values)) for comparable in alike]

    def restore(self) -> None:
        """Put everything back. May be called once."""
        try:
            with as_plain_tensors():
                self._same.update(_ids_of_same(self._kept))
                self.undo_all()
        finally:
            self.values.clear()
            self._kept.clear()


class BesidesLazy(Snapshot):
    """As `Snapshot`, without the modules whose parameters a first pass has yet to make."""

    def remember(self, item: Any) -> Undo | None:
        return None if is_lazy(item) else super().remember(item)

    def attributes(self, item: Any) -> list[dict[str, Any]]:
        return [] if is_lazy(item) else super().attributes(item)

    def children(self, item: Any) -> Iterator[tuple[str, Any]]:
        return iter(()) if is_lazy(item) else super().children(item)

    def _is_open(self, item: Any) -> bool:
        return not is_lazy(item) and super()._is_open(item)


def is_lazy(item: Any) -> bool:
    """Whether it is a parameter that has no values yet, or a module with one of its own."""
    if isinstance(item, nn.Module):
        held = (*parameters_by_name(item).values(), *buffers_by_name(item).values())
        return any(each is not None and nn.parameter.is_lazy(each) for each in held)
    return isinstance(item, torch.Tensor) and nn.parameter.is_lazy(item)


_MAKERS = (nn.utils.parametrize.__name__, torch.fx.GraphModule.__module__)


def _is_made_for_one(item: Any) -> bool:
    """Whether it is the class that a module got with its first parametrization, or its graph."""
    is_module = isinstance(item, type) and issubclass(item, nn.Module)
    return is_module and item.__module__ in _MAKERS


def _gradient_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """What a tensor keeps from a backward pass: those between the layers keep it on demand."""
    return tensor.grad if tensor.is_leaf or tensor.retains_grad else None


def _scales_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """What the numbers of a quantized tensor are multiplied by and moved by, per channel."""
    if not tensor.is_quantized or tensor.qscheme() not in _PER_CHANNEL:
        return []
    return [tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()]


_PER_CHANNEL = (torch.per_channel_affine, torch.per_channel_affine_float_qparams)


def _in(hooks: dict[int, Any] | None) -> Iterable[Any]:
    return (hooks or {}).values()


def is_walked(item: Any) -> bool:
    """Whether an object's attributes belong to the user's state."""
    return is_open(item, WALKED, _PASSED_BY)


def remember_object(item: Any) -> Undo | None:
    """How to put back a tensor, its memory or a generator of random numbers; None for others."""
    if isinstance(item, torch.Generator):
        state = item.get_state()
        return lambda: item.set_state(state)
    if isinstance(item, torch.UntypedStorage):
        return _remember_storage(item)
    if isinstance(item, torch.Tensor) and _has_numbers(item):
        if item.is_inference():
            return _remember_inference(item)
        data, values, same = item.data, item.data.clone(), set[int]()
        undo = _remember_tensor(item, data, values, same)

        def compare_and_undo() -> None:
            same.update(_ids_of_same([(data, values)]))
            undo()

        return compare_and_undo
    return None


def _remember_script(module: torch.jit.ScriptModule) -> Undo:
    """How to put back the attributes that a compiled module keeps outside of Python."""
    before = script_attributes(module)

    def undo() -> None:
        for name, value in script_attributes(module).items():
            if name in before and not _is_same(before[name], value):
                setattr(module, name, before[name])

    return undo


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return one is other
    try:
        return bool(one == other)
    except RuntimeError:  # a list with another tensor
        return False


def _remember_storage(item: Any) -> Undo:
    """How to put back memory that is held without a tensor."""
    before = item.clone()

    def undo() -> None:
        if item.nbytes() != before.nbytes():
            item.resize_(before.nbytes())
        item.copy_(before)

    return undo


def _has_numbers(tensor: torch.Tensor) -> bool:
    """Whether a tensor has values to put back: some have none yet, some cannot change."""
    if nn.parameter.is_lazy(tensor) or tensor.is_meta:
        return False
    return tensor.numel() == 0 or not _is_freed(tensor)


def is_readable(value: Any) -> bool:
    """Whether it is a tensor with a shape and with memory: nested ones have no shape."""
    if not isinstance(value, torch.Tensor):
        return False
    try:
        if value.is_nested or value.is_meta:
            return False
        return value.numel() == 0 or not _is_freed(value)
    except Exception:  # what a user's class of tensors raises for anything that it does not know
        return False


def _is_freed(tensor: torch.Tensor) -> bool:
    """Whether a tensor's memory was given up, as sharded training does between its steps."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        return False
    try:
        return tensor.untyped_storage().nbytes() == 0
    except (NotImplementedError, RuntimeError):  # a tensor without memory of its own
        return False


def _remember_tensor(
    tensor: torch.Tensor, data: torch.Tensor, values: torch.Tensor, same: Container[int]
) -> Undo:
    """How to put back values, storage, gradient, flags and hooks of a tensor.

    Parameters
    ----------
    data
        Written in place of the tensor itself, so that a graph the user still holds stays valid.
    same
        Ids of the `data` that holds its values still, looked at when all is put back.
    """
    wanted, version = tensor.requires_grad, version_of(tensor)
    gradient, hooks = _gradient_of(tensor), hooks_of(tensor)

    def undo() -> None:
        if id(data) not in same:
            overwrite(data, values)
        if _moved(tensor, data) or data.layout is not torch.strided:
            tensor.data = data
        if tensor.is_leaf or tensor.retains_grad:
            tensor.grad = gradient
        if tensor.is_leaf and tensor.requires_grad != wanted:
            tensor.requires_grad_(wanted)
        set_hooks(tensor, hooks)
        set_version(tensor, version)

    return undo


def _remember_inference(tensor: torch.Tensor) -> Undo:
    """How to put back a tensor that has no part in autograd, made under `inference_mode`."""
    with torch.inference_mode():
        data, values = tensor.data, tensor.clone()

    def undo() -> None:
        with torch.inference_mode():
            if not bool(equal(data, values)):
                overwrite(data, values)
            if _moved(tensor, data):
                tensor.data = data

    return undo


def overwrite(data: torch.Tensor, values: torch.Tensor) -> None:
    """Write values to a tensor's memory, also where `expand` made it one for many elements."""
    if data.layout is torch.strided and not data.is_nested:
        if values.numel() and _is_freed(data):
            highest = sum((n - 1) * s for n, s in zip(data.shape, data.stride(), strict=True))
            needed = int(data.storage_offset() + highest + 1) * data.element_size()
            data.untyped_storage().resize_(needed)
        for dim, stride in enumerate(data.stride()):
            if stride == 0:  # torch refuses to write one place several times
                data, values = data.narrow(dim, 0, 1), values.narrow(dim, 0, 1)
    data.copy_(values)


def are_on_cpu(*tensors: torch.Tensor) -> bool:
    """Whether the processor can read tensors without a transfer from a device."""
    return all(tensor.is_cpu for tensor in tensors)


_PLAIN = {torch.float32, torch.float64}


def equal(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Equality in which NaN equals itself; still on the device."""
    left, right = local(left), local(right)
    if left.is_nested or right.is_nested:
        pairs = zip(left.unbind(), right.unbind(), strict=True)
        same = [a.shape == b.shape and equal(a, b) for a, b in pairs]
        return torch.tensor(all(map(bool, same)))
    if left.layout is not torch.strided:
        left, right = left.to_dense(), right.to_dense()
    if left.shape != right.shape:
        return torch.tensor(False)
    if left.dtype == right.dtype and left.dtype in _PLAIN and are_on_cpu(left, right):
        if torch.equal(left, right):  # makes no other tensor
            return torch.tensor(True)
        if not _equal(_few(left), _few(right)):  # as of nearly all weights after a step
            return torch.tensor(False)
    return _equal(left, right)


def _equal(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return ((left == right) | ((left != left) & (right != right))).all()


def _few(tensor: torch.Tensor) -> torch.Tensor:
    """Some elements of a tensor, without a copy."""
    for dim, size in enumerate(tensor.shape):
        tensor = tensor.narrow(dim, 0, min(size, 4))
    return tensor


def local(tensor: Any) -> torch.Tensor:
    """The part of a tensor that this process holds, of those that are sharded; else the whole.

    To compare wholes would be a collective, and a process may be alone in having to restore.
    """
    part: torch.Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return part


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether several processes hold parts of a tensor: a DTensor."""
    return hasattr(tensor, "to_local")


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _ids_of_same(kept: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[int]:
    """The ids of tensors that still hold these values, in one transfer from the device."""
    known, flags = [], []
    for data, values in kept:
        plain = data.layout is torch.strided and not data.is_nested and not data.is_quantized
        if plain and data.numel() and not _is_freed(data):
            with suppress(RuntimeError):  # a tensor that computes nothing
                flags.append(_same_bits(data, values))
                known.append(data)
    if flags:
        told = torch.stack([flag.to(flags[0].device) for flag in flags]).tolist()
        yield from (id(data) for data, same in zip(known, told, strict=True) if same)


def _same_bits(data: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Whether two tensors are the same, NaN and the sign of zero included; on the device."""
    data, values = local(data), local(values)
    data, values = data.resolve_neg().resolve_conj(), values.resolve_neg().resolve_conj()
    if data.is_complex():
        data, values = torch.view_as_real(data), torch.view_as_real(values)
    bits = _BITS[data.element_size()]
    data, values = data.view(bits), values.view(bits)
    if are_on_cpu(data, values):
        return torch.tensor(torch.equal(data, values))
    return (data == values).all()


def _moved(tensor: torch.Tensor, data: torch.Tensor) -> bool:
    """Whether a tensor has other storage than it had, after ``model.to`` for example."""
    if tensor.is_nested or data.is_nested:
        return False
    if tensor.device != data.device or tensor.dtype != data.dtype or tensor.shape != data.shape:
        return True
    if tensor.layout is not torch.strided:
        return False
    turned = tensor.stride() != data.stride() or tensor.is_conj() != data.is_conj()
    return turned or tensor.data_ptr() != data.data_ptr()
