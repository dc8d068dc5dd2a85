"""BN402: each process of a distributed training has running statistics of its own."""

from __future__ import annotations

from collections.abc import Set

import numpy as np

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.maths import distances
from pytest_bncheck.rules import _words as words
from pytest_bncheck.rules._base import Rule
from pytest_bncheck.types import Finding

ROUNDING = 1e-3
"""Distance, in standard deviations, that rounding alone can make."""


class ReplicasDiverge(Rule):
    """Running statistics that differ from process to process.

    What it does
    ------------
    Where a model is wrapped in DistributedDataParallel or by fully_shard, or has SyncBatchNorm
    layers, and several processes run the check, it compares their running statistics after
    training, as the next forward would find them. Of a Keras model under TensorFlow's
    MirroredStrategy it compares those of the replicas: as they are where no step is made, and
    otherwise as the share of the batch that each gets moves them.

    Why it is bad
    -------------
    Gradients keep the parameters together, nothing keeps the statistics together. Each process
    predicts something else in eval mode, and a checkpoint holds those of the process that wrote
    it, of its share of the data alone.

    Example
    -------
    ::

        # later versions of PyTorch: forward_sync_buffers
        DistributedDataParallel(model, broadcast_buffers=False)

    Use instead
    -----------
    ``nn.SyncBatchNorm.convert_sync_batchnorm(model)`` before wrapping, which normalises over all
    processes together (on GPUs), or the default of ``broadcast_buffers``, which gives all
    processes the statistics of the first. In Keras ``BatchNormalization(synchronized=True)``.

    References
    ----------
    torch.nn.parallel.DistributedDataParallel, on broadcast_buffers. torch.nn.SyncBatchNorm.
    """

    code = "BN402"
    name = "replicas-diverge"
    severity = "error"
    needs = frozenset({"replicas"})

    def find(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        replicas = evidence.training.replicas
        if not replicas:
            return None
        first, *others = replicas
        eps = evidence.eps[: len(first)]  # state that was found by behaviour comes last
        farthest = np.max([distances.distortion(first, other, eps) for other in others], axis=0)
        apart = {
            layer.name: float(distance)
            for layer, distance in zip(evidence.layers, farthest, strict=False)
            if not distance <= ROUNDING and layer.name not in explained
        }
        if not apart:
            return None
        names = sorted(apart, key=lambda name: -apart[name])
        return self.finding(
            f"The {len(replicas)} {evidence.dialect.replicas} have different running statistics in "
            f"{words.n_of_m(names, evidence, '')}; in {words.layer(names[0])} they are "
            f"{apart[names[0]]:.2g} standard deviations apart.",
            cause=f"Each {evidence.dialect.replica} averages the statistics of its own batches, "
            "and nothing brings the averages together.",
            remedy=words.bullets(*evidence.dialect.together),
            layers=names,
            processes=len(replicas),
            apart=apart[names[0]],
        )
