"""BN105: a running statistic is not a possible number."""

from __future__ import annotations

import math
from collections.abc import Set

import numpy as np

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.rules import _words as words
from pytest_bncheck.rules._base import Rule
from pytest_bncheck.types import Finding


class RunningStatsInvalid(Rule):
    """NaN, infinity or a negative variance in a running statistic.

    What it does
    ------------
    Looks at every running mean and variance after training, while the training loss is finite.

    Why it is bad
    -------------
    Training never reads running statistics, so it goes on as if nothing had happened; every
    prediction in eval mode is NaN. A moving average never forgets a NaN or an infinity.

    Example
    -------
    One forward pass in training mode on a sample that holds an infinity, long before the end::

        model.train()
        model(corrupt_batch)  # the loss recovers, the buffers do not

    Use instead
    -----------
    Reset or re-estimate the statistics (``torch.optim.swa_utils.update_bn``), and keep such
    samples out. A negative variance comes from a variance computed as E[x²] - E[x]² on inputs
    whose mean is large against their spread: centre the inputs.

    References
    ----------
    Chan, Golub & LeVeque 1983, Algorithms for Computing the Sample Variance (cancellation).
    """

    code = "BN105"
    name = "running-stats-invalid"
    severity = "error"

    def find(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        losses, stop = evidence.training.losses, evidence.training.stop
        if losses and not math.isfinite(losses[-1]):
            return None
        not_finite = [
            layer.name
            for layer, m, v in zip(evidence.layers, stop.mean, stop.var, strict=True)
            if not (np.isfinite(m).all() and np.isfinite(v).all())
        ]
        negative = [
            layer.name
            for layer, v in zip(evidence.layers, stop.var, strict=True)
            if bool((v < 0).any())
        ]
        names = [*not_finite, *(name for name in negative if name not in not_finite)]
        if not names:
            return None
        what = "NaN or infinity" if not_finite else "a negative variance"
        return self.finding(
            f"{words.n_of_m(names, evidence, 'hold')} {what} in {words.their(names)} running "
            f"statistics; the first is {words.layer(names[0])}.",
            cause="A value that was not finite went through the layer in training mode."
            if not_finite
            else "The batch variance was computed with cancellation: the inputs' mean is large "
            "against their spread.",
            remedy=words.bullets(
                "Keep samples that are not finite out of the training batches."
                if not_finite
                else "Centre the layer's inputs.",
                "Then reset and re-estimate the statistics:\n"
                + f"{evidence.dialect.reset}\n{evidence.dialect.recalibrate}".lstrip(),
            ),
            layers=names,
            not_finite=not_finite,
            negative_variance=negative,
        )
