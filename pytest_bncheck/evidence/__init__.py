"""What the experiment found, one frozen record for each stage: the only thing that rules look at.

`Training` and `Passes` are measured, `Judgement` says what they mean, `Diagnosis` holds what was
tried out then. `Evidence` is all of them together, made once at the end.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property

from pytest_bncheck.evidence.causes import Parts, parts
from pytest_bncheck.evidence.comparison import Comparison
from pytest_bncheck.evidence.diagnosis import Attribution, Diagnosis, Remedies
from pytest_bncheck.evidence.judgement import Judgement
from pytest_bncheck.evidence.passes import MiniBatches, Passes, Projection
from pytest_bncheck.evidence.training import Training
from pytest_bncheck.maths.verdict import USUAL_GAP
from pytest_bncheck.types import BNVerdict, Capability, Dialect

REPRODUCED = 0.05
"""Gap up to which settled statistics repeat the prediction of training mode."""

__all__ = [
    "REPRODUCED",
    "Attribution",
    "Comparison",
    "Diagnosis",
    "Evidence",
    "Judgement",
    "MiniBatches",
    "Passes",
    "Projection",
    "Remedies",
    "Training",
]


@dataclass(frozen=True)
class Evidence(Judgement):
    """Everything that is known of one check.

    Attributes
    ----------
    dialect
        Lines of code in the user's framework.
    diagnosis
        What was tried out because something was off.
    offers
        The capabilities of the adapter.
    program
        What the model is if it is a finished program, of which only the behaviour shows.
    too_few
        A layer that refused to train on one value per channel; nothing was measured then.
    """

    dialect: Dialect
    diagnosis: Diagnosis = field(default_factory=Diagnosis)
    offers: frozenset[Capability] = frozenset()
    program: str | None = None
    too_few: str | None = None

    @property
    def bn_verdict(self) -> BNVerdict | None:
        """The BN verdict of the report, or None where none is possible."""
        return self.conclusive_verdict

    # layers ---------------------------------------------------------------------------------------

    def distorted(self, explained: Collection[str] = ()) -> list[str]:
        """Names of the layers over the distortion limit, worst first, without the explained ones.

        The worst has the largest share in the gap, or the largest distortion where shares are
        unknown.
        """
        distortions = self.judged_misplacements
        shares = self.diagnosis.attribution.shares or [None] * len(distortions)
        limit, rows = self.distortion_limit, zip(self.layers, shares, distortions, strict=True)
        found = [
            ((-(share or 0.0), -d if d == d else -float("inf")), layer.name)
            for layer, share, d in rows
            if not d <= limit and layer.name not in explained
        ]
        return [name for _, name in sorted(found, key=lambda pair: pair[0])]

    def initial_share(self, explained: Collection[str] = ()) -> float:
        """How much of the distortion the initial value makes; see `Parts.initial_share`."""
        return self._parts.initial_share([layer.name not in explained for layer in self.layers])

    @property
    def causes(self) -> dict[str, int]:
        """How many of the distorted layers suffer from what, the commonest first.

        ``"initial value"``, ``"lag"`` behind moving weights, or ``"noise"`` of the mini-batches,
        whichever makes the largest part of a layer's distortion, and ``"too few values"`` where
        converged statistics would distort it too, being unbiased.
        """
        limit = self.distortion_limit
        return self._parts.commonest([not d <= limit for d in self.judged_distortions.tolist()])

    @cached_property
    def _parts(self) -> Parts:
        return parts(self, unbiased=self.dialect.unbiased)

    # gaps -----------------------------------------------------------------------------------------

    @property
    def surviving_gap(self) -> float | None:
        """The gap that is left with the batch's own statistics in place of the running ones."""
        return self.compared.gap(self.diagnosis.replaced, self.train)

    @property
    def states_explain(self) -> bool:
        """Whether training mode differs by running state that is known by what it does only.

        Once it settled, eval mode repeats training mode.
        """
        rows = zip(self.layers, self.passes.calls.training, strict=True)
        calls = [count for layer, count in rows if layer.states]
        left, whole = self.surviving_gap, self.judged_gap
        if not calls or left is None:
            return False
        if self.modes_meet:
            return True
        # An unbiased variance that is stored leaves a little in each layer, which no decision
        # feels, and so does one average over several calls, each of which normalises by itself.
        freedom = max((self.training.batch_size or math.inf) - 1.0, 1.0)
        unbiased = min(USUAL_GAP + len(calls) / (2.0 * freedom), self.gap_limit)
        allowed = unbiased if max(calls) <= 1 else self.gap_limit
        little = left <= allowed and not self.fails(self.diagnosis.replaced)
        return little or left <= max(REPRODUCED, (whole or 0.0) / 5.0)

    @property
    def modes_meet(self) -> bool:
        """Whether both modes predict the same once all state has settled.

        Training mode may read running state, too: batch renormalisation does, so that its
        prediction moves as well.
        """
        apart = self.compared.gap(self.diagnosis.replaced, self.passes.settled)
        return apart is not None and apart <= self.passes.allowed_path_gap

    @property
    def gap_without_initial_value(self) -> float | None:
        """The gap that is left if the initial value is taken out of the running statistics."""
        typical = self.compared.typical
        return typical.gap(self.diagnosis.debiased, typical.train)

    @property
    def culprits_explain(self) -> float | None:
        """Share of the gap that goes when the culprits are put right; None if not tried."""
        typical = self.compared.typical
        gap = typical.judged_gap
        left = typical.gap(self.diagnosis.attribution.without_culprits, typical.train)
        return None if not gap or left is None else 1.0 - left / gap
