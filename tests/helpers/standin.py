"""A second device for PyTorch without hardware: its tensors live in the CPU's memory.

PyTorch sees a backend of its own, with two devices, a generator for each, and kernels: those of the
CPU, on the same memory. What would fail on a GPU fails here (tensors of several devices in one
operation, a generator of another device, numbers read without a copy to the host), and every
transfer is counted. Only the first device can compute gradients. There is no way back from
`start`, so it has a process of its own, see `second_device`.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils import backend_registration as registration

NAME, COUNT = "standin", 2
transfers: Counter[str] = Counter()
"""What waited for the device so far: copies ``to host`` and ``to device``, and ``values`` read."""

HAS_FLOAT64 = True
"""Whether the device has double precision; Apple's have none."""


def start() -> None:
    """Register the backend; before the first gradient, for which PyTorch counts its devices."""
    _kept.append(Hooks())
    registration._setup_privateuseone_for_python_backend(NAME, Backend(), _kept[0])
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(_run, "PrivateUse1")
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    own = torch.library.Library("aten", "IMPL")
    for name, op in _never_asked():
        own.impl(name, partial(_run, op), "PrivateUse1")
    for name in ("linear", "conv2d"):
        own.impl(name, _lowered(getattr(torch.ops.aten, name).default), "AutocastPrivateUse1")
    _kept.extend((everything, own))


_kept: list[Any] = []
"""What PyTorch refers to without keeping it."""


# the backend's module -----------------------------------------------------------------------------


class Hooks(torch._C._acc.PrivateUse1Hooks):
    """What PyTorch asks before it uses the backend."""

    def is_available(self) -> bool:
        return True

    def has_primary_context(self, index: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


class Backend:
    """What is there as ``torch.standin``."""

    def __init__(self) -> None:
        self.current = 0
        self.generators = [torch.Generator() for _ in range(COUNT)]

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return COUNT

    def current_device(self) -> int:
        return self.current

    def set_device(self, device: Any) -> None:
        self.current = self._index(device)

    def synchronize(self, device: Any = None) -> None:
        transfers["synchronisations"] += 1

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: Any = NAME) -> torch.Tensor:
        return self.generators[self._index(device)].get_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = NAME) -> None:
        self.generators[self._index(device)].set_state(state)

    def manual_seed(self, seed: int) -> None:
        self.generators[self.current].manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        for generator in self.generators:
            generator.manual_seed(seed)

    def _index(self, device: Any) -> int:
        index = device if isinstance(device, int) else torch.device(device).index
        return self.current if index is None else index


@contextmanager
def _drawing(index: int) -> Iterator[None]:
    """The generator of a device in the place of the CPU's."""
    generator, host = torch.standin.generators[index], torch.get_rng_state()
    torch.set_rng_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(torch.get_rng_state())
        torch.set_rng_state(host)


# memory -------------------------------------------------------------------------------------------


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class _Tensor(ctypes.Structure):
    """The first fields of a tensor in DLPack."""

    _fields_ = (("data", ctypes.c_void_p), ("device", _Device))


_HOST, _OTHER = 1, 12
"""Kinds of devices in DLPack; PyTorch takes the other for its third-party backend."""

_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


def _relabelled(tensor: torch.Tensor, kind: int, index: int) -> torch.Tensor:
    """The same memory as a tensor of another device."""
    capsule = torch.utils.dlpack.to_dlpack(tensor)
    device = _Tensor.from_address(_pointer(capsule, b"dltensor")).device
    device.kind, device.index = kind, index
    return torch.utils.dlpack.from_dlpack(capsule)


# kernels ------------------------------------------------------------------------------------------

_THERE = {*torch._C._dispatch_get_registrations_for_dispatch_key("PrivateUse1")}
_COPIES = ("_to_copy", "clone", "copy")


def _never_asked() -> Iterator[tuple[str, Any]]:
    """Operations with a kernel for all backends, which needs what this one has not.

    It would resize a result, or ask for a convolution of third-party backends. Not those that copy,
    or give a tensor another shape: they come down to what a backend is asked.
    """
    keys = ("CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")
    registered = map(torch._C._dispatch_get_registrations_for_dispatch_key, keys)
    for full in {*chain.from_iterable(registered)} - _THERE:
        name, _, overload = full.removeprefix("aten::").partition(".")
        packet = getattr(torch.ops.aten, name, None) if full.startswith("aten::") else None
        op = getattr(packet, overload or "default", None)
        if op is None or name in _COPIES:
            continue
        if not any(each.alias_info for each in (*op._schema.arguments, *op._schema.returns)):
            yield full.removeprefix("aten::"), op


