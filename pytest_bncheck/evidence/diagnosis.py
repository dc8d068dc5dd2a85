"""What was tried out after the measurement, because something was off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pytest_bncheck.types import Parting, Prediction, Trace

MOST_OF_GAP = 0.8
"""Share of the gap that makes further layers unimportant."""


@dataclass(frozen=True)
class Attribution:
    """The layers' shares in the gap.

    Attributes
    ----------
    shares
        Share of each layer; None where unknown, empty if it was not computed.
    culprits
        Names of the layers with the largest shares, which together make most of the gap.
    without_culprits
        Eval mode on the typical mini-batch, with the statistics of the culprits put right.
    """

    shares: Sequence[float | None] = ()
    culprits: Sequence[str] = ()
    without_culprits: Prediction | None = None


@dataclass(frozen=True)
class Remedies:
    """What would have been enough, in numbers.

    Attributes
    ----------
    further_updates
        Training steps until the prediction would pass, with the weights as they are.
    silent_updates
        The same until nothing at all would be found.
    sufficient_rates
        Total steps -> smallest update rate that would have passed (None: no rate does). Two keys:
        the steps made, and more with frozen weights.
    gaps_after
        Further updates -> the gap predicted after them, of all that were tried.
    gaps_at
        Update rate -> the gap that it would have left after the steps made, of all that were tried.
    """

    further_updates: int | None = None
    silent_updates: int | None = None
    sufficient_rates: Mapping[int, float | None] = field(default_factory=dict)
    gaps_after: Mapping[int, float | None] = field(default_factory=dict)
    gaps_at: Mapping[float, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnosis:
    """Passes with other statistics than the model's, and what follows from them.

    Attributes
    ----------
    replaced
        Eval mode with the batch's own biased statistics: a repetition of training mode, unless the
        model's code depends on the mode.
    debiased
        Eval mode without what is left of the initial value, on the typical mini-batch.
    remixed
        Training mode on mini-batches whose samples were mixed; only if `MiniBatches.with_mean`
        decides worse.
    after_each
        One prediction per mini-batch: eval mode on the typical one, had that one been trained on
        last. Only if some layer is forgetful.
    draws
        Calls in a pass in training mode that draw random numbers; looked for only where layers see
        another distribution without them.
    parting
        Where eval mode begins to compute something else, if it does with the same statistics.
    attribution, remedies
        Empty where they were not asked for.
    """

    replaced: Prediction | None = None
    debiased: Prediction | None = None
    remixed: Prediction | None = None
    after_each: Sequence[Prediction] = ()
    draws: Sequence[Trace] = ()
    parting: Parting | None = None
    attribution: Attribution = field(default_factory=Attribution)
    remedies: Remedies = field(default_factory=Remedies)
