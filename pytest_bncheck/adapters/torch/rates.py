"""The update rate of a layer at each call: read from PyTorch's own layers, measured on others.

A layer that runs in training mode moves its statistics s to f(s) = s + α·(b - s), whatever it
calls α. So one input from three starts, s, 0 and s + c, gives 1-α = (f(s+c) - f(s))/c in every
channel. A layer for which this is no single number in [0, 1), or whose output depends on the
start, is no batch normalisation: it must not start from zero, and is left alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pytest_bncheck.adapters.random_state import RandomState
from pytest_bncheck.adapters.torch.data import leaves
from pytest_bncheck.adapters.torch.state import Snapshot
from pytest_bncheck.maths import settling

_Setting: TypeAlias = tuple[str, tuple[tuple[str, bool], ...]]
"""A layer's name and its flags: one of them may say that a call is not to be tracked."""

SAME = 1e-4
"""Largest relative difference of outputs that count as equal."""

OWN = 0.01
"""How far a measured rate may be from the layer's momentum, relative."""

AGAIN = 10
"""Calls after which a steady rate is measured again: it may follow a schedule."""

ROUNDINGS = 8.0
"""Spacings of the statistics' numbers that count as rounding."""


@dataclass(frozen=True)
class Measured:
    """What one call does to the statistics of a layer.

    Attributes
    ----------
    rate
        α in [0, 1], or None where there is none: the statistics do not move towards a batch's.
    depends
        Whether the output in training mode depends on the statistics.
    variance
        The variance towards which it moves them, shape (channels,); None without a rate.
    """

    rate: float | None
    depends: bool
    variance: Tensor | None = None


