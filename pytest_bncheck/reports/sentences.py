"""What more than one report says about a check, from its JSON object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_bncheck.wording import plural

WORST_FIRST = ("error", "fail", "warn", "pass")
"""The verdicts, in the order in which reports show checks."""

MEASURES = (
    "gap: by how much eval mode's predictions differ from those of training mode, in units of "
    "their spread over the batch.",
    "distortion: by how much a layer's output is off in eval mode, in standard deviations (sigma) "
    "of its normalised values.",
    "retained: how much of what training gained in loss eval mode keeps; 1 is all of it.",
)
"""What the measures mean, a sentence each; said once in a run with a failure."""

NOT_ALIGNED = "The outputs of the two modes cannot be aligned"


def title(check: Mapping[str, Any]) -> str:
    """The test, and which of its checks."""
    name = check["nodeid"] or "check"
    return f"{name} #{check['index'] + 1}" if check["index"] else name


def setting(check: Mapping[str, Any]) -> str:
    """Where a check ran and on what."""
    samples = f" on {plural(check['batch_size'], 'sample')}" if check["batch_size"] else ""
    return f"{check['framework']}, {check['device']}, {plural(check['steps'], 'step')}{samples}"


def first_sentence(message: str) -> str:
    """What a finding says first, without the full stop."""
    return message.partition(". ")[0].rstrip(".")


def headline(check: Mapping[str, Any]) -> str:
    """What the first finding says first; empty if there is none."""
    return first_sentence(check["findings"][0]["message"]) if check["findings"] else ""


def in_short(finding: Mapping[str, Any]) -> str:
    """A finding's first sentence and its cause."""
    return f"{first_sentence(finding['message'])}. {finding['cause']}"


def problem(check: Mapping[str, Any]) -> str:
    """The first line of what kept a check from being made."""
    return str(check["error"]).partition("\n")[0]


def agreement(check: Mapping[str, Any]) -> str:
    """How eval mode compares, to follow those words; a suppressed finding may say otherwise."""
    unknown = check["bn_verdict"] is None and check["layers"]
    if check["suppressed"] or "modes" in check or unknown:
        return "against training mode"
    compared, curves = check["predictions"]["projected"] or check["predictions"], check["curves"]
    gap = compared["gap"]
    apart = isinstance(gap, float) and curves and gap > curves["gap_limit"]
    return f"{'decides like' if apart else 'repeats'} training mode"


def assumed(check: Mapping[str, Any]) -> str:
    """What was assumed about the modes; empty if they were observed."""
    if check.get("modes") != "assumed":
        return ""
    return (
        "The modes are assumed: no training step could be made to see which layers train in "
        "training mode, so all of them were told to."
    )


def without_layers(check: Mapping[str, Any]) -> str:
    """Why no layer is judged."""
    if check.get("modes") == "hidden":
        return "layers hidden in a finished program"
    return "no layer with running statistics"


def not_checked(check: Mapping[str, Any]) -> Sequence[str]:
    """Which rules were not applied, a sentence for each."""
    sentences: Sequence[str] = check.get("not_checked", ())
    return sentences


def suppressed(check: Mapping[str, Any]) -> str:
    """Which findings do not count, to end a line with; empty if there are none."""
    codes = ", ".join(hidden["code"] for hidden in check["suppressed"])
    return f" ({codes} suppressed)" if codes else ""
