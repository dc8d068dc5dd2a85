"""How often each layer with running statistics ran, in which mode and on what; from hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from pytest_bncheck.adapters.torch.data import Raw
from pytest_bncheck.adapters.torch.rates import Rates
from pytest_bncheck.types import Calls, InputError

_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


@dataclass
class StepRecord:
    """The calls of one layer in one training step.

    Attributes
    ----------
    sizes
        Values per channel and samples of each call that updated the layer.
    rates
        Update rate of each of them.
    between
        Running mean and variance before each call but the first.
    """

    sizes: list[tuple[int, int]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    between: list[Raw] = field(default_factory=list)


class CallCounter:
    """Counts the calls of layers.

    Parameters
    ----------
    layers
        The layers by name.
    rates
        Their update rates.

    Attributes
    ----------
    rates
        The update rates, learned as the layers are called.
    kept
        The share of its statistics that each layer kept since `reset`, the product of 1-α.
    kept_in_step
        The same of the last training step.
    changing
        Whether some layer was called at several rates in training steps.
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

    def __init__(self, layers: Mapping[str, Any], rates: Rates) -> None:
        self._layers, self.rates = layers, rates
        self.last: str | None = None
        self.order: dict[str, None] = {}
        self.values: dict[str, int] = {}
        self.after_trainable: set[str] = set()
        self.step: dict[str, StepRecord] = {}
        self.kept_in_step: dict[str, float] = {}
        self.changing = False
        self._in_step, self._paused = False, False
        self.reset()

    def watch(self) -> None:
        """Count the calls of every layer from now on."""
        for name, module in self._layers.items():
            module.register_forward_pre_hook(self._hook(name), with_kwargs=True)

    def reset(self) -> None:
        """Set all counts to zero."""
        self._training = dict.fromkeys(self._layers, 0)
        self._inference = dict.fromkeys(self._layers, 0)
        self._unmoved = dict.fromkeys(self._layers, 0)
        self.kept = dict.fromkeys(self._layers, 1.0)

    def counted(self) -> Calls:
        """Calls since `reset`, in the order of the layers; the values are those seen last.

        A call at rate 0, as a second forward that is not to be tracked, counts only where a layer
        has no other.
        """
        return Calls(
            tuple(self._training[name] or self._unmoved[name] for name in self._layers),
            tuple(self._inference[name] for name in self._layers),
            tuple(self.values.get(name) for name in self._layers),
        )

    @contextmanager
    def during_step(self) -> Iterator[None]:
        """Record every call in a training step; the record of the last one is dropped."""
        self.step, self._in_step = {}, True
        self.kept_in_step = dict.fromkeys(self._layers, 1.0)
        try:
            yield
        finally:
            self._in_step = False

    def in_step(self) -> tuple[int, ...]:
        """Calls in the last training step that updated each layer."""
        return tuple(
            len(self.step[name].sizes) if name in self.step else 0 for name in self._layers
        )

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Count the calls of a ``with`` block by themselves, and go on as before it after it."""
        counts = self._training, self._inference, self._unmoved, self.kept
        last, values, changing = dict(self.rates.last), dict(self.values), self.changing
        self.reset()
        try:
            yield
        finally:
            self._training, self._inference, self._unmoved, self.kept = counts
            self.rates.last, self.values, self.changing = last, values, changing

    @contextmanager
    def keeping_values(self) -> Iterator[None]:
        """For passes over batches of other sizes: keep the numbers of values seen in training."""
        values = dict(self.values)
        try:
            yield
        finally:
            self.values = values

    def _hook(self, name: str) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], None]:
        def count(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._paused or name not in self._layers:  # no batch normalisation
                return
            refuse_lost_statistics(name, module)
            self.order.setdefault(name)
            rate = self._rate(name, module, args, kwargs) if module.training else 0.0
            if not module.training or self.rates.is_constant(name):
                self._inference[name] += 1
                return
            if args and isinstance(args[0], Tensor):
                n = self.values[name] = _values_per_channel(module, args[0])
                if self._in_step and rate:
                    self._record(name, module, (n, args[0].shape[0]), rate)
                if args[0].requires_grad:
                    self.after_trainable.add(name)
            if rate:
                self._training[name] += 1
                self.kept[name] *= 1.0 - rate
                self.kept_in_step[name] = self.kept_in_step.get(name, 1.0) * (1.0 - rate)
            else:
                self._unmoved[name] += 1
            self.last = name

        return count

    def _rate(self, name: str, module: Any, args: Any, kwargs: Any) -> float:
        """The update rate of a call, also of one in a cumulative average."""
        before, self._paused = self.rates.last[name], True
        try:
            rate = self.rates.at_call(name, module, args, kwargs)
        finally:
            self._paused = False
        if rate is None:
            return 1.0 / (self._training[name] + 1)
        if self._in_step and self._training[name]:
            self.changing |= rate not in (0.0, before)
        return rate

    def _record(self, name: str, module: Any, size: tuple[int, int], rate: float) -> None:
        record = self.step.setdefault(name, StepRecord())
        if record.sizes:
            raw = module.running_mean.detach().clone(), module.running_var.detach().clone()
            record.between.append(raw)
        record.sizes.append(size)
        record.rates.append(rate)


def refuse_lost_statistics(name: str, module: Any) -> None:
    """Raise an `InputError` where the training has taken a layer's running statistics away."""
    if module.running_mean is None or module.running_var is None:
        raise InputError(
            f"{name}: the training sets its running statistics to None, so that eval mode "
            "has none to predict with. Make the layer with "
            "track_running_stats=False instead."
        )


def _values_per_channel(module: Any, values: Tensor) -> int:
    n = values.numel() // (module.running_mean.numel() or 1)
    return n // max(values.shape[0], 1) if isinstance(module, _INSTANCE_NORMS) else n