_HOST_INDICES = ("aten::index", "aten::_index", "aten::_unsafe_index")
"""Operations that take indices from the host, as on a GPU."""


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Any operation, by the CPU's kernel on the same memory."""
    name = op.name()
    if name in ("aten::_copy_from", "aten::_copy_from_and_resize"):
        return _copy(*args[:2])
    leaves, structure = pytree.tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    index = _only_index(name, tensors, [d for d in leaves if isinstance(d, torch.device)])
    given: dict[int, torch.Tensor] = {}

    def to_host(leaf: Any) -> Any:
        if isinstance(leaf, torch.device):
            return torch.device("cpu") if leaf.type == NAME else leaf
        if not (isinstance(leaf, torch.Tensor) and leaf.device.type == NAME):
            return leaf
        host = _relabelled(leaf, _HOST, 0)
        given[id(host)] = leaf
        return host

    def to_device(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if not HAS_FLOAT64 and leaf.dtype is torch.float64:
            raise TypeError(f"{name}: {NAME} has no float64")
        return given[id(leaf)] if id(leaf) in given else _relabelled(leaf, _OTHER, index)

    hosts = [to_host(leaf) for leaf in leaves]
    args, kwargs = pytree.tree_unflatten(hosts, structure)
    generators = [leaf for leaf in leaves if isinstance(leaf, torch.Generator)]
    if any(each._cdata not in _generators for each in generators):
        raise RuntimeError(f"{name}: Expected a {NAME!r} device type for generator but found 'cpu'")
    draws = torch.Tag.nondeterministic_seeded in op.tags
    with _drawing(index) if draws and not generators else nullcontext():
        result = op(*args, **kwargs)
    if _tells_the_host(op, result):
        transfers["values"] += 1
    return pytree.tree_map(to_device, result)


def _copy(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    if not HAS_FLOAT64 and torch.float64 in (source.dtype, target.dtype):
        raise TypeError(f"{NAME} has no float64")
    to_host, to_device = target.device.type != NAME, source.device.type != NAME
    if to_host or to_device:
        transfers["to host" if to_host else "to device"] += 1
    pair = [_relabelled(t, _HOST, 0) if t.device.type == NAME else t for t in (target, source)]
    pair[0].copy_(pair[1])
    return target


def _tells_the_host(op: Any, result: Any) -> bool:
    """Whether the host waits for a value, or for the size of the result."""
    sized = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
    return bool(sized & set(op.tags)) or isinstance(result, (bool, int, float, complex))


def _only_index(name: str, tensors: list[torch.Tensor], asked: list[torch.device]) -> int:
    """The device that an operation is on."""
    there = {t.device for t in tensors if t.dim() or t.device.type == NAME}
    if name.partition(".")[0].startswith(_HOST_INDICES):
        there = {device for device in there if device.type == NAME}
    if len(there) > 1:
        found = " and ".join(sorted(map(str, there)))
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, "
            f"{found}! (when running {name})"
        )
    index = next((device.index for device in (*asked, *there) if device.type == NAME), None)
    return torch.standin.current if index is None else index


def _lowered(op: Any) -> Any:
    """An operation that autocast runs in lower precision."""

    def run(*args: Any, **kwargs: Any) -> Any:
        low = torch.get_autocast_dtype(NAME)

        def lower(leaf: Any) -> Any:
            wide = isinstance(leaf, torch.Tensor) and leaf.dtype is torch.float32
            return leaf.to(low) if wide else leaf

        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*pytree.tree_map(lower, args), **kwargs)

    return run


_generators: dict[int, torch.Generator] = {}


def generator(device: Any = NAME) -> torch.Generator:
    """What ``torch.Generator(device)`` is for a backend that can make one."""
    if torch.device(device).type != NAME:
        return torch.Generator(device)
    made = torch.Generator()
    return _generators.setdefault(made._cdata, made)


class _WithGenerators:
    """PyTorch, with generators for the device."""

    Generator = staticmethod(generator)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def serve_keras() -> None:
    """Let Keras draw from generators of the device."""
    from keras.src.backend.torch import random

    random.torch = _WithGenerators()
