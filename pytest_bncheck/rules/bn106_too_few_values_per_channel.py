"""BN106: a batch statistic comes from too few values to stand for anything."""

from __future__ import annotations

import math
from collections.abc import Set

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.maths.verdict import ACCURACY_DROP, USUAL_DISTORTION, USUAL_GAP, decides_worse
from pytest_bncheck.rules import _faults as faults
from pytest_bncheck.rules import _words as words
from pytest_bncheck.rules._base import Rule
from pytest_bncheck.types import Finding, Prediction, Severity

FEW, VERY_FEW = 16, 8
"""Values per channel below which failing is this rule's error, and below which it always notes."""

REPEATED = 0.05
"""Gap within which training mode is repeated."""

ENOUGH = 64
"""Samples of which chance makes little, where a trained model is judged."""


class TooFewValuesPerChannel(Rule):
    """Batch statistics from a handful of values.

    What it does
    ------------
    Counts n, the values per channel (batch x spatial positions), and predicts with fully
    converged statistics. An error when n = 1, or when n < 16 and even those decide worse; a
    warning when they cost some decisions; a note when they leave a gap of more than 0.10, or when
    n < 8. With ``steps=0`` the batch is not that of the training: where it is
    too small to judge the model, that is a warning.

    Why it is bad
    -------------
    Training normalises with the biased batch variance, PyTorch stores the unbiased one: each
    layer's eval output shrinks by sqrt((n-1)/n), 29 % at n = 2, 6.5 % at n = 8, and depth
    multiplies. With n = 1 a layer outputs its offset and nothing of its input.

    Example
    -------
    Batch normalisation after global pooling, where n is the batch size::

        # with a batch of 2
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(64))

    Use instead
    -----------
    Larger batches (``drop_last=True`` for the rest of an epoch), images as large as the real ones
    where the test's are smaller, GroupNorm or LayerNorm, or SyncBatchNorm over several devices.

    References
    ----------
    Ioffe & Szegedy 2015, section 3.1 (the unbiased variance at inference). Ioffe 2017, Batch
    Renormalization. Wu & He 2018, Group Normalization, figure 1.
    """

    code = "BN106"
    name = "too-few-values-per-channel"
    severity = "error"

    def find(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        if evidence.too_few is not None:
            names = [evidence.too_few]
            alone = evidence.settings.steps == 0
            return self._too_small(names, 1) if alone else self._single(names, evidence)
        few = {
            layer.name: n
            for layer, n, active in zip(
                evidence.layers, _values(evidence), evidence.passes.active, strict=True
            )
            if active and n is not None and layer.name not in explained
        }
        single = [name for name, n in few.items() if n == 1]
        grade = "error" if single else _grade(evidence, few)
        if grade is None:
            return None
        n = min(few.values())
        names = sorted(name for name, count in few.items() if count == n)
        if not evidence.steps and not evidence.stream:  # nobody trained on this batch
            other = grade == "note" or faults.inherited(evidence) is not None
            return None if other else self._too_small(names, n)
        if single:
            return self._single(single, evidence)
        floor, usual = evidence.floor, evidence.slack * USUAL_GAP
        shrink = words.percent(1.0 - ((n - 1) / n) ** 0.5, 1)
        effect = (
            f"the unbiased variance that is stored shrinks its output by {shrink} in eval mode, "
            "and depth multiplies"
            if evidence.dialect.unbiased
            else "statistics of so few values vary from batch to batch"
        )
        message = (
            f"Even with converged statistics the predictions differ by {floor:.2f} of their "
            f"spread over the batch (up to {usual:g} is usual)."
            if floor is not None and not floor <= usual
            else f"{words.n_of_m(names, evidence, 'normalise')} over {words.plural(n, 'value')} "
            "per channel."
        )
        return self.finding(
            message,
            cause=f"A batch gives {words.layer(names[0])} only {words.plural(n, 'value')} per "
            f"channel: {effect}.",
            remedy=_remedy(evidence, n),
            severity=grade,
            layers=names,
            values_per_channel=n,
            floor=floor,
        )

    def _single(self, names: list[str], evidence: Evidence) -> Finding:
        return self.finding(
            f"{words.n_of_m(names, evidence, 'get')} a single value per channel from a training "
            f"batch; the first is {words.layer(names[0])}.",
            cause="The variance of one value is 0: in training the layer outputs its offset, "
            "whatever its input.",
            remedy=_remedy(evidence, 1),
            layers=names,
            values_per_channel=1,
        )

    def _too_small(self, names: list[str], n: int) -> Finding:
        """A model that was trained before cannot be judged on so few samples."""
        values = "a single value" if n == 1 else f"only {words.plural(n, 'value')}"
        return self.finding(
            f"This batch is too small to judge the model: it gives {words.layer(names[0])} "
            f"{values} per channel.",
            cause="Training mode normalises with the statistics of the batch itself, and those of "
            "so few values are chance. Nothing is said about the batches of the training "
            "(steps=0).",
            remedy=words.bullets(
                f"Check the model on more samples that it was trained on, {ENOUGH} or more."
            ),
            severity="warning",
            layers=names if n > 1 else [],
            values_per_channel=n,
        )


def _values(evidence: Evidence) -> list[int | None]:
    """Values per channel in a pass, or in a training step that takes the batch in parts."""
    pairs = zip(evidence.passes.calls.values, evidence.training.calls.values, strict=True)
    return [min((n for n in pair if n is not None), default=None) for pair in pairs]


def _grade(evidence: Evidence, few: dict[str, int]) -> Severity | None:
    """How grave it is that layers have few values, but more than one."""
    if not few or evidence.inconclusive:
        return None
    if not evidence.steps and not evidence.fails(evidence.judged):
        return None  # this batch says nothing about those of the training
    n, floor, best = min(few.values()), evidence.floor, evidence.recalibrated
    if n < FEW and evidence.fails(best) and _repeats_training(evidence):
        return "error"
    if _is_felt(evidence, best) and _is_ours(evidence):
        return "warning"
    wide = floor is not None and not floor <= evidence.slack * USUAL_GAP
    return "note" if n < VERY_FEW or (wide and _is_ours(evidence)) else None


def _is_felt(evidence: Evidence, best: Prediction | None) -> bool:
    """Whether decisions feel that converged statistics are not those of the batch."""
    train = evidence.train
    if best is None or train is None:
        return False
    if evidence.fails(best):
        return True
    if None not in (best.loss, train.loss) and best.loss <= train.loss:  # type: ignore[operator]
        return False
    return decides_worse(best, train, ACCURACY_DROP)


def _repeats_training(evidence: Evidence) -> bool:
    """Whether the batch's own statistics, with their own variance, repeat training mode."""
    left, gap = evidence.surviving_gap, evidence.judged_gap
    return left is None or left <= max(REPEATED, 0.2 * (gap or 0.0))


def _is_ours(evidence: Evidence) -> bool:
    """Whether the floor comes from the stored variance's kind.

    Stochastic layers, and code that takes another path in training, shift the statistics too.
    """
    calm = bool((evidence.shifts <= USUAL_DISTORTION).all())
    return calm and evidence.surviving_gap is not None and _repeats_training(evidence)


def _remedy(evidence: Evidence, n: int) -> str:
    size, values = evidence.training.batch_size, _enough(evidence, n)
    enough = math.ceil(values * size / n) if size else None
    images = _has_images(evidence)
    return words.bullets(
        f"Use batches of at least {enough} samples ({values} values per channel), and leave out "
        f"the smaller rest of an epoch ({evidence.dialect.drop_last})."
        if enough
        else f"Use batches with at least {values} values per channel.",
        "Or use larger images in the test, if those of the real training are larger: each layer "
        "gets more values from them."
        if images
        else None,
        f"Or use {evidence.dialect.per_sample} there, which do not look across the batch.",
    )


def _has_images(evidence: Evidence) -> bool:
    """Whether some layer gets more values than there are samples, as in convolutions."""
    size = evidence.training.batch_size
    return bool(size) and any((n or 0) > (size or 0) for n in evidence.passes.calls.values)


def _enough(evidence: Evidence, n: int) -> int:
    """Values per channel that would do, from what n of them leave.

    The variances differ by a factor of n / (n-1), so the gap falls as 1/n until it saturates near
    the spread of the predictions.
    """
    floor = evidence.floor
    if floor is None or floor != floor:
        return FEW
    return max(FEW, math.ceil(n * min(floor, 1.0) / (evidence.slack * USUAL_GAP)))
