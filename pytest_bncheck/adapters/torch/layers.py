"""The layers of a PyTorch model that keep running statistics: reading, writing, describing them.

PyTorch stores the unbiased variance; it is converted here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pytest_bncheck.adapters.torch.buffers import Buffers, Place, held, places
from pytest_bncheck.adapters.torch.calls import CallCounter, refuse_lost_statistics
from pytest_bncheck.adapters.torch.data import Raw, dtype_name, fill, on_host
from pytest_bncheck.adapters.torch.internals import attribute, plain_name
from pytest_bncheck.adapters.torch.rates import Rates, is_own
from pytest_bncheck.maths.running import bessel
from pytest_bncheck.types import Layer, Statistics

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Classes that `update_bn` of PyTorch re-estimates, lazy and other subclasses among them."""


class Layers:
    """Every module of a model with a running mean and variance.

    Attributes
    ----------
    modules
        The modules by name, in the order in which statistics are read and written.
    rates
        Their update rates.
    calls
        Counts their calls.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.modules: dict[str, Any] = {
            plain_name(name) or type(module).__name__: module
            for name, module in model.named_modules()
            if _has_statistics(module)
        }
        self.rates = Rates(self.modules)
        self.calls = CallCounter(self.modules, self.rates)

    @property
    def are_own(self) -> bool:
        """Whether all classes are PyTorch's own."""
        return all(map(is_own, self.modules.values()))

    @property
    def are_reset_by_update_bn(self) -> bool:
        """Whether `torch.optim.swa_utils.update_bn` re-estimates the statistics of all layers."""
        return all(
            isinstance(module, BATCH_NORMS) and type(module).forward.__module__.startswith("torch.")
            for module in self.modules.values()
        )

    # statistics -------------------------------------------------------------------------------

    def raw(self) -> Raw:
        """The statistics now, still on their device."""
        if not self.modules:
            return torch.empty(0), torch.empty(0)
        for name, module in self.modules.items():
            refuse_lost_statistics(name, module)
        mean = [m.running_mean.detach().reshape(-1) for m in self.modules.values()]
        var = [m.running_var.detach().reshape(-1) for m in self.modules.values()]
        return torch.cat(mean), torch.cat(var)

    def biased(self, raw: Raw, exact: bool = False) -> Statistics:
        """Stored statistics per layer, in float64, with biased variances unless `exact`."""
        return self.biased_each([raw], exact)[0]

    def biased_each(self, log: Sequence[Raw], exact: bool = False) -> list[Statistics]:
        """The same of several moments, in one transfer."""
        if not self.modules:
            return [Statistics((), ()) for _ in log]
        ends = np.cumsum(self._sizes())[:-1]
        factors = [1.0 if exact else self._factor(name) for name in self.modules]
        flat = iter(on_host([tensor for raw in log for tensor in raw]))
        found = []
        for mean, var in zip(flat, flat, strict=True):
            rows = zip(np.split(var, ends), factors, strict=True)
            variances = tuple(row / factor for row, factor in rows)
            found.append(Statistics(tuple(np.split(mean, ends)), variances))
        return found

    def places(self) -> list[Place]:
        """Where everything is that the layers update."""
        return [
            (f"{name}.{key}", module, key)
            for name, module in self.modules.items()
            for key in _updated(module)
        ]

    def other_places(self) -> list[Place]:
        """Where all other tensors are that a forward can change, parameters aside."""
        own = {id(held(owner, key)) for _, owner, key in self.places()}
        return [place for place in places(self._model) if id(held(*place[1:])) not in own]

    def write(self, statistics: Statistics, exact: bool) -> None:
        """Store statistics; with `exact` the biased variances as they are."""
        modules = self.modules.values()
        factors = [1.0 if exact else self._factor(name) for name in self.modules]
        variances = [var * by for var, by in zip(statistics.var, factors, strict=True)]
        fill(
            [*(m.running_mean for m in modules), *(m.running_var for m in modules)],
            [*statistics.mean, *variances],
        )

    def _factor(self, name: str) -> float:
        """What turns the biased variance into the one that a layer stores."""
        return 1.0 if name in self.rates.biased else bessel(self.calls.values.get(name))

    def batch_statistics(self, filled: Raw, active: Iterable[str]) -> Statistics:
        """B = r1 / (1 - w) of the active layers, from zeroed statistics of which w was kept."""
        found, current, active = self.biased(filled), self.biased(self.raw()), set(active)
        mean, var = list(current.mean), list(current.var)
        for k, name in enumerate(self.modules):
            taken_in = 1.0 - self.calls.kept[name]
            if name in active and taken_in:
                mean[k] = found.mean[k] / taken_in
                var[k] = np.maximum(found.var[k] / taken_in, 0.0)
        return Statistics(tuple(mean), tuple(var))

    @contextmanager
    def emptied(self, active: Iterable[str]) -> Iterator[None]:
        """Zeroed statistics, so that a pass leaves α times its batch statistics in them.

        A layer without momentum averages over its calls; one with momentum 0 gets a temporary one:
        that of its last update, or 1.
        """
        names = set(active)
        unmoved = {
            name: (module, module.momentum, self.rates.last[name])
            for name, module in self.modules.items()
            if name in names and self.rates.is_stock(name) and module.momentum == 0.0
        }
        with self.kept():
            for name in names:
                for key in _updated(self.modules[name]):
                    getattr(self.modules[name], key).data.zero_()
            for module, _, last in unmoved.values():
                module.momentum = last or 1.0
            try:
                yield
            finally:
                for name, (module, momentum, last) in unmoved.items():
                    module.momentum, self.rates.last[name] = momentum, last

    @property
    def has_strangers(self) -> bool:
        """Whether some layer showed that it is no batch normalisation."""
        return not self.rates.strange.isdisjoint(self.modules)

    def leave_strangers(self, log: list[Raw]) -> list[Raw]:
        """Look no more at layers that are no batch normalisation; the log without them."""
        return self._rearranged(log, [n for n in self.modules if n not in self.rates.strange])

    @contextmanager
    def kept(self) -> Iterator[None]:
        """All buffers of the model end as they began: a pass in training mode moves others too."""
        statistics, rest = Buffers(self.places()), Buffers(self.other_places())
        try:
            yield
        finally:
            statistics.put_back()
            rest.put_back_moved()

    def is_constant(self, name: str) -> bool:
        """Whether no pass changes a layer's statistics, whatever its mode."""
        return self.rates.is_constant(name)

    def order_by_call(self, log: list[Raw]) -> list[Raw]:
        """Put the layers, and the log of their statistics, in the order of their first call."""
        called = [name for name in self.calls.order if name in self.modules]
        return self._rearranged(log, [*called, *(n for n in self.modules if n not in called)])

    def _rearranged(self, log: list[Raw], names: list[str]) -> list[Raw]:
        """Keep the layers of these names in this order, and so in the log."""
        before = list(self.modules)
        if names == before:
            return log
        sizes = self._sizes()

        def sort(flat: Tensor) -> Tensor:
            parts = dict(zip(before, torch.split_with_sizes(flat, sizes), strict=True))
            return torch.cat([parts[name] for name in names]) if names else flat[:0]

        log = [(sort(mean), sort(var)) for mean, var in log]
        kept = {name: self.modules[name] for name in names}
        self.modules.clear()  # in place: `calls` has the same dictionary
        self.modules.update(kept)
        return log

    def _sizes(self) -> list[int]:
        return [module.running_mean.numel() for module in self.modules.values()]

    # description ------------------------------------------------------------------------------

    def describe(self, in_eval: set[int], frozen: set[str]) -> list[Layer]:
        """Every layer as rules and reports see it.

        Parameters
        ----------
        in_eval
            The ids of modules that stay in eval mode in training.
        frozen
            Names of the layers whose parameters, and those before them, did not change.
        """
        rows = zip(self.modules.items(), _counted([*self.modules.values()]), strict=True)
        return [
            dataclasses.replace(
                self._describe(name, module, id(module) in in_eval, counted),
                frozen_parameters=name in frozen,
            )
            for (name, module), counted in rows
        ]

    def _describe(self, name: str, module: Any, in_eval: bool, counted: int | None) -> Layer:
        rate = self.rates.last[name]
        return Layer(
            name=name,
            type=type(module).__name__,
            momentum=rate,
            update_rate=rate,
            eps=float(getattr(module, "eps", 0.0)),
            frozen=in_eval or self.is_constant(name),
            stock=self.rates.is_stock(name),
            resolution=torch.finfo(module.running_var.dtype).eps,
            dtype=dtype_name(module.running_var.dtype),
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


def _updated(module: nn.Module) -> list[str]:
    """What a layer updates in training: running mean and variance, and its counter of batches."""
    keys = ("running_mean", "running_var", "num_batches_tracked")
    return [key for key in keys if isinstance(attribute(module, key), Tensor)]


def _has_statistics(module: nn.Module) -> bool:
    mean, var = attribute(module, "running_mean"), attribute(module, "running_var")
    return isinstance(mean, Tensor) and isinstance(var, Tensor)
