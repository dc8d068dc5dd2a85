"""Batches and outputs of PyTorch: nested containers of tensors."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from pytest_bncheck.adapters.accelerators import has_float64
from pytest_bncheck.adapters.arrays import from_numbers, is_numbers, native, refuse_depth
from pytest_bncheck.adapters.batches import axis_of_samples, like, name_of_output, remix
from pytest_bncheck.adapters.hints import kind
from pytest_bncheck.adapters.targets import KEYS
from pytest_bncheck.types import InputError

if TYPE_CHECKING:
    from pytest_bncheck.types import Array


Raw: TypeAlias = tuple[Tensor, Tensor]
"""Running means and running variances as they are stored, in one tensor each."""


def to_tensors(
    batch: Any, device: torch.device, dtype: torch.dtype | None, *, understood: bool = True
) -> Any:
    """The batch with arrays and numbers as tensors on `device`; floating arrays get `dtype`.

    Tensors of the user keep their dtype and are copied only to another device.

    Parameters
    ----------
    understood
        Whether the check itself gives the batch to the model and the loss. Lists with a number, or
        a row of them, for each sample are then arrays, too.
    """
    refuse_depth(batch)
    paths = {id(leaf): path for path, leaf in leaves(batch)}

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return _usable(leaf, paths[id(leaf)]).to(device)
        if isinstance(leaf, (np.ndarray, np.generic)):
            return _tensor(native(np.asanyarray(leaf), paths[id(leaf)]), device, dtype)
        targets = named_targets(leaf)
        if targets is not None and targets.device != device and hasattr(leaf, "to"):
            return copy.copy(leaf).to(device)
        return leaf

    converted = _map(batch, convert)
    return _with_numbers(converted, device, dtype) if understood else converted


def _with_numbers(batch: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """The batch with tensors for those of its parts that are lists of numbers, one per sample."""
    if not isinstance(batch, (Mapping, tuple, list)):
        return batch
    parts = dict(batch.items() if isinstance(batch, Mapping) else enumerate(batch))
    size = next((len(leaf) for _, leaf in leaves(batch) if _has_axis(leaf)), None)
    for key, part in parts.items():
        if is_numbers(part) and len(part) == (size or len(part)):
            size = len(part)
            parts[key] = _tensor(from_numbers(part, f"[{key!r}]"), device, dtype)
    return parts if isinstance(batch, Mapping) else like(batch, list(parts.values()))


def _tensor(array: np.ndarray[Any, Any], device: torch.device, dtype: torch.dtype | None) -> Tensor:
    if array.dtype.kind == "V":  # bfloat16 and its like, of another package
        array = array.astype(np.float32)
    tensor = torch.tensor(array, device="cpu")
    if tensor.is_floating_point():
        wanted = dtype or torch.get_default_dtype()
    else:
        wanted = torch.bool if array.dtype.kind == "b" else torch.long
    return tensor.to(wanted).to(device)  # in this order: the device may lack the array's type


def _usable(tensor: Tensor, path: str) -> Tensor:
    """A tensor that a model can be trained on."""
    if tensor.is_meta:
        raise InputError("batch: a tensor on the meta device holds no numbers")
    if tensor.is_nested and tensor.layout is torch.strided:
        raise InputError(
            f"batch{path} is a nested tensor of the strided layout, which tells nobody its size; "
            "pass a padded tensor and its mask, or layout=torch.jagged"
        )
    if tensor.is_inference():  # cannot be trained on
        return tensor.clone()
    # Nor must a training reach what the batch was made with.
    return tensor if tensor.is_leaf else tensor.detach().requires_grad_(tensor.requires_grad)


def named_targets(batch: Any) -> Tensor | None:
    """The targets of a batch that is an object with attributes, as of graphs; None of others."""
    if isinstance(batch, (Tensor, Mapping, tuple, list, nn.Module, type)):
        return None
    found = (getattr(batch, key, None) for key in KEYS)
    return next((each for each in found if isinstance(each, Tensor)), None)


def first_half(batch: Any, size: int | None) -> Any:
    """The first half of the samples, or None if a tensor does not have one row per sample."""
    if size is None or size < 2 or not _is_of_tensors(batch):
        return None
    tensors = [leaf for _, leaf in leaves(batch) if _has_axis(leaf)]
    if not all(leaf.layout is torch.strided and leaf.shape[0] == size for leaf in tensors):
        return None
    return _map(batch, lambda leaf: leaf[: size // 2] if _has_axis(leaf) else leaf)


def remixed(batches: Sequence[Any], sizes: Sequence[int]) -> list[tuple[Any, int]]:
    """Batches with their samples mixed, and the size of each; see `remix`."""
    each = [[leaf for _, leaf in leaves(batch) if _has_axis(leaf)] for batch in batches]
    if not all(map(_is_of_tensors, batches)) or any(
        leaf.layout is not torch.strided for own in each for leaf in own
    ):
        return []
    mixed = remix(each, sizes, torch.cat, lambda leaf, rows: leaf[rows])
    return [(_with_leaves(batches[0], new), size) for new, size in mixed]


def _with_leaves(batch: Any, new: Iterable[Tensor]) -> Any:
    """The batch with other tensors that have an axis."""
    rest = iter(new)
    return _map(batch, lambda leaf: next(rest) if _has_axis(leaf) else leaf)


def _is_of_tensors(batch: Any) -> bool:
    """Whether no object in a batch can hold samples that nobody sees, as a graph does."""
    plain = (Tensor, bool, int, float, str, bytes, type(None))
    return all(isinstance(leaf, plain) for _, leaf in leaves(batch))


def _has_axis(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0


def sizes_of(size: int | None, targets: Any) -> tuple[int, ...]:
    """Numbers of samples that an axis of an output can have: the batch's and the targets'."""
    known = [] if size is None else [size]
    if size is not None and isinstance(targets, Tensor) and targets.dim():
        known.append(int(targets.shape[0]))
    return tuple(dict.fromkeys(known))


def float_outputs(outputs: Any, sizes: Sequence[int]) -> dict[str, Array]:
    """Outputs `by_sample` in float64."""
    found = by_sample(outputs, sizes)
    return dict(zip(found, on_host(list(found.values())), strict=True))


def on_host(tensors: Sequence[Tensor]) -> list[Array]:
    """Copies in float64, in one transfer for all tensors of a type on a device."""
    found: dict[int, Array] = {}
    for members in _alike(tensors):
        flat = torch.cat([tensors[k].detach().reshape(-1) for k in members])
        host = flat.cpu().double().numpy()
        ends = np.cumsum([tensors[k].numel() for k in members])[:-1]
        for k, values in zip(members, np.split(host, ends), strict=True):
            found[k] = values.reshape(tensors[k].shape)
    return [found[k] for k in range(len(tensors))]


def _alike(tensors: Sequence[Tensor]) -> Iterable[list[int]]:
    """The places of tensors, those of one type on one device together."""
    found: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for k, tensor in enumerate(tensors):
        found.setdefault((tensor.device, tensor.dtype), []).append(k)
    return found.values()


def on_device(array: Array, like: Tensor) -> Tensor:
    """An array as a tensor of the type and on the device of another.

    In this order: the device may lack the array's type.
    """
    return torch.as_tensor(array, device="cpu").to(like.dtype).to(like.device)


def fill(tensors: Sequence[Tensor], arrays: Sequence[Array]) -> None:
    """Write arrays to tensors, in one transfer for all tensors of a type on a device."""
    for members in _alike(tensors):
        flat = np.concatenate([np.asarray(arrays[k], np.float64).reshape(-1) for k in members])
        moved = on_device(flat, tensors[members[0]])
        parts = torch.split_with_sizes(moved, [tensors[k].numel() for k in members])
        for k, part in zip(members, parts, strict=True):
            tensors[k].data.copy_(part.reshape(tensors[k].shape))


def by_sample(outputs: Any, sizes: Sequence[int]) -> dict[str, Tensor]:
    """Every floating output that has an axis, by its path; the samples on the leading axis.

    Where none holds the samples, it is flat.
    """
    found = {}
    for path, leaf, axis in _floating(outputs, sizes):
        found[path] = leaf.reshape(-1) if axis is None else leaf.movedim(axis, 0)
    return found


def without_rows(outputs: Any, sizes: Sequence[int]) -> frozenset[str]:
    """The paths of `by_sample` whose leading axis is not the batch's in the output itself."""
    return frozenset(
        path
        for path, leaf, axis in _floating(outputs, sizes)
        if axis != 0 or (sizes and leaf.shape[0] != sizes[0])
    )


