"""BN107: the parameters are frozen, the running statistics are not."""

from __future__ import annotations

from collections.abc import Set

import numpy as np

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.rules import _words as words
from pytest_bncheck.rules._base import Rule
from pytest_bncheck.types import Finding


class FrozenLayerDrifts(Rule):
    """Frozen layers whose running statistics go on moving.

    What it does
    ------------
    Looks for normalisation layers whose own parameters, and all that come before them, are
    frozen, and whose running statistics changed in training.

    Why it is bad
    -------------
    The frozen part is no longer the network that was trained: its statistics follow the new data,
    its weights cannot. Training and eval mode may well agree, so that nothing else shows it.

    Example
    -------
    ::

        for parameter in backbone.parameters():
            parameter.requires_grad = False  # does not stop the buffers
        model.train()  # undoes backbone.eval(), every epoch

    Use instead
    -----------
    Keep the frozen part in eval mode by overriding ``train``::

        def train(self, mode=True):
            super().train(mode)
            self.backbone.eval()
            return self

    References
    ----------
    torch.nn.Module.train; torchvision.ops.FrozenBatchNorm2d.
    """

    code = "BN107"
    name = "frozen-layer-drifts"
    severity = "warning"

    def find(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        training = evidence.training
        if not training.steps:
            return None
        names = [
            layer.name
            for k, layer in enumerate(evidence.layers)
            if layer.frozen_parameters
            and not layer.frozen
            and training.updates[k]
            and not np.array_equal(training.start.mean[k], training.stop.mean[k])
        ]
        if not names:
            return None
        return self.finding(
            f"{words.n_of_m(names, evidence, 'have')} frozen parameters, but "
            f"{words.their(names)} running statistics moved; the first is {words.layer(names[0])}.",
            cause="Freezing parameters stops the optimizer, not the running statistics, which "
            "move whenever the layer runs in training mode.",
            remedy=words.bullets(evidence.dialect.freeze),
            layers=names,
        )
