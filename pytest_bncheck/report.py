"""The result of a check. Its attributes are the keys of the JSON report, schema 1."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_bncheck.exact import exact
from pytest_bncheck.types import BNVerdict, Finding, Modes, Suppressed, Verdict


@dataclass(frozen=True)
class Scored:
    """Loss and accuracy (in [0, 1]) on the targets; None where they cannot be computed."""

    loss: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Projected(Scored):
    """Eval mode with the statistics projected to `planned_updates`."""

    gap: float | None = None
    excess: float | None = None
    distortion: float | None = None
    retained: float | None = None


@dataclass(frozen=True)
class Predictions:
    """How the modes compare.

    Attributes
    ----------
    gap
        Eval against training prediction, relative, >= 0; None if they cannot be aligned.
    floor, excess
        Converged statistics against training, eval against converged; None where not needed.
    distortion
        The largest of all layers, in standard deviations.
    retained
        Share of training's progress that eval keeps, 1 = all; None if training achieved nothing.
    argmax_agreement
        Share of equal decisions, in [0, 1]; None if not a classifier.
    train, eval, recalibrated, projected
        With batch statistics, as eval mode is, with converged and with projected statistics.
    """

    gap: float | None = None
    floor: float | None = None
    excess: float | None = None
    distortion: float | None = None
    retained: float | None = None
    argmax_agreement: float | None = None
    train: Scored = field(default_factory=Scored)
    eval: Scored = field(default_factory=Scored)
    recalibrated: Scored | None = None
    projected: Projected | None = None


@dataclass(frozen=True)
class LayerReport:
    """One layer with running statistics.

    Attributes
    ----------
    name, type
        Its path in the model, and its class.
    momentum, update_rate
        In the framework's own convention; as α in running ← (1-α)·running + α·batch.
    updates, initial_weight
        Updates during the check; the share of the initial value that is left, in [0, 1].
    values_per_channel
        n, the values that one batch statistic comes from.
    shift, scale
        Root mean square over channels of d and s-1 in x̂_eval = s·x̂_train + d.
    distortion
        D, in standard deviations of the normalised output.
    attribution
        Share of the output gap; None where it was not computed.
    states
        Of a layer that is known by what it does only: the names of what training moves. Shift,
        scale and distortion are None then.
    """

    name: str
    type: str
    momentum: float | None
    update_rate: float | None
    updates: int
    initial_weight: float | None
    values_per_channel: int | None
    shift: float | None
    scale: float | None
    distortion: float | None
    attribution: float | None = None
    states: Sequence[str] = ()


@dataclass(frozen=True)
class Remedies:
    """What would cure the running statistics; None where unknown or not computed.

    Attributes
    ----------
    further_updates, silent_updates
        Training steps until the check would not fail any more, and until it would find nothing.
    momentum
        With which the same training would have passed, in the framework's own sense.
    recalibrates
        Whether statistics that are re-estimated cure the prediction.
    """

    further_updates: int | None = None
    momentum: float | None = None
    recalibrates: bool | None = None
    silent_updates: int | None = None


@dataclass(frozen=True)
class Training:
    """The loss of every training step."""

    loss: Sequence[float] = ()


@dataclass(frozen=True)
class Samples:
    """Outputs of some samples, which a plot shows; at most 32 samples of 8 values each.

    Attributes
    ----------
    train, eval
        With batch statistics, and in the mode that is judged; of shape (samples, values).
    same_decision
        Whether each sample's argmax is the same; None if the model is not a classifier.
    """

    train: Sequence[Sequence[float]]
    eval: Sequence[Sequence[float]]
    same_decision: Sequence[bool] | None = None


@dataclass(frozen=True)
class AfterUpdates:
    """The gap that is predicted after more updates with the weights as they are."""

    updates: int
    gap: float | None


@dataclass(frozen=True)
class WithMomentum:
    """The gap that the steps of the check would have left with another momentum."""

    momentum: float
    update_rate: float
    gap: float | None


@dataclass(frozen=True)
class Curves:
    """What plots show beyond the rest of the report.

    Attributes
    ----------
    gap_limit, distortion_limit
        The largest values allowed in this check.
    samples
        Training against eval predictions, where there is a finding.
    updates, momentum
        What was tried for the remedies; empty if nothing was.
    """

    gap_limit: float
    distortion_limit: float
    samples: Samples | None = None
    updates: Sequence[AfterUpdates] = ()
    momentum: Sequence[WithMomentum] = ()


@dataclass(frozen=True)
class Seconds:
    """Wall time of the parts of a check."""

    train: float = 0.0
    measure: float = 0.0
    diagnose: float = 0.0
    total: float = 0.0


@dataclass(frozen=True)
class Report:
    """Everything that one check found. Printing it gives the text of the terminal.

    Attributes
    ----------
    nodeid, index
        The test and the number of the check in it; empty and 0 outside pytest.
    framework, backend, device
        Where the check ran, in the framework's own words; empty if it could not be made.
    verdict
        "pass", "warn", "fail", or "error" if the check could not be made.
    error
        What kept the check from being made, or None.
    bn_verdict
        How eval mode compares with training mode: "healthy", "degraded", "broken", or None.
    steps
        Training steps made.
    planned_updates
        The option, or None.
    batch_size
        Samples of a batch; None if unknown.
    seed
        The option.
    findings, suppressed
        Faults that count, gravest first, and those that do not.
    notes
        What is true and asks for nothing; no part of the verdict.
    not_checked
        A sentence for each rule that needs more than the adapter offers, and so was not applied;
        not in the JSON object if there is none.
    modes
        "assumed" if nothing showed in which modes the layers train, "hidden" if the layers of a
        finished program cannot be seen; not in the JSON object if it is "observed".
    predictions
        How the modes compare.
    layers
        The layers with running statistics, in the order in which they run.
    remedies
        What would cure the running statistics; None if nothing was computed.
    training
        The loss of every step.
    curves
        What plots show beyond the rest; None if there was no check.
    seconds
        Wall time of the parts of the check.
    """

    nodeid: str = ""
    index: int = 0
    framework: str = ""
    backend: str = ""
    device: str = ""
    verdict: Verdict = "pass"
    error: str | None = None
    bn_verdict: BNVerdict | None = None
    steps: int = 0
    planned_updates: int | None = None
    batch_size: int | None = None
    seed: int = 0
    findings: Sequence[Finding] = ()
    notes: Sequence[Finding] = ()
    suppressed: Sequence[Suppressed] = ()
    not_checked: Sequence[str] = ()
    modes: Modes = "observed"
    predictions: Predictions = field(default_factory=Predictions)
    layers: Sequence[LayerReport] = ()
    remedies: Remedies | None = None
    training: Training = field(default_factory=Training)
    curves: Curves | None = None
    seconds: Seconds = field(default_factory=Seconds)

    @property
    def ok(self) -> bool:
        """Whether the verdict is not fail."""
        return self.verdict != "fail"

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of this check: exact builtins only, non-finite numbers as strings."""
        result = exact(dataclasses.asdict(self))
        assert isinstance(result, dict)
        if not self.not_checked:
            del result["not_checked"]
        if self.modes == "observed":
            del result["modes"]
        return result

    def _repr_html_(self) -> str | None:
        """The HTML report, which notebooks show; None without the extra ``html``."""
        try:
            from pytest_bncheck.reports import html
        except ImportError:
            return None
        return html.frame(self.to_dict())

    def __str__(self) -> str:
        from pytest_bncheck.reports import layout, terminal

        return "\n".join(map(layout.printable, terminal.check_lines(self.to_dict())))


class CheckFailed(AssertionError):
    """A check's verdict is fail. The text is the report's; `report` holds the rest."""

    def __init__(self, report: Report) -> None:
        super().__init__(str(report))
        self.report = report


CheckFailed.__module__ = "pytest_bncheck"  # where users import it from, in tracebacks too
