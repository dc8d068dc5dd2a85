"""How often each layer with running statistics ran, in which mode and on what; from hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from pytest_bncheck.adapters.torch.data import Raw
from pytest_bncheck.types import Calls

_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


@dataclass
class StepRecord:
    """The calls of one layer in one training step.

    Attributes
    ----------
    earlier
        Calls with batch statistics in the steps before.
    sizes
        Values per channel and samples of each call.
    between
        Running mean and variance before each call but the first.
    """

    earlier: int
    sizes: list[tuple[int, int]] = field(default_factory=list)
    between: list[Raw] = field(default_factory=list)


class CallCounter:
    """Counts the calls of layers.

    Parameters
    ----------
    layers
        The layers by name.
    is_constant
        Whether a layer, by its name, ignores the mode and always uses its running statistics.

    Attributes
    ----------
    last
        The layer that last started to normalise with batch statistics.
    order
        Names of the layers in the order in which they first ran.
    values
        Values per channel in each layer's last call with batch statistics.
    after_trainable
        Names of the layers whose input needed a gradient.
    step
        Calls in the last training step, by the layer's name.
    """

    def __init__(self, layers: Mapping[str, Any], is_constant: Callable[[str], bool]) -> None:
        self._layers, self._is_constant = layers, is_constant
        self.last: str | None = None
        self.order: dict[str, None] = {}
        self.values: dict[str, int] = {}
        self.after_trainable: set[str] = set()
        self.step: dict[str, StepRecord] = {}
        self._in_step = False
        self.reset()

    def watch(self) -> None:
        """Count the calls of every layer from now on."""
        for name, module in self._layers.items():
            module.register_forward_pre_hook(self._hook(name))

    def reset(self) -> None:
        """Set all counts to zero."""
        self._training = dict.fromkeys(self._layers, 0)
        self._inference = dict.fromkeys(self._layers, 0)

    def counted(self) -> Calls:
        """Calls since `reset`, in the order of the layers; the values are those seen last."""
        return Calls(
            tuple(self._training[name] for name in self._layers),
            tuple(self._inference[name] for name in self._layers),
            tuple(self.values.get(name) for name in self._layers),
        )

    @contextmanager
    def during_step(self) -> Iterator[None]:
        """Record every call in a training step; the record of the last one is dropped."""
        self.step, self._in_step = {}, True
        try:
            yield
        finally:
            self._in_step = False

    @contextmanager
    def keeping_values(self) -> Iterator[None]:
        """For passes over batches of other sizes: keep the numbers of values seen in training."""
        values = dict(self.values)
        try:
            yield
        finally:
            self.values = values

    def _hook(self, name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def count(module: Any, args: tuple[Any, ...]) -> None:
            self.order.setdefault(name)
            if not module.training or self._is_constant(name):
                self._inference[name] += 1
                return
            if args and isinstance(args[0], Tensor):
                n = self.values[name] = _values_per_channel(module, args[0])
                if self._in_step:
                    self._record(name, module, (n, args[0].shape[0]))
                if args[0].requires_grad:
                    self.after_trainable.add(name)
            self._training[name] += 1
            self.last = name

        return count

    def _record(self, name: str, module: Any, size: tuple[int, int]) -> None:
        record = self.step.setdefault(name, StepRecord(self._training[name]))
        if record.sizes:
            raw = module.running_mean.detach().clone(), module.running_var.detach().clone()
            record.between.append(raw)
        record.sizes.append(size)


def _values_per_channel(module: Any, values: Tensor) -> int:
    n = values.numel() // (module.running_mean.numel() or 1)
    return n // max(values.shape[0], 1) if isinstance(module, _INSTANCE_NORMS) else n
