"""BN109: training mode is right only on the batches as they were put together."""

from __future__ import annotations

from collections.abc import Set

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.maths import distances, running
from pytest_bncheck.rules import _words as words
from pytest_bncheck.rules._base import Rule
from pytest_bncheck.types import Finding

CHANCE_OF_BATCHES = 2.0
"""Up to this many times the spread of one distribution, mini-batches may differ by chance."""

FEW_VALUES = 16
"""Values per channel below which mini-batches of one distribution differ this much anyway."""


class BatchShortcut(Rule):
    """Batches whose composition gives the answer away.

    What it does
    ------------
    Needs several mini-batches (``batches=``). Predicts in training mode on each as it was trained
    on, and again after their samples were dealt anew; batches of one sample are put together. It
    fires where only the first is right, and where the mean of the mini-batches' statistics, to
    which running statistics converge, does not predict right either, and where the mini-batches
    differ by more than chance: small ones of one distribution always differ a little.

    Why it is bad
    -------------
    Batch statistics show which batch a sample is in. If all of its mates are of one class, that
    is the answer, and the network learns to read it there. In eval mode, and in any other batch,
    it is not there: training is perfect, evaluation is chance.

    Example
    -------
    A loader that keeps the order of folders, one class after the other::

        DataLoader(ImageFolder(path), batch_size=32)  # one class in each batch
        for sample, label in data:                             # batches of one
            step(sample[None], label[None])

    Use instead
    -----------
    ``shuffle=True``, larger batches that mix the classes, or a normalisation that does not look
    across the batch (GroupNorm, LayerNorm).

    References
    ----------
    He et al. 2020, Momentum Contrast, section 3.3 (batch statistics leak the answer; shuffling
    batch normalisation). Wu & Johnson 2021, Rethinking "Batch" in BatchNorm, section 6.
    """

    code = "BN109"
    name = "batch-shortcut"
    severity = "error"
    needs = frozenset({"sampling"})

    def find(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        mixed = evidence.diagnosis.remixed
        if mixed is None or not evidence.trained or not evidence.fails(evidence.judged):
            return None
        passes = evidence.passes
        rows = zip(
            evidence.layers,
            running.by_layer(passes.batches),
            passes.active,
            passes.calls.values,
            strict=True,
        )
        spreads = {
            layer.name: distances.spread(statistics, layer.eps)
            for layer, statistics, active, n in rows
            if active and n != 1 and layer.name not in explained
        }
        if not evidence.fails(mixed) or not spreads or _is_chance(evidence, spreads):
            return None
        names = sorted(spreads, key=lambda name: -spreads[name])
        single = evidence.training.batch_size == 1
        return self.finding(
            f"{words.headline(evidence)}. Training mode too is right only on the mini-batches as "
            f"they are. {_mixed(single)} the same samples give "
            f"{words.how_good(mixed) or 'other predictions'}.",
            cause="What a sample is can be told from the batch statistics, since "
            + (
                "each batch is a single sample"
                if single
                else f"the mini-batches differ{_by(names[0], spreads[names[0]])}"
            )
            + ". Running statistics are of all batches and do not show it, however long "
            "the training.",
            remedy=words.bullets(
                "Train on batches of several samples."
                if single
                else f"Shuffle the samples, so that each batch holds all classes "
                f"({evidence.dialect.shuffle}).",
                f"Or use {evidence.dialect.per_sample}, which do not look across the batch.",
            ),
            layers=names,
            mini_batches=len(passes.batches),
            remixed_loss=mixed.loss,
            remixed_accuracy=mixed.accuracy,
            spread=spreads[names[0]],
        )


def _by(layer: str, spread: float) -> str:
    """By how much; nobody knows in which units running state of the user's is."""
    if not spread:
        return ""
    return (
        f": in {words.layer(layer)} their statistics lie {spread:.2f} standard deviations around "
        "their mean"
    )


def _mixed(single: bool) -> str:
    return "Put together in one batch," if single else "Shuffled into other mini-batches,"


def _is_chance(evidence: Evidence, spreads: dict[str, float]) -> bool:
    """Whether mini-batches as small as these differ so much by themselves.

    Also asked where the predictions hardly differ, and a few samples lie where decisions change.
    """
    size, values = evidence.training.batch_size, evidence.passes.calls.values
    few = min((n for n in values if n is not None), default=FEW_VALUES) < FEW_VALUES
    if (evidence.looks_off and not few) or not size or size == 1:
        return False
    usual = distances.chance_spread(size, len(evidence.passes.batches))
    most = CHANCE_OF_BATCHES * usual if few else usual
    return all(spread <= most for spread in spreads.values())
