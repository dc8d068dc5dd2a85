"""Batches and outputs of PyTorch, nested containers of tensors, and where they are."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pytest_bncheck.types import InputError

if TYPE_CHECKING:
    from pytest_bncheck.types import Array


def to_tensors(batch: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """The batch with arrays and numbers as tensors on `device`; floating arrays get `dtype`.

    The user's own tensors keep their dtype and are not copied without need.
    """

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.to(device)
        if isinstance(leaf, (np.ndarray, np.generic)):
            array = np.asarray(leaf)
            if array.dtype.kind not in "fiub":
                raise InputError(
                    f"batch: an array of dtype {array.dtype} cannot become a torch tensor"
                )
            tensor = torch.tensor(array, device=device)
            if tensor.is_floating_point():
                return tensor.to(dtype or torch.get_default_dtype())
            return tensor if array.dtype.kind == "b" else tensor.long()
        return leaf

    return _map(batch, convert)


def split(batch: Any) -> tuple[Any, Any]:
    """Inputs and targets of a batch.

    A pair is (inputs, targets); of a dict, ``labels``, ``targets`` or ``target`` are the targets
    and also stay among the inputs of a model that returns its own loss.

    Raises
    ------
    InputError
        If the batch is neither.
    """
    if isinstance(batch, Mapping):
        for key in ("labels", "targets", "target"):
            if key in batch:
                return dict(batch), batch[key]
        return dict(batch), None
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    raise InputError(
        f"batch: expected (inputs, targets) or a dict, got {_name(batch)}; for anything else "
        "pass forward= and train_step=, or override bncheck_forward and bncheck_train_step"
    )


def batch_length(batch: Any) -> int:
    """Samples in the batch: the leading axis of its first tensor.

    Raises
    ------
    InputError
        If there is none.
    """
    for _, leaf in leaves(batch):
        if isinstance(leaf, Tensor) and leaf.dim():
            if leaf.shape[0] == 0:
                raise InputError("batch: it holds no sample (its leading axis has length 0)")
            return int(leaf.shape[0])
    raise InputError(f"batch: no tensor or array in {_name(batch)}; expected (inputs, targets)")


def first_half(batch: Any, size: int) -> Any:
    """The first half of the samples, or None if something in the batch is not cut by samples."""
    tensors = [leaf for _, leaf in leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()]
    if size < 2 or any(leaf.shape[0] != size for leaf in tensors):
        return None
    return _map(
        batch, lambda leaf: leaf[: size // 2] if isinstance(leaf, Tensor) and leaf.dim() else leaf
    )


def float_outputs(outputs: Any, size: int) -> dict[str, Array]:
    """Every floating output whose leading axis is the batch, in float64, by its path."""
    return {
        path or "output": leaf.detach().cpu().double().numpy()
        for path, leaf in leaves(outputs)
        if isinstance(leaf, Tensor)
        and leaf.is_floating_point()
        and leaf.dim()
        and leaf.shape[0] == size
    }


def mean_output(outputs: Any) -> Any:
    """The same outputs with every sample's replaced by the mean over the batch, or None."""
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point() or not outputs.dim():
        return None
    return outputs.mean(dim=0, keepdim=True).expand_as(outputs)


def describe(outputs: Any) -> str:
    """The structure of outputs: paths, shapes, dtypes."""
    return "; ".join(
        f"{path}{tuple(leaf.shape)}{leaf.dtype}"
        if isinstance(leaf, Tensor)
        else f"{path}:{_name(leaf)}"
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


def _map(value: Any, convert: Callable[[Any], Any]) -> Any:
    """`value` with every leaf converted; named tuples and mappings keep their type."""
    if isinstance(value, dict):
        return {key: _map(item, convert) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(item, convert) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_map(item, convert) for item in value)
    return convert(value)


def _name(value: Any) -> str:
    kind = type(value).__name__
    return f"a {kind} of {len(value)}" if isinstance(value, (tuple, list)) else f"a {kind}"


def rounding(dtype: torch.dtype | None, device: torch.device) -> float:
    """The relative difference that another batch size alone makes, with room to spare.

    About 1e-6 to 1e-5 in float32 on a CPU; TF32 on a GPU keeps three digits.
    """
    if dtype in (torch.float16, torch.bfloat16):
        return 5e-2
    return 1e-4 if device.type == "cpu" else 1e-2


def find_device(wish: str) -> torch.device:
    """The device of that name; under xdist, ``cuda`` and ``auto`` spread the workers over all.

    Raises
    ------
    InputError
        If there is no such device.
    """
    there = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
    there += ["mps"] if torch.backends.mps.is_available() else []
    spread = [name for name in there if name.startswith("cuda")]
    if wish == "auto":
        wish = "cuda" if spread else there[-1]
    if wish == "cuda" and spread:
        worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
        wish = spread[(int(worker) if worker.isdigit() else 0) % len(spread)]
    if wish not in there:
        raise InputError(f"device: {wish!r} is not there; this machine has {', '.join(there)}")
    return torch.device(wish)
