"""The rules, one file each, and the order in which they explain what was measured."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.rules._base import Rule
from pytest_bncheck.rules.bn101_running_stats_underconverged import RunningStatsUnderconverged
from pytest_bncheck.rules.bn102_running_stats_lagging import RunningStatsLagging
from pytest_bncheck.rules.bn103_running_stats_never_updated import RunningStatsNeverUpdated
from pytest_bncheck.rules.bn104_momentum_suspicious import MomentumSuspicious
from pytest_bncheck.rules.bn105_running_stats_invalid import RunningStatsInvalid
from pytest_bncheck.rules.bn106_too_few_values_per_channel import TooFewValuesPerChannel
from pytest_bncheck.rules.bn107_frozen_layer_drifts import FrozenLayerDrifts
from pytest_bncheck.rules.bn108_mixed_streams import MixedStreams
from pytest_bncheck.rules.bn109_batch_shortcut import BatchShortcut
from pytest_bncheck.rules.bn110_dropout_shifts_variance import DropoutShiftsVariance
from pytest_bncheck.rules.bn111_oversized_eps import OversizedEps
from pytest_bncheck.rules.bn201_eval_path_differs import EvalPathDiffers
from pytest_bncheck.rules.bn202_training_inconclusive import TrainingInconclusive
from pytest_bncheck.rules.bn301_module_ignores_mode import ModuleIgnoresMode
from pytest_bncheck.rules.bn302_stochastic_eval import StochasticEval
from pytest_bncheck.rules.bn303_eval_depends_on_batch import EvalDependsOnBatch
from pytest_bncheck.rules.bn304_eval_mutates_state import EvalMutatesState
from pytest_bncheck.rules.bn305_trained_in_eval_mode import TrainedInEvalMode
from pytest_bncheck.rules.bn306_mode_sticks import ModeSticks
from pytest_bncheck.rules.bn307_predicts_in_train_mode import PredictsInTrainMode
from pytest_bncheck.rules.bn401_statistics_lost_in_copy import StatisticsLostInCopy
from pytest_bncheck.rules.bn402_replicas_diverge import ReplicasDiverge
from pytest_bncheck.rules.bn403_exported_in_train_mode import ExportedInTrainMode
from pytest_bncheck.types import Finding, InputError, Suppressed

__all__ = ["INTENDED", "ORDER", "RULES", "Found", "find", "not_checked", "resolve"]

ORDER: tuple[Rule, ...] = (
    RunningStatsInvalid(),
    ExportedInTrainMode(),
    ModuleIgnoresMode(),
    StochasticEval(),
    EvalDependsOnBatch(),
    EvalMutatesState(),
    TrainedInEvalMode(),
    ReplicasDiverge(),
    StatisticsLostInCopy(),
    RunningStatsNeverUpdated(),
    BatchShortcut(),
    MixedStreams(),
    TooFewValuesPerChannel(),
    DropoutShiftsVariance(),
    RunningStatsUnderconverged(),
    RunningStatsLagging(),
    EvalPathDiffers(),
    TrainingInconclusive(),
    MomentumSuspicious(),
    OversizedEps(),
    FrozenLayerDrifts(),
    ModeSticks(),
    PredictsInTrainMode(),
)
"""An earlier finding explains its layers, and later rules leave them out."""

RULES: Mapping[str, Rule] = {rule.code: rule for rule in sorted(ORDER, key=lambda r: r.code)}
"""All rules by code."""

INTENDED: Mapping[str, frozenset[str]] = {
    design: frozenset(code for code, rule in RULES.items() if design in rule.intended)
    for design in sorted({design for rule in ORDER for design in rule.intended})
}
"""The rules that a declared design silences, as far as a finding is about it (`Rule.covers`)."""


class Found(NamedTuple):
    """What the rules make of a check.

    Attributes
    ----------
    findings
        Faults, gravest first.
    notes
        What is true and asks for nothing.
    suppressed
        Faults that the user's options suppress.
    """

    findings: list[Finding]
    notes: list[Finding]
    suppressed: list[Suppressed]


def find(evidence: Evidence) -> Found:
    """What all rules find.

    A finding that counts explains its layers: an error hides later ones on them, a warning later
    warnings, a note nothing. What a suppressed finding would explain is looked for as if it were
    not there.
    """
    found = Found([], [], [])
    explained: set[str] = set()
    warned: set[str] = set()
    selected = _selected(evidence)
    for rule in ORDER:
        if rule.code not in selected or not rule.needs <= evidence.offers:
            continue
        finding = rule.find(evidence, explained)
        if finding is not None and finding.severity == "warning" and warned - explained:
            finding = rule.find(evidence, explained | warned)
        if finding is None:
            continue
        reason = _reason(rule, finding, evidence)
        if finding.severity == "note":
            found.notes.extend([] if reason else [finding])
        elif reason is not None:
            hidden = Suppressed(finding.code, finding.name, reason, finding.message)
            found.suppressed.append(hidden)
        else:
            found.findings.append(finding)
            explains = explained if finding.severity == "error" else warned
            explains.update(rule.explains(finding))
    found.findings.sort(key=lambda finding: finding.severity != "error")
    return found


def not_checked(evidence: Evidence) -> list[str]:
    """For each selected rule that the adapter does not offer enough for, a sentence that says so.

    Of a finished program only the behaviour shows, whatever the adapter, so nothing is listed.
    """
    selected = _selected(evidence) if evidence.program is None else set()
    missing = {code: rule.needs - evidence.offers for code, rule in RULES.items()}
    return [
        f"{code} {rule.name} needs {' and '.join(sorted(missing[code]))}, which this adapter does "
        "not offer."
        for code, rule in RULES.items()
        if code in selected and missing[code]
    ]


def resolve(text: str) -> set[str]:
    """The codes that a code, a name or a prefix (``BN1``) stands for.

    Raises
    ------
    InputError
        If it stands for none; the text names the nearest ones.
    """
    wish = text.strip()
    codes = {
        rule.code
        for rule in RULES.values()
        if rule.name == wish.lower() or (wish and rule.code.startswith(wish.upper()))
    }
    if not codes:
        known = [*RULES, *(rule.name for rule in RULES.values())]
        near = difflib.get_close_matches(wish, known, n=3, cutoff=0.4) or list(RULES)
        raise InputError(f"there is no rule {text!r}; near: {', '.join(near)}")
    return codes


def _selected(evidence: Evidence) -> set[str]:
    return _codes(evidence.settings.select) or set(RULES)


def _codes(names: Iterable[str]) -> set[str]:
    return set().union(*(resolve(name) for name in names))


def _reason(rule: Rule, finding: Finding, evidence: Evidence) -> str | None:
    """Why a finding does not count, or None if it does."""
    for design in evidence.settings.intended:
        if design in rule.intended and rule.covers(design, finding, evidence):
            return f"intended: {design}"
    for name, reason in evidence.settings.ignore.items():
        if rule.code in resolve(name):
            return f"ignored: {reason}" if reason else "ignored"
    return None
