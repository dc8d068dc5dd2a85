"""The layers of a PyTorch model that keep running statistics, as one set.

They are read and written together, counted while they run, and described in the terms that the
experiment speaks. torch stores the unbiased variance; the conversion happens here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pytest_bncheck.adapters.torch.state import plain_name
from pytest_bncheck.maths.running import bessel, from_zero, recover_calls
from pytest_bncheck.types import Calls, Layer, Statistics, Streams

Raw = tuple[Tensor, Tensor]
"""All running means and all running variances as they are stored, in one tensor each."""


class Layers:
    """Every module of a model with a running mean and variance, by name, in a fixed order."""

    def __init__(self, model: nn.Module) -> None:
        self.modules: dict[str, Any] = {
            plain_name(name) or type(module).__name__: module
            for name, module in model.named_modules()
            if _has_statistics(module)
        }
        self.rates: dict[str, float | None] = {
            name: module.momentum
            for name, module in self.modules.items()
            if hasattr(module, "momentum")
        }
        self.last: str | None = None
        """The layer that last started to normalise with batch statistics."""
        self._values: dict[str, int] = {}
        self._order: dict[str, None] = {}
        self._after_trainable: set[str] = set()
        self._in_step = False
        self.reset_counters()

    # statistics -------------------------------------------------------------------------------

    def raw(self) -> Raw:
        """The statistics now, still on their device."""
        if not self.modules:
            return torch.empty(0), torch.empty(0)
        mean = [m.running_mean.detach().reshape(-1) for m in self.modules.values()]
        var = [m.running_var.detach().reshape(-1) for m in self.modules.values()]
        return torch.cat(mean), torch.cat(var)

    def biased(self, raw: Raw, exact: bool = False) -> Statistics:
        """Stored statistics per layer, in float64, with biased variances unless `exact`."""
        if not self.modules:
            return Statistics((), ())
        ends = np.cumsum(self._sizes())[:-1]
        mean, var = (np.split(t.cpu().double().numpy(), ends) for t in raw)
        factors = [1.0 if exact else bessel(self._values.get(name)) for name in self.modules]
        return Statistics(
            tuple(mean), tuple(v / factor for v, factor in zip(var, factors, strict=True))
        )

    def named_buffers(self) -> dict[str, Tensor]:
        """Everything that the layers update, by its name in the state of the model."""
        return {
            f"{name}.{key}": buffer
            for name, module in self.modules.items()
            for key, buffer in buffers(module).items()
        }

    def write(self, statistics: Statistics, exact: bool) -> None:
        """Store statistics; with `exact` the biased variances as they are."""
        for k, (name, module) in enumerate(self.modules.items()):
            factor = 1.0 if exact else bessel(self._values.get(name))
            _fill(module.running_mean, statistics.mean[k])
            _fill(module.running_var, statistics.var[k] * factor)

    def batch_statistics(self, filled: Raw, active: Iterable[str], calls: Calls) -> Statistics:
        """B = r1 / (1 - (1-α)^c) of the active layers, from zeroed statistics after c calls."""
        found, current, active = self.biased(filled), self.biased(self.raw()), set(active)
        mean, var = list(current.mean), list(current.var)
        for k, name in enumerate(self.modules):
            if name in active and calls.training[k]:
                rate, count = self.rates[name] or None, calls.training[k]  # 0: see `emptied`
                mean[k] = from_zero(found.mean[k], rate, count)
                var[k] = np.maximum(from_zero(found.var[k], rate, count), 0.0)
        return Statistics(tuple(mean), tuple(var))

    @contextmanager
    def emptied(self, active: Iterable[str]) -> Iterator[None]:
        """Zeroed statistics, so that a pass leaves α times its batch statistics in them.

        A layer without momentum averages over its calls; one with momentum 0 gets a temporary one.
        """
        names = set(active)
        saved = [
            (b, b.detach().clone()) for m in self.modules.values() for b in buffers(m).values()
        ]
        still = {n: m for n, m in self.modules.items() if n in names and self.rates[n] == 0.0}
        momenta = {n: m.momentum for n, m in still.items() if hasattr(m, "momentum")}
        for name in names:
            for buffer in buffers(self.modules[name]).values():
                buffer.data.zero_()
        for name in momenta:
            still[name].momentum = 1.0
        try:
            yield
        finally:
            for name, momentum in momenta.items():
                still[name].momentum = momentum
            for buffer, values in saved:
                buffer.data.copy_(values)

    @contextmanager
    def of_other_sizes(self) -> Iterator[None]:
        """Passes over other numbers of values, which leave those of training in place."""
        values = dict(self._values)
        try:
            yield
        finally:
            self._values = values

    def measure_silent_rates(self, forward: Callable[[], object]) -> None:
        """Measure the update rate of layers that have no momentum to read.

        With zeroed statistics and one batch, two passes leave α·b and α·b·(2-α).
        """
        silent = {n: m for n, m in self.modules.items() if n not in self.rates}
        saved = [
            (b, b.detach().clone()) for m in self.modules.values() for b in buffers(m).values()
        ]
        reads = []
        try:
            for module in silent.values():
                module.running_mean.data.zero_()
                module.running_var.data.zero_()
            for _ in range(2):
                forward()
                reads.append(
                    {n: m.running_var.detach().double().clone() for n, m in silent.items()}
                )
        finally:
            for buffer, values in saved:
                buffer.data.copy_(values)
        for name in silent:
            one, two = reads[0][name], reads[1][name]
            norm = float((one * one).sum())
            self.rates[name] = 0.0 if norm == 0 else 2.0 - float((one * two).sum()) / norm

    def is_constant(self, name: str) -> bool:
        """Whether a layer is made of constants: it has no momentum, and no pass changes it."""
        return self.rates.get(name) == 0.0 and not hasattr(self.modules[name], "momentum")

    # calls ------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Count the calls of every layer from now on."""
        for name, module in self.modules.items():
            module.register_forward_pre_hook(self._counter(name))

    def reset_counters(self) -> None:
        """Start counting anew."""
        self._trained = dict.fromkeys(self.modules, 0)
        self._inferred = dict.fromkeys(self.modules, 0)

    def counted(self) -> Calls:
        """Calls since `reset_counters`; n is the last that was seen."""
        return Calls(
            tuple(self._trained.values()),
            tuple(self._inferred.values()),
            tuple(self._values.get(name) for name in self.modules),
        )

    @contextmanager
    def step(self) -> Iterator[None]:
        """Look at every call for the time of a training step; the last step's are forgotten."""
        self._between: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._inputs: dict[str, list[tuple[int, int]]] = {}
        self._in_step = True
        try:
            yield
        finally:
            self._in_step = False

    def streams(self, before: Raw, after: Raw) -> dict[str, Streams]:
        """Batch statistics of each call in the last step, of layers with several.

        Read from what each call changed, so that training runs as it would without a look.

        Parameters
        ----------
        before, after
            The statistics around that step.
        """
        if not self._between:
            return {}
        start, stop = self.biased(before, exact=True), self.biased(after, exact=True)
        found = {}
        for k, (name, module) in enumerate(self.modules.items()):
            seen = [(m.cpu().double(), v.cpu().double()) for m, v in self._between.get(name, ())]
            between = [(m.reshape(-1).numpy(), v.reshape(-1).numpy()) for m, v in seen]
            points = [(start.mean[k], start.var[k]), *between, (stop.mean[k], stop.var[k])]
            if between and self.rates[name] != 0.0:
                each = self._read_calls(name, module, points)
                found[name] = Streams(each, min(samples for _, samples in self._inputs[name]))
        return found

    def _read_calls(self, name: str, module: Any, points: list[tuple[Any, Any]]) -> Statistics:
        """Biased batch statistics of the calls between the points."""
        sizes, rate = self._inputs[name], self.rates[name]
        earlier = self._trained[name] - len(sizes)
        each = recover_calls(
            points,
            [1.0 / (earlier + j + 1) if rate is None else rate for j in range(len(sizes))],
            float(getattr(module, "eps", 0.0)),
            torch.finfo(module.running_var.dtype).eps,
        )
        pairs = zip(each.var, sizes, strict=True)
        return Statistics(each.mean, tuple(var / bessel(n) for var, (n, _) in pairs))

    def order_by_call(self, log: list[Raw]) -> list[Raw]:
        """Put the layers, and the log of their statistics, in the order of their first call."""
        order = [*self._order, *(name for name in self.modules if name not in self._order)]
        if order == list(self.modules):
            return log
        sizes, names = self._sizes(), list(self.modules)

        def sort(flat: Tensor) -> Tensor:
            parts = dict(zip(names, torch.split_with_sizes(flat, sizes), strict=True))
            return torch.cat([parts[name] for name in order])

        for attribute in ("modules", "_trained", "_inferred"):
            mapping = getattr(self, attribute)
            setattr(self, attribute, {name: mapping[name] for name in order})
        return [(sort(mean), sort(var)) for mean, var in log]

    def _counter(self, name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def count(module: Any, args: tuple[Any, ...]) -> None:
            self._order.setdefault(name)
            if not module.training or self.is_constant(name):
                self._inferred[name] += 1
                return
            self._trained[name] += 1
            self.last = name
            if args and isinstance(args[0], Tensor):
                n = self._values[name] = _values_per_channel(module, args[0])
                if self._in_step:
                    self._look(name, module, (n, args[0].shape[0]))
                if args[0].requires_grad:
                    self._after_trainable.add(name)

        return count

    def _look(self, name: str, module: Any, size: tuple[int, int]) -> None:
        """Keep what a layer's earlier calls in this step made of its statistics."""
        if name in self._inputs:
            raw = module.running_mean.detach().clone(), module.running_var.detach().clone()
            self._between.setdefault(name, []).append(raw)
        self._inputs.setdefault(name, []).append(size)

    def _sizes(self) -> list[int]:
        return [module.running_mean.numel() for module in self.modules.values()]

    # words ------------------------------------------------------------------------------------

    def describe(self, frozen: set[int]) -> list[Layer]:
        """Every layer in the experiment's terms; `frozen` holds the ids of modules kept in eval."""
        modules = list(self.modules.values())
        rows = zip(self.modules.items(), _trained(modules), _counted(modules), strict=True)
        return [
            self._describe(name, module, id(module) in frozen, trained, counted)
            for (name, module), trained, counted in rows
        ]

    def _describe(
        self, name: str, module: Any, in_eval: bool, trained: bool, counted: int | None
    ) -> Layer:
        momentum = getattr(module, "momentum", None)
        rate = self.rates.get(name, momentum)
        return Layer(
            name=name,
            type=type(module).__name__,
            momentum=momentum if hasattr(module, "momentum") else rate,
            update_rate=rate,
            eps=float(getattr(module, "eps", 0.0)),
            frozen=in_eval or self.is_constant(name),
            stock=type(module).__module__.startswith("torch.nn."),
            trained=trained,
            resolution=torch.finfo(module.running_var.dtype).eps,
            dtype=str(module.running_var.dtype).removeprefix("torch."),
            frozen_parameters=name not in self._after_trainable and _all_frozen(module),
            counted=counted,
        )


def _counted(modules: Sequence[Any]) -> list[int | None]:
    """`num_batches_tracked` of each layer, in one transfer; None where it counts nothing."""
    counters = [getattr(module, "num_batches_tracked", None) for module in modules]
    known = [counter for counter in counters if isinstance(counter, Tensor)]
    if not known:
        return [None] * len(modules)
    home = known[0].device
    counts = iter(
        torch.stack([counter.detach().to(home).reshape(()) for counter in known]).tolist()
    )
    found = [int(next(counts)) if isinstance(c, Tensor) else None for c in counters]
    # An InstanceNorm has a counter and never uses it.
    return [count or None for count in found]


def buffers(module: nn.Module) -> dict[str, Tensor]:
    """What a layer updates in training: its statistics and its counter of batches."""
    keys = ("running_mean", "running_var", "num_batches_tracked")
    found = {key: getattr(module, key, None) for key in keys}
    return {key: buffer for key, buffer in found.items() if isinstance(buffer, Tensor)}


def _has_statistics(module: nn.Module) -> bool:
    mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    return isinstance(mean, Tensor) and isinstance(var, Tensor)


def _values_per_channel(module: Any, values: Tensor) -> int:
    n = values.numel() // (module.running_mean.numel() or 1)
    per_sample = isinstance(module, _NormBase) and "InstanceNorm" in type(module).__name__
    return n // max(values.shape[0], 1) if per_sample else n


def _trained(modules: Sequence[Any]) -> list[bool]:
    """Whether scale or offset differ from their initial 1 and 0, found out in one transfer."""
    flags = [
        (k, (value.detach() != start).any())
        for k, module in enumerate(modules)
        for key, start in (("weight", 1.0), ("bias", 0.0))
        if isinstance(value := getattr(module, key, None), Tensor)
    ]
    home = flags[0][1].device if flags else None
    differ = torch.stack([flag.to(home) for _, flag in flags]).tolist() if flags else []
    trained = {k for (k, _), differs in zip(flags, differ, strict=True) if differs}
    return [k in trained for k in range(len(modules))]


def _all_frozen(module: nn.Module) -> bool:
    """Whether a layer has parameters and none of them trains."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def _fill(buffer: Tensor, values: Any) -> None:
    converted = torch.as_tensor(values).to(buffer.dtype).reshape(buffer.shape)
    buffer.data.copy_(converted)
