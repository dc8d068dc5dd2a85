"""BN302: the same samples get another prediction each time."""

from __future__ import annotations

from collections.abc import Sequence, Set

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.rules import _words as words
from pytest_bncheck.rules._base import Rule
from pytest_bncheck.types import Finding, Trace


class StochasticEval(Rule):
    """Random numbers in eval mode.

    What it does
    ------------
    Predicts the batch twice in eval mode and watches the random generators. Where random numbers
    are drawn and the predictions differ it is an error; where they have no effect on this batch, a
    warning. One more pass finds the call, its module and the line of code.

    Why it is bad
    -------------
    A prediction cannot be repeated, and it is worse than the network could do. The test suite and
    the metrics flicker.

    Example
    -------
    ::

        h = F.dropout(h, 0.5)  # training=True is the default
        h = nn.Dropout(0.5)(h)  # a new module each time, always in training mode
        F.scaled_dot_product_attention(q, k, v, dropout_p=0.1)  # ignores the mode

    Use instead
    -----------
    ``F.dropout(h, 0.5, training=self.training)``; modules built in ``__init__``;
    ``dropout_p=0.1 if self.training else 0.0``. Monte Carlo dropout and sampling on purpose are
    declared with ``intended="stochastic-eval"``.

    References
    ----------
    torch.nn.functional.dropout and scaled_dot_product_attention, on their defaults. Gal &
    Ghahramani 2016, Dropout as a Bayesian Approximation (where it is the design).
    """

    code = "BN302"
    name = "stochastic-eval"
    severity = "error"
    intended = frozenset({"stochastic-eval"})

    def find(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        if evidence.program is not None:
            return None  # BN403 says what a program does
        passes = evidence.passes
        if passes.eval is None or not passes.draws:
            return None  # where predictions differ without, BN304 says so
        in_training = passes.left_in_training(explained)
        traces = passes.traces_outside(in_training, "random")
        if in_training and not traces:
            return None
        repeat = passes.repeat_gap
        size = (
            f"Two predictions of the same batch in eval mode differ by {repeat:.2g} of their "
            "spread."
            if passes.is_random and repeat is not None
            else "Eval mode draws random numbers, though without an effect on this batch."
        )
        return self.finding(
            f"{size}{words.places(traces)}",
            cause="Something draws random numbers whatever the mode."
            if not traces
            else f"{traces[0].call} draws random numbers whatever the mode.",
            remedy=words.bullets(
                *_advice(traces, evidence.dialect.mode),
                "If it is the design, as Monte Carlo dropout is, declare it: "
                'intended="stochastic-eval".',
            ),
            severity="error" if passes.is_random else "warning",
            gap=repeat,
            calls=[words.place(trace) for trace in traces],
        )


def _advice(traces: Sequence[Trace], mode: str) -> list[str]:
    """What to do at each kind of call: not all of them can be told the mode."""
    return list(dict.fromkeys(_told(trace.call, mode) for trace in traces[:3])) or [
        f"Draw random numbers under `if {mode}` only."
    ]


def _told(call: str, mode: str) -> str:
    name = call.partition("(")[0]
    if "scaled_dot_product" in name:
        return f"Switch its dropout off in eval mode:\n{name}(..., dropout_p=p if {mode} else 0.0)"
    if name.startswith("F.") and ("dropout" in name or name == "F.rrelu"):
        return f"Tell it the mode:\n{name}(..., training={mode})"
    if name.startswith("keras.layers."):
        return f"Tell it the mode:\n{call.replace('training=True', f'training={mode}')}"
    return f"{name} cannot be told the mode: call it under `if {mode}` only."