def _floating(outputs: Any, sizes: Sequence[int]) -> Iterator[tuple[str, Tensor, int | None]]:
    refuse_depth(outputs, "outputs")
    for path, each in leaves(outputs):
        leaf = _numbers(each)
        if leaf is not None:
            leaf = torch.view_as_real(leaf.resolve_conj()) if leaf.is_complex() else leaf
            axis = axis_of_samples(leaf.shape, sizes)
            yield name_of_output(path or "output", leaf.shape, axis), leaf, axis


def mean_output(outputs: Any, sizes: Sequence[int]) -> Any:
    """The same outputs with every sample's replaced by the mean over the batch.

    None where no output has an axis of samples.
    """
    axes = [axis for _, _, axis in _floating(outputs, sizes)]
    if all(axis is None for axis in axes):
        return None

    def mean(leaf: Any) -> Any:
        found = _numbers(leaf)
        axis = None if found is None else axis_of_samples(found.shape, sizes)
        if found is None or axis is None:
            return leaf
        return found.mean(dim=axis, keepdim=True).expand_as(found).contiguous()

    return _map(outputs, mean)


def _numbers(leaf: Any) -> Tensor | None:
    """A tensor of floating or complex numbers that has an axis, not sparse; None for the rest."""
    if not isinstance(leaf, Tensor) or leaf.is_nested or not leaf.dim():
        return None
    if not (leaf.is_floating_point() or leaf.is_complex()):
        return None
    numbers = dense(leaf)
    return numbers.float() if leaf.dtype.itemsize == 1 else numbers  # nothing adds up in 8 bits


