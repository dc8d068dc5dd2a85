"""How rules say numbers, so that all messages read alike."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.maths.verdict import USUAL_DISTORTION, USUAL_GAP
from pytest_bncheck.types import Layer, Prediction, Trace
from pytest_bncheck.wording import listing as listing
from pytest_bncheck.wording import percent as percent
from pytest_bncheck.wording import plural as plural

HUGE = 100
"""A gap whose digits say nothing: the samples hardly differ, or there is only one."""

USUAL = {"gap_tolerance": USUAL_GAP, "distortion_tolerance": USUAL_DISTORTION}
"""What healthy networks keep to: beyond it a check warns, before it fails."""


def how_good(prediction: Prediction | None) -> str | None:
    """``33 % right``, or the loss where accuracy is unknown; None where both are."""
    return _accuracy(prediction) or _loss(prediction)


def _accuracy(prediction: Prediction | None) -> str | None:
    if prediction is None or prediction.accuracy is None:
        return None
    return f"{percent(prediction.accuracy)} right"


def _loss(prediction: Prediction | None) -> str | None:
    if prediction is None or prediction.loss is None:
        return None
    return f"loss {prediction.loss:.3g}"


def compared(one: Prediction | None, other: Prediction | None) -> tuple[str, str] | None:
    """How good two predictions are, by accuracy or else by loss; None where neither differs."""
    for quality in (_accuracy, _loss):
        first, second = quality(one), quality(other)
        if first and second and first != second:
            return first, second
    return None


def headline(evidence: Evidence) -> str:
    """``100 % right in training mode, 33 % in eval mode``, or the best that is known."""
    mode, other = "in eval mode", "in training mode"
    if evidence.passes.own_path:  # where the statistics are judged on the path of eval mode
        other = "with batch statistics"
    if evidence.passes.projection is not None:
        mode = f"in eval mode after {evidence.settings.planned_updates} updates"
    pair = compared(evidence.train, evidence.judged)
    if pair:
        second = pair[1].removesuffix(" right").removeprefix("loss ")
        return f"{pair[0]} {other}, {second} {mode}"
    other = other.removeprefix("in ").replace("with", "those with")
    return f"the predictions of {other} and {mode.removeprefix('in ')} differ"


def size_of_gap(evidence: Evidence) -> str:
    """The gap with its limit, as a sentence."""
    gap = evidence.judged_gap
    where = f"On the same {plural(evidence.training.batch_size or 0, 'sample')}"
    if len(evidence.passes.batches) > 1:
        where = f"On the same {len(evidence.passes.batches)} mini-batches"
    elif not evidence.training.batch_size:
        where = "They"
    if gap is None:
        return f"{where} the predictions cannot be aligned."
    apart = f"{gap:.2f} of" if not gap >= HUGE else f"more than {HUGE} times"
    return (
        f"{where} the two predictions differ by {apart} their spread over the batch "
        f"({limit(evidence, 'gap_tolerance')})."
    )


def limit(evidence: Evidence, name: str) -> str:
    """A tolerance and where it came from: ``up to 0.25 allowed, default``.

    Before it, for what does not break the network, what it is about: ``up to 0.1 is usual``.
    """
    value, usual = (
        each * evidence.slack for each in (getattr(evidence.settings, name), USUAL[name])
    )
    several = "several mini-batches" if evidence.stream else "a step in several parts"
    doubled = f", doubled for {several}" if evidence.slack > 1 else ""
    warned = evidence.bn_verdict != "broken" and usual < value
    return (
        f"{f'up to {usual:g} is usual, ' if warned else ''}up to {value:g} allowed, "
        f"{evidence.settings.origin(name)}{doubled}"
    )


def distorting(layers: Collection[str], evidence: Evidence) -> str:
    """``53 of 53 normalisation layers distort their output (up to 0.1 ... allowed, default)``."""
    moved = [layer for layer in evidence.layers if layer.states and layer.name in layers]
    if moved and len(moved) == len(layers):
        have = n_of_m(layers, evidence, "have")
        return f"{have} statistics far from settled ({_states(moved)})"
    allowed = limit(evidence, "distortion_tolerance").replace(" allowed", " sigma allowed", 1)
    if not layers:
        worst = float(evidence.judged_distortions.max(initial=0.0))
        far = f"is far off (distortion up to {worst:.2f}; {allowed})"
        if all(layer.states for layer in evidence.layers):
            worst = max(evidence.judged_misplacements, default=0.0)
            far = f"is far from settled (up to {percent(worst)} of the way from its initial values)"
        amplified = ", but depth amplifies it" if _is_noticed(evidence) else ""
        return f"No single layer {far}{amplified}"
    return f"{n_of_m(layers, evidence, 'distort')} {their(layers)} normalised output ({allowed})"


def _states(layers: Sequence[Layer]) -> str:
    """The names of what training moves in layers known by that only, each once."""
    return code(list(dict.fromkeys(name for layer in layers for name in layer.states)), 3)


def _is_noticed(evidence: Evidence) -> bool:
    gap = evidence.judged_gap
    return gap is not None and not gap <= USUAL_GAP


def n_of_m(layers: Collection[str], evidence: Evidence, verb: str) -> str:
    """``3 of 20 normalisation layers have``; the verb is given in its plural form."""
    noun = "normalisation layer" if len(evidence.layers) == 1 else "normalisation layers"
    singular = {"have": "has"}.get(verb, f"{verb}s") if verb else ""
    form = singular if len(layers) == 1 else verb
    return f"{len(layers)} of {len(evidence.layers)} {noun} {form}".rstrip()


def their(layers: Collection[str]) -> str:
    """What the layers have is ``its`` of a single one."""
    return "its" if len(layers) == 1 else "their"


def memory(evidence: Evidence, layer: Layer, rate: float) -> str:
    """``momentum 0.9``, or ``update rate 0.1`` of a layer whose momentum means something else."""
    if not layer.stock:
        return f"update rate {rate:.4g}"
    return f"momentum {evidence.dialect.momentum_of(rate):g}"


def layer(name: str) -> str:
    """``layer 1``: names are often mere numbers."""
    return f"layer {name}" if name else "the model itself"


def code(names: Sequence[str], most: int = 5) -> str:
    """Names of attributes and variables, which may be words like any other."""
    return listing([f"`{name}`" for name in names], most)


def place(trace: Trace) -> str:
    """``F.dropout(p=0.5) in encoder.head, net.py:12: h = F.dropout(h, 0.5)``."""
    where = f" in {trace.module}" if trace.module else ""
    return f"{trace.call}{where}{f', {trace.source}' if trace.source else ''}"


def places(traces: Sequence[Trace]) -> str:
    """A sentence that names the calls, or nothing."""
    return f" It comes from {'; '.join(place(trace) for trace in traces[:3])}." if traces else ""


def sentences(*some: str | None) -> str:
    """The sentences one after the other; None is left out."""
    return " ".join(sentence for sentence in some if sentence)


def bullets(*lines: str | None) -> str:
    """The lines as a list of things to do; None is left out, and an "Or" before the first."""
    known = [line for line in lines if line]
    if known and known[0].startswith("Or "):
        known[0] = known[0][3].upper() + known[0][4:]
    return "\n".join(f"- {line}" for line in known)
