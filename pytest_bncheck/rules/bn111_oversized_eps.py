"""BN111: the constant that is added to the variance is no longer small beside it."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING

import numpy as np

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.rules import _words as words
from pytest_bncheck.rules._base import Rule
from pytest_bncheck.types import Finding

if TYPE_CHECKING:
    from pytest_bncheck.types import Array

LARGE = 0.01
"""No framework's default comes near it; smaller ones have reasons of their own."""

BESIDE_VARIANCE = 0.1
"""Share of the batch variance from which on eps changes what a layer computes."""


class OversizedEps(Rule):
    """An eps that competes with the variance.

    What it does
    ------------
    Compares the eps of each normalisation layer with its batch variance. It fires where eps is
    above 0.01 and at least a tenth of the variance in most channels. Channels that never vary do
    not count.

    Why it is bad
    -------------
    eps is there to keep from dividing by zero. An output is sqrt(var / (var + eps)) standard
    deviations wide, 0.75 at var = 1 and eps = 0.8: the layer normalises only in part, weak channels
    least, and the momentum that was meant is not set.

    Example
    -------
    The second argument of torch's layers is eps, not momentum::

        nn.BatchNorm2d(64, 0.8)  # eps = 0.8
        keras.layers.BatchNormalization(-1, 0.9, 0.8)  # axis, momentum, epsilon

    Use instead
    -----------
    Names: ``nn.BatchNorm2d(64, momentum=0.2)``. Was 0.8 the weight of the past, as momentum is in
    Keras, it is 0.2 in PyTorch.

    References
    ----------
    torch.nn.BatchNorm2d and keras.layers.BatchNormalization, on their arguments. Ioffe & Szegedy
    2015, algorithm 1 (eps, "for numerical stability").
    """

    code = "BN111"
    name = "oversized-eps"
    severity = "warning"

    def find(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        variances, active = evidence.passes.noisy_batch.var, evidence.passes.active
        beside = {
            layer.name: _beside(layer.eps, var)
            for layer, var, runs in zip(evidence.layers, variances, active, strict=True)
            if runs and layer.eps > LARGE
        }
        names = [name for name, share in beside.items() if share >= BESIDE_VARIANCE]
        if not names:
            return None
        worst = max(names, key=lambda name: beside[name])
        layer = next(layer for layer in evidence.layers if layer.name == worst)
        share, width = beside[worst], (1.0 + beside[worst]) ** -0.5
        return self.finding(
            f"{words.n_of_m(names, evidence, 'have')} an eps that is not small beside the "
            f"variance. In {words.layer(worst)} eps {layer.eps:g} is {share:.2g} times the batch "
            f"variance of a typical channel (up to {BESIDE_VARIANCE:g} is small).",
            cause=f"With that eps the output of a typical channel is {width:.2g} standard "
            "deviations wide instead of 1. Such a value is often a momentum in the place of eps.",
            remedy=words.bullets(
                f"Leave eps at its default, and name the momentum if that was meant:\n"
                f"{evidence.dialect.set_momentum(layer.type, 0.1)}"
            ),
            layers=names,
            eps=layer.eps,
            times_the_variance=share,
        )


def _beside(eps: float, var: Array) -> float:
    """Eps over the variance, in the median channel; 0 where no channel varies."""
    varying = var[var > 0.0]
    return float(eps / np.median(varying)) if varying.size else 0.0
