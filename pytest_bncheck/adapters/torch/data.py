"""Batches and outputs of PyTorch: nested containers of tensors."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pytest_bncheck.adapters.batches import axis_of_samples, name_of_output, remix
from pytest_bncheck.adapters.hints import kind
from pytest_bncheck.types import InputError

if TYPE_CHECKING:
    from pytest_bncheck.types import Array


Raw: TypeAlias = tuple[Tensor, Tensor]
"""Running means and running variances as they are stored, in one tensor each."""


def to_tensors(batch: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """The batch with arrays and numbers as tensors on `device`; floating arrays get `dtype`.

    Tensors of the user keep their dtype and are copied only to another device.
    """

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            if leaf.is_meta:
                raise InputError("batch: a tensor on the meta device holds no numbers")
            # What inference mode made cannot be trained on.
            if leaf.is_inference():
                return leaf.clone().to(device)
            # Nor must a training reach what the batch was made with.
            own = leaf if leaf.is_leaf else leaf.detach().requires_grad_(leaf.requires_grad)
            return own.to(device)
        if isinstance(leaf, (np.ndarray, np.generic)):
            array = np.asarray(leaf)
            if array.dtype.kind not in "fiub":
                raise InputError(
                    f"batch: an array of dtype {array.dtype} cannot become a torch tensor"
                )
            tensor = torch.tensor(_native(array), device=device)
            if tensor.is_floating_point():
                return tensor.to(dtype or torch.get_default_dtype())
            return tensor if array.dtype.kind == "b" else tensor.long()
        return leaf

    return _map(batch, convert)


def _native(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An array as torch takes it: in the machine's order of bytes, without negative strides."""
    wide = array.dtype.kind == "f" and array.dtype.itemsize > 8
    dtype = np.dtype(np.float64) if wide else array.dtype.newbyteorder("=")
    return np.ascontiguousarray(array, dtype=dtype).reshape(array.shape)


def first_half(batch: Any, size: int | None) -> Any:
    """The first half of the samples, or None if a tensor does not have one row per sample."""
    tensors = [leaf for _, leaf in leaves(batch) if _has_axis(leaf)]
    sliceable = (leaf.shape[0] == size and leaf.layout is torch.strided for leaf in tensors)
    if size is None or size < 2 or not all(sliceable):
        return None
    return _map(batch, lambda leaf: leaf[: size // 2] if _has_axis(leaf) else leaf)


def remixed(batches: Sequence[Any], sizes: Sequence[int]) -> list[tuple[Any, int]]:
    """Batches with their samples mixed, and the size of each; see `remix`."""
    each = [[leaf for _, leaf in leaves(batch) if _has_axis(leaf)] for batch in batches]
    if any(leaf.layout is not torch.strided for batch in each for leaf in batch):
        return []
    mixed = remix(each, sizes, torch.cat, lambda leaf, rows: leaf[rows])
    return [(_with_leaves(batches[0], new), size) for new, size in mixed]


def _with_leaves(batch: Any, new: Iterable[Tensor]) -> Any:
    """The batch with other tensors that have an axis."""
    rest = iter(new)
    return _map(batch, lambda leaf: next(rest) if _has_axis(leaf) else leaf)


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
    alike: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for k, tensor in enumerate(tensors):
        alike.setdefault((tensor.device, tensor.dtype), []).append(k)
    found: dict[int, Array] = {}
    for members in alike.values():
        flat = torch.cat([tensors[k].detach().reshape(-1) for k in members])
        host = flat.cpu().double().numpy()
        ends = np.cumsum([tensors[k].numel() for k in members])[:-1]
        for k, values in zip(members, np.split(host, ends), strict=True):
            found[k] = values.reshape(tensors[k].shape)
    return [found[k] for k in range(len(tensors))]


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
    for path, leaf in leaves(outputs):
        if _is_floating(leaf):
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
        axis = axis_of_samples(leaf.shape, sizes) if _is_floating(leaf) else None
        if axis is None:
            return leaf
        return leaf.mean(dim=axis, keepdim=True).expand_as(leaf).contiguous()

    return _map(outputs, mean)


def _is_floating(leaf: Any) -> bool:
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or leaf.is_nested:
        return False
    if leaf.layout is not torch.strided:
        return False
    return leaf.dim() > 0 and leaf.element_size() > 1  # nothing computes with 8 bits


def dtype_name(dtype: torch.dtype | None) -> str:
    """A type's name as frameworks share it: ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def describe(outputs: Any) -> str:
    """The structure of outputs: paths, shapes, dtypes."""
    return "; ".join(
        f"{path}{tuple(leaf.shape)}{leaf.dtype}"
        if isinstance(leaf, Tensor)
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
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name), f"{path}.{field.name}")
    else:
        yield path, value


def _like(value: tuple[Any, ...] | list[Any], items: list[Any]) -> Any:
    """A sequence of the same type with other items, past a constructor that takes others."""
    if isinstance(value, tuple):
        return tuple.__new__(type(value), items)
    mapped = copy.copy(value)
    list.__setitem__(mapped, slice(None), items)
    return mapped


def _map(value: Any, convert: Callable[[Any], Any]) -> Any:
    """`value` with every leaf converted; containers keep their type."""
    if isinstance(value, MutableMapping):
        mapped: Any = copy.copy(value)
        for key, item in value.items():
            mapped[key] = _map(item, convert)
        return mapped
    if isinstance(value, Mapping):
        return {key: _map(item, convert) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(item, convert) for item in value))
    if isinstance(value, (tuple, list)):
        return _like(value, [_map(item, convert) for item in value])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        mapped = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(mapped, field.name, _map(getattr(value, field.name), convert))
        return mapped
    return convert(value)
