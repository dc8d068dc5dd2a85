"""The processes that train one model together: DistributedDataParallel, FSDP, SyncBatchNorm.

A collective entered by one process only deadlocks. So every pass that talks to the others is made
by all, and what decides on such a pass is decided together.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pytest_bncheck.adapters.torch.data import Raw


class Replicas:
    """The processes that train the same model, possibly only this one.

    Attributes
    ----------
    count
        Processes, at least 1.
    follows
        True if this process gets its running statistics from the first one.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self._wrappers = [m for m in modules if isinstance(m, DistributedDataParallel)]
        kinds = (nn.SyncBatchNorm, *_fsdp("FSDPModule", "FullyShardedDataParallel"))
        shared = self._wrappers or any(isinstance(m, kinds) for m in modules)
        joined = bool(shared) and dist.is_available() and dist.is_initialized()
        self._group: Any = dist.group.WORLD if joined else None
        if self._wrappers:
            self._group = self._wrappers[0].process_group
        self.count = dist.get_world_size(self._group) if joined else 1
        self._first = dist.get_global_rank(self._group, 0) if joined else 0
        self._broadcasts = self.count > 1 and any(w.broadcast_buffers for w in self._wrappers)
        self.follows = self._broadcasts and dist.get_rank(self._group) > 0

    def agree(self, value: bool, device: torch.device) -> bool:
        """Whether `value` is true in every process."""
        if self.count == 1:
            return value
        votes = torch.tensor(float(value), device=device)
        dist.all_reduce(votes, dist.ReduceOp.MIN, self._group)
        return bool(votes > 0)

    def stop_broadcasts(self) -> None:
        """Broadcast the buffers as the next forward would, and switch off further broadcasts.

        A forward in eval mode would overwrite them with those of the first process.
        """
        for wrapper in self._wrappers if self.count > 1 else ():
            if wrapper.broadcast_buffers:
                for buffer in wrapper.module.buffers():
                    dist.broadcast(buffer.data, self._first, self._group)
            wrapper.broadcast_buffers = False

    def broadcast(self, raw: Raw) -> Raw:
        """The first process's statistics where they are broadcast, otherwise those given."""
        if self._broadcasts:
            raw = raw[0].clone(), raw[1].clone()
            for tensor in raw:
                dist.broadcast(tensor, self._first, self._group)
        return raw

    def gather(self, raw: Raw) -> list[Raw]:
        """The statistics of every process; an empty list for a single process."""
        if self.count == 1:
            return []
        found = []
        for tensor in raw:
            each = [torch.empty_like(tensor) for _ in range(self.count)]
            dist.all_gather(each, tensor.contiguous(), self._group)
            found.append(each)
        return list(zip(*found, strict=True))


def sharded_modules(model: nn.Module) -> list[Any]:
    """The modules of `fully_shard`, which gather their parameters for a time."""
    return [m for m in model.modules() if isinstance(m, _fsdp("FSDPModule"))]


def shard_again(modules: Iterable[Any]) -> None:
    """Let modules hold their shards of the parameters, as before a forward.

    The outermost waits for a backward pass, and whoever reads or puts back its parameters would
    find others.
    """
    for module in modules:
        module.reshard()


def _fsdp(*names: str) -> tuple[type, ...]:
    """Classes of FSDP, if the user imported it."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return tuple(getattr(fsdp, name) for name in names if hasattr(fsdp, name))