class Rates:
    """The update rate of every layer.

    Parameters
    ----------
    layers
        The layers by name.

    Attributes
    ----------
    last
        The rate of each layer's last call that updated it; None for the cumulative average.
    strange
        Names of the layers that are no batch normalisation.
    biased
        Names of the layers that store the biased variance, unlike PyTorch's own.
    """

    def __init__(self, layers: Mapping[str, Any]) -> None:
        self.last: dict[str, float | None] = {
            name: _momentum(module) for name, module in layers.items()
        }
        self.strange: set[str] = set()
        self.biased: set[str] = set()
        self._own = {name for name, module in layers.items() if is_own(module)}
        self._constant: set[str] = set()
        self._torch = frozenset(self._own)
        self._looked: set[_Setting] = set()
        self._measured: dict[_Setting, list[float]] = {}
        self._updated: set[str] = set()
        self._assumed: set[_Setting] = set()
        self._calls: Counter[_Setting] = Counter()

    def is_stock(self, name: str) -> bool:
        """Whether a layer's momentum is its update rate, as in PyTorch's own classes."""
        return name in self._own

    def is_constant(self, name: str) -> bool:
        """Whether a layer ignores the mode, or is none of those that are looked at."""
        return name in self._constant or name in self.strange

    def at_call(
        self, name: str, module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> float | None:
        """The rate of a call in training mode that is about to be made."""
        setting = name, () if name in self._torch else _switches(module)
        self._calls[setting] += 1
        if not self._is_known(setting):
            try:
                found = measure(module, args, kwargs)
                self._learn(setting, module, found)
                if found.variance is not None and _is_biased(found.variance, args):
                    self.biased.add(name)
            except Exception:  # the call itself will say what is wrong
                return self.last[name]
        rate = self._rate(setting, module)
        if rate != 0.0 or name not in self._updated:
            self.last[name] = self._reported(setting, rate)
        if rate != 0.0:
            self._updated.add(name)
        return rate

    def _is_known(self, setting: _Setting) -> bool:
        """Whether nothing is to be measured: rates that change are measured at every call.

        Those that do not, now and then.
        """
        name, seen = setting[0], self._measured.get(setting, [])
        if name in self._torch or self.is_constant(name):
            return True
        steady = len(seen) > 1 and abs(seen[-1] - seen[-2]) <= OWN * seen[-1]
        due = self._calls[setting] % AGAIN == 0 and setting not in self._assumed
        stock = name in self._own and setting in self._looked
        return stock or (steady and not due and self.last[name] is not None)

    def _learn(self, setting: _Setting, module: Any, found: Measured) -> None:
        name, momentum = setting[0], _momentum(module)
        self._looked.add(setting)
        if found.rate == 0.0 and name in self._updated:  # a call that is not to be tracked
            self._measured[setting] = [0.0] * 2
            self._assumed.add(setting)
        elif found.rate == 0.0 and (found.depends or not momentum):
            self._constant.add(name)
            self.last[name] = momentum
        elif found.rate is None or found.depends:
            self.strange.add(name)
        elif found.rate == 0.0:  # its update is lost
            self._measured[setting] = [momentum or 1.0] * 2
            self._assumed.add(setting)
        elif setting not in self._measured and _moves_at(module, found.rate):
            self._own.add(name)
        else:
            self._measured.setdefault(setting, []).append(found.rate)

    def _rate(self, setting: _Setting, module: Any) -> float | None:
        if setting in self._measured:
            return self._measured[setting][-1]
        if setting[0] in self._own:
            momentum: float | None = module.momentum
            return momentum
        return 0.0

    def _reported(self, setting: _Setting, rate: float | None) -> float | None:
        """None where 1/α grows by 1 from call to call, as in a cumulative average."""
        seen = self._measured.get(setting, [])
        if len(seen) > 1 and seen[-1] and abs(1.0 / seen[-1] - 1.0 / seen[-2] - 1.0) <= OWN:
            return None
        return rate


def _switches(module: nn.Module) -> tuple[tuple[str, bool], ...]:
    """The flags of a layer."""
    return tuple((name, value) for name, value in vars(module).items() if isinstance(value, bool))


def is_own(module: nn.Module) -> bool:
    """Whether a layer's class is one of PyTorch's, so that its momentum means what it says."""
    return type(module).__module__.startswith("torch.") and hasattr(module, "momentum")


def measure(module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Measured:
    """What a call of a layer in training mode does; nothing of it remains."""
    now = _statistics(module)
    away = (now + 1.0 + now.abs()).to(module.running_var.dtype).double()
    starts = [now, torch.zeros_like(now), away]
    ends, outputs = zip(*(_run(module, start, args, kwargs) for start in starts), strict=True)
    depends = not all(_same(outputs[0], other) for other in outputs[1:])
    if all(torch.equal(start, end) for start, end in zip(starts, ends, strict=True)):
        return Measured(0.0, depends)
    rate = settling.rate(
        [start.numpy() for start in starts],
        [end.numpy() for end in ends],
        torch.finfo(module.running_var.dtype).eps,
    )
    if rate is None:
        return Measured(None, depends)
    return Measured(rate, depends, ends[1][module.running_mean.numel() :] / rate)


def _is_biased(variance: Tensor, args: Sequence[Any]) -> bool:
    """Whether a variance is the biased one of the values in each channel of the input."""
    values = args[0] if args and isinstance(args[0], Tensor) else None
    if values is None or values.dim() < 2 or values.shape[1] != variance.numel():
        return False
    channels = values.detach().transpose(0, 1).reshape(variance.numel(), -1).cpu().double()
    n = channels.shape[1]
    if n < 2:
        return False
    biased = channels.var(1, unbiased=False)
    to_biased, to_unbiased = (
        float((variance - each).abs().sum()) for each in (biased, biased * n / (n - 1))
    )
    return to_biased < to_unbiased


def _run(
    module: Any, start: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Tensor, list[Tensor]]:
    """The statistics after a call from `start`, and the tensors that it returns."""
    before, random = Snapshot(module), RandomState.capture()
    try:
        mean, var = torch.split_with_sizes(
            start, [module.running_mean.numel(), module.running_var.numel()]
        )
        module.running_mean.data.copy_(mean.reshape(module.running_mean.shape))
        module.running_var.data.copy_(var.reshape(module.running_var.shape))
        with torch.no_grad():
            outputs = module.forward(*map(_copied, args), **kwargs)
        tensors = [leaf.detach() for _, leaf in leaves(outputs) if isinstance(leaf, Tensor)]
        return _statistics(module), tensors
    finally:
        before.restore()
        random.restore()


def _moves_at(module: Any, rate: float) -> bool:
    """Whether a measured rate is what the layer's momentum means in PyTorch."""
    momentum = _momentum(module)
    if momentum is None:
        counted = getattr(module, "num_batches_tracked", None)
        if not isinstance(counted, Tensor):
            return False
        momentum = 1.0 / (float(counted) + 1.0)
    rounding = ROUNDINGS * torch.finfo(module.running_var.dtype).eps
    return abs(rate - momentum) <= OWN * rate + rounding


def _statistics(module: Any) -> Tensor:
    both = [module.running_mean.detach().reshape(-1), module.running_var.detach().reshape(-1)]
    return torch.cat(both).cpu().double()


def _momentum(module: Any) -> float | None:
    """The momentum of a layer, whatever its class means by it; 0 if it has none."""
    momentum = getattr(module, "momentum", 0.0)
    if momentum is None or isinstance(momentum, (int, float)):
        return momentum
    try:
        return float(momentum)
    except (TypeError, ValueError):
        return 0.0


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(
        one.shape == other.shape
        and bool(torch.isclose(one, other, SAME, SAME * _size(one), equal_nan=True).all())
        for one, other in zip(some, others, strict=True)
    )


def _size(values: Tensor) -> float:
    """The largest absolute value that is finite."""
    finite = values[values.isfinite()] if values.is_floating_point() else values[:0]
    return float(finite.abs().max()) if finite.numel() else 0.0