def dense(tensor: Tensor) -> Tensor:
    """A tensor with all its numbers, also those that a sparse one does not hold."""
    strided: Tensor = tensor if tensor.layout is torch.strided else tensor.to_dense()
    return strided


def widest(device: torch.device) -> torch.dtype:
    """The type that a device counts in: double precision where it has that."""
    return torch.float64 if has_float64(device.type) else torch.float32


def dtype_name(dtype: torch.dtype | None) -> str:
    """A type's name as frameworks share it: ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def describe(outputs: Any) -> str:
    """The structure of outputs: paths, shapes, dtypes."""
    return "; ".join(
        f"{path}{tuple(leaf.shape)}{leaf.dtype}"
        if isinstance(leaf, Tensor) and not leaf.is_nested
        else f"{path}:{kind(leaf)}"
        for path, leaf in leaves(outputs)
    )


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of nested containers and dataclasses with its path."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{path}[{key!r}]")
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for name in _fields(value):
            yield from leaves(getattr(value, name), f"{path}.{name}")
    else:
        yield path, value


def _map(value: Any, convert: Callable[[Any], Any]) -> Any:
    """`value` with every leaf converted; containers keep their type."""
    if isinstance(value, MutableMapping):
        mapped: Any = copy.copy(value)
        for key, item in value.items():
            mapped[key] = _map(item, convert)
        return mapped
    if isinstance(value, Mapping):
        return {key: _map(item, convert) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return like(value, [_map(item, convert) for item in value])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        mapped = copy.copy(value)
        for name in _fields(value):
            object.__setattr__(mapped, name, _map(getattr(value, name), convert))
        return mapped
    return convert(value)


def _fields(value: Any) -> list[str]:
    """The fields of a dataclass that are set."""
    names = (field.name for field in dataclasses.fields(value))
    return [name for name in names if hasattr(value, name)]
