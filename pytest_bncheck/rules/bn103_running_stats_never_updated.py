"""BN103: training left the running statistics bit for bit as they were."""

from __future__ import annotations

from collections.abc import Set

import numpy as np

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.maths.distances import shift_and_scale
from pytest_bncheck.maths.running import loses_updates
from pytest_bncheck.maths.verdict import USUAL_DISTORTION
from pytest_bncheck.rules import _faults as faults
from pytest_bncheck.rules import _remedies as remedies
from pytest_bncheck.rules import _words as words
from pytest_bncheck.rules._base import Rule
from pytest_bncheck.types import Finding, Layer

EXACT = 1e-3
"""Shift and scale within which statistics are those of the batch, up to rounding."""


class RunningStatsNeverUpdated(Rule):
    """Running statistics that training does not change.

    What it does
    ------------
    Compares each normalisation layer's running statistics before and after training. A layer that
    ran, is not frozen on purpose, and has exactly the same numbers as before never updates. Of a
    trained model (``steps=0``) it names the layers behind a wrong prediction that no update could
    have moved: momentum 0, or statistics in a type that rounds the updates away.

    Why it is bad
    -------------
    However long the training, eval mode normalises with the initial mean 0 and variance 1.

    Example
    -------
    ::

        nn.BatchNorm2d(64, momentum=0)  # torch: weight of the new batch
        keras.layers.BatchNormalization(momentum=1.0)  # Keras: weight of the past

        class Net(keras.Model):
            def call(self, x):  # fit cannot pass the mode on
                return self.head(self.norm(x))

    Use instead
    -----------
    The default momentum; ``def call(self, x, training=None)`` with ``training`` passed on; update
    statistics in place instead of on a copy. Freezing on purpose is silent: ``trainable=False`` in
    Keras, ``eval()`` on the layer in torch, or ``intended="frozen-batchnorm"``.

    References
    ----------
    torch.nn.BatchNorm2d and keras.layers.BatchNormalization, on momentum; Keras guide "Making new
    layers and models via subclassing", on the training argument of call.
    """

    code = "BN103"
    name = "running-stats-never-updated"
    severity = "error"
    intended = frozenset({"frozen-batchnorm"})

    def find(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        if evidence.too_few:
            return None
        if not evidence.steps:
            return self._handed_over(evidence, explained)
        still = [
            layer
            for k, layer in enumerate(evidence.layers)
            if not layer.frozen and layer.name not in explained and _unchanged(evidence, k)
        ]
        if not still:
            return None
        first, names = still[0], [layer.name for layer in still]
        after = f"in {words.plural(evidence.steps, 'training step')}"
        lost = "lost updates of" if _is_rounded_away(first) else "did not change"
        return self.finding(
            f"{words.n_of_m(names, evidence, '')} {lost} {words.their(names)} running statistics "
            f"{after}.",
            cause=_cause(evidence, first),
            remedy=_remedy(evidence, first),
            layers=names,
            momentum=first.momentum,
            dtype=first.dtype,
        )

    def _handed_over(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        """Of a model that was trained before: what could not move, and is far off."""
        grade = faults.severity(evidence, explained)
        at_fault = faults.layers_at_fault(evidence, explained) or []
        past = evidence.training.past
        places = past.stuck if past else []
        stuck = [layer for k in places if (layer := evidence.layers[k]).name in at_fault]
        if grade is None or not stuck:
            return None
        first, names = stuck[0], [layer.name for layer in stuck]
        return self.finding(
            f"{words.headline(evidence)}. {words.size_of_gap(evidence)}",
            cause=f"{words.distorting(names, evidence)}. {_cause(evidence, first)}",
            remedy=_remedy(evidence, first),
            severity=grade,
            layers=names,
            momentum=first.momentum,
            dtype=first.dtype,
        )


def _unchanged(evidence: Evidence, k: int) -> bool:
    layer, training = evidence.layers[k], evidence.training
    start, stop = training.start, training.stop
    if training.calls.training[k] + training.calls.inference[k] == 0:
        return False
    rounded = _is_rounded_away(layer)
    same_mean = np.array_equal(start.mean[k], stop.mean[k], equal_nan=True)
    same_var = np.array_equal(start.var[k], stop.var[k], equal_nan=True)
    if not ((same_mean and same_var) or rounded):
        return False
    if layer.update_rate == 0.0 or not training.updates[k]:
        return True
    # A layer that fits its batch already has nothing to change.
    shift, scale = shift_and_scale(stop, evidence.passes.noisy_batch, evidence.eps)[k]
    far = max(np.abs(shift).max(initial=0.0), np.abs(scale - 1.0).max(initial=0.0))
    return not far <= (USUAL_DISTORTION if rounded else EXACT)


def _is_rounded_away(layer: Layer) -> bool:
    return bool(layer.update_rate) and loses_updates(layer.update_rate or 0.0, layer.resolution)


def _cause(evidence: Evidence, layer: Layer) -> str:
    k, name = evidence.layers.index(layer), f"Layer {layer.name}"
    if layer.update_rate == 0.0:
        return (
            f"At momentum {layer.momentum:g} a batch has no weight: the statistics of "
            f"{words.layer(layer.name)} stay at their initial value."
        )
    if evidence.steps and not evidence.training.updates[k]:
        return f"{name} ran in inference mode during training: it was not told to train."
    if _is_rounded_away(layer):
        return (
            f"{name} keeps its statistics in {layer.dtype}: a change by "
            f"{layer.update_rate or 0:g} of the difference is rounded away."
        )
    return (
        f"{name} ran in training mode, but its update was lost: written to a copy, undone "
        "after the step, or skipped by the layer."
    )


def _remedy(evidence: Evidence, layer: Layer) -> str:
    k = evidence.layers.index(layer)
    declare = 'If that is on purpose, declare it: intended="frozen-batchnorm".'
    again = None if evidence.steps else remedies.recalibration(evidence)
    if layer.update_rate == 0.0:
        code = remedies.set_rate(evidence, layer, remedies.COMMON_RATE)
        return words.bullets(f"Give it a momentum that updates:\n{code}", again, declare)
    if evidence.steps and not evidence.training.updates[k]:
        mode = evidence.dialect.training_mode
        return words.bullets(f"Pass the mode on to the layer ({mode}).", declare)
    if _is_rounded_away(layer):
        return words.bullets("Keep running statistics in float32.", again, declare)
    return words.bullets("Update the layer's own statistics, in place.", declare)
