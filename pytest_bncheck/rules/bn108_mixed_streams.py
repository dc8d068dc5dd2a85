"""BN108: one layer normalises several streams that have little in common."""

from __future__ import annotations

from collections.abc import Collection, Set

import numpy as np

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.maths import distances
from pytest_bncheck.rules import _faults as faults
from pytest_bncheck.rules import _words as words
from pytest_bncheck.rules._base import Rule
from pytest_bncheck.types import Finding, Severity, Statistics

APART = 0.5
"""Above this spread, in standard deviations around their mean, streams clearly differ."""

CHANCE_OF_CALLS = 2.0
"""Up to this many times the spread of one distribution, calls may differ by chance."""


class MixedStreams(Rule):
    """One normalisation layer for several different streams.

    What it does
    ------------
    Where a layer runs several times in a training step, it reads the batch statistics of each
    call of the last step and measures how far they lie around their mean, which is what the
    running statistics converge to. It fires when that is more than 0.5 standard deviations, and
    more than chance gives so few samples; or less, where nothing else explains that eval mode
    decides worse. An error where it is what makes eval mode decide worse.

    Why it is bad
    -------------
    In training each stream is normalised by itself; in eval mode all of them by one average that
    fits none. No number of updates changes that.

    Example
    -------
    Real and generated samples, source and target domain, the two inputs of a shared tower::

        # two calls a step
        loss = bce(discriminator(real), 1) + bce(discriminator(fake), 0)

    Use instead
    -----------
    One call on all of them (``discriminator(torch.cat([real, fake]))``), a normalisation layer for
    each stream, or a layer without running statistics (GroupNorm, LayerNorm). Two views of the
    same samples, micro-batches and virtual batches are alike, and silent. A network that never
    runs in eval mode can ignore it: ``ignore={"BN108": "never evaluated"}``.

    References
    ----------
    Li et al. 2017, Revisiting Batch Normalization For Practical Domain Adaptation (AdaBN). Chintala
    et al. 2016, How to Train a GAN?, item 4. Xie et al. 2020, Adversarial Examples Improve Image
    Recognition, section 3.2 (one batch normalisation for each distribution).
    """

    code = "BN108"
    name = "mixed-streams"
    severity = "warning"
    error_when = "it is why eval mode decides worse"
    needs = frozenset({"streams"})

    def find(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        streams = evidence.training.streams
        spreads = {
            layer.name: distances.spread(streams[layer.name].statistics, layer.eps)
            for layer in evidence.layers
            if layer.name in streams and not layer.frozen and layer.name not in explained
        }
        clear = any(spread > _usual(name, evidence) for name, spread in spreads.items())
        if not clear and not _is_all_that_is_left(evidence):
            return None
        names = sorted(spreads, key=lambda name: -spreads[name])
        mixed = [name for name in names if spreads[name] > evidence.distortion_limit]
        grade = _grade(evidence, mixed) if mixed else None
        if grade is None:
            return None
        worst = mixed[0]
        calls = len(streams[worst].statistics)
        return self.finding(
            f"{_quality(evidence, grade)}{words.n_of_m(mixed, evidence, 'normalise')} several "
            f"streams that differ; in {words.layer(worst)} the statistics of a training step's "
            f"{calls} calls lie {spreads[worst]:.2f} standard deviations around their mean"
            + (
                f" (up to {APART:g} is usual)."
                if clear
                else f", with which the predictions still differ by {evidence.surviving_gap:.2f}."
            ),
            cause="Training normalises each call by itself, eval mode all of them by one average "
            "that fits none. More updates do not change that.",
            remedy=words.bullets(
                "Make one call on all streams together, so that they share their statistics in "
                "training too.",
                "Or give each stream a normalisation layer of its own.",
                f"Or use {evidence.dialect.per_sample} there, which do not look across the batch.",
            ),
            severity=grade,
            layers=names,  # of the others only the input is another than in training
            calls=calls,
            spread=spreads[worst],
        )


def _usual(name: str, evidence: Evidence) -> float:
    """The spread up to which the calls of a layer may be of one distribution."""
    streams = evidence.training.streams[name]
    samples = min(streams.samples, evidence.training.batch_size or streams.samples)
    chance = distances.chance_spread(samples, len(streams.statistics))
    return max(APART, CHANCE_OF_CALLS * chance)


def _is_all_that_is_left(evidence: Evidence) -> bool:
    """Whether only layers that run several times can be why eval mode decides worse.

    With the batch's own statistics a layer that runs once repeats what it does in training.
    """
    gap = evidence.surviving_gap
    passes = evidence.passes
    return (
        faults.are_batches_known(evidence)
        and any(count > 1 for count in passes.calls.training)
        and passes.path_gap is not None
        and not evidence.takes_another_path
        and not (evidence.stream or passes.is_random or evidence.inconclusive)
        and all(x.stock and not x.type.startswith("InstanceNorm") for x in evidence.layers)
        and gap is not None
        and not gap <= evidence.gap_limit
        and evidence.fails(evidence.diagnosis.replaced)
        and evidence.fails(evidence.judged)
    )


def _grade(evidence: Evidence, mixed: Collection[str]) -> Severity | None:
    """An error where it costs decisions; None where converging statistics would bring them back."""
    gap = evidence.judged_gap
    far = gap is not None and not gap <= evidence.gap_limit
    suffers = evidence.suffers(evidence.judged) is not False  # unknown: the gap alone decides
    if _lasts_in_a_stream(evidence):
        return "error"
    if evidence.bn_verdict != "broken" and not (far and suffers):
        return "warning"
    floor = evidence.floor
    lasting = floor is not None and not floor <= evidence.gap_limit
    still = lasting and evidence.suffers(evidence.recalibrated) is not False
    if still or _fit_the_mixture(evidence, mixed):
        return "error"
    return None


def _lasts_in_a_stream(evidence: Evidence) -> bool:
    """Whether eval mode decides worse on several mini-batches, even with their mean statistics.

    Gaps are measured from that mean, so they do not show it. Where the same samples in mixed
    mini-batches are decided worse too, the streams need not be why.
    """
    with_mean, remixed = evidence.passes.with_mean, evidence.diagnosis.remixed
    lasts = evidence.fails(evidence.judged) and evidence.fails(with_mean)
    return lasts and remixed is not None and not evidence.fails(remixed)


def _fit_the_mixture(evidence: Evidence, mixed: Collection[str]) -> bool:
    """Whether the running statistics fit the mixture, so that more convergence does not help."""
    judged = evidence.judged_statistics
    for k, layer in enumerate(evidence.layers):
        if layer.name in mixed:
            mixture = evidence.training.streams[layer.name].statistics
            middle = Statistics((np.mean(mixture.mean, axis=0),), (np.mean(mixture.var, axis=0),))
            alone = Statistics((judged.mean[k],), (judged.var[k],))
            if not distances.distortion(alone, middle, [layer.eps])[0] <= evidence.distortion_limit:
                return False
    return True


def _quality(evidence: Evidence, grade: Severity) -> str:
    return f"{words.headline(evidence)}. " if grade == "error" else ""
