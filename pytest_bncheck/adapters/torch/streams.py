"""What each call of a layer in one training step normalised.

Read from what each call changed in the running statistics, so that training runs as it would
without a look.
"""

from __future__ import annotations

from typing import Any

import torch

from pytest_bncheck.adapters.torch.calls import StepRecord
from pytest_bncheck.adapters.torch.data import Raw
from pytest_bncheck.adapters.torch.layers import Layers
from pytest_bncheck.maths.running import bessel, recover_calls
from pytest_bncheck.types import Statistics, Streams


def streams_of(layers: Layers, before: Raw, after: Raw) -> dict[str, Streams]:
    """Batch statistics of each call in the last training step, of layers with several calls.

    Parameters
    ----------
    before, after
        The running statistics around that step, as `Layers.raw` gives them.
    """
    records = {name: record for name, record in layers.calls.step.items() if record.between}
    if not records:
        return {}
    start, stop = layers.biased(before, exact=True), layers.biased(after, exact=True)
    found = {}
    for k, (name, module) in enumerate(layers.modules.items()):
        if name in records:
            ends = (start.mean[k], start.var[k]), (stop.mean[k], stop.var[k])
            each = _calls(module, records[name], ends)
            found[name] = Streams(each, min(samples for _, samples in records[name].sizes))
    return found


def _calls(module: Any, record: StepRecord, ends: tuple[tuple[Any, Any], ...]) -> Statistics:
    """Biased batch statistics of the calls of one layer."""
    seen = [(mean.cpu().double(), var.cpu().double()) for mean, var in record.between]
    between = [(mean.reshape(-1).numpy(), var.reshape(-1).numpy()) for mean, var in seen]
    start, stop = ends
    each = recover_calls(
        [start, *between, stop],
        record.rates,
        float(getattr(module, "eps", 0.0)),
        torch.finfo(module.running_var.dtype).eps,
    )
    pairs = zip(each.var, record.sizes, strict=True)
    return Statistics(each.mean, tuple(var / bessel(n) for var, (n, _) in pairs))
