"""BN304: predicting changes the model."""

from __future__ import annotations

from collections.abc import Set

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.rules import _words as words
from pytest_bncheck.rules._base import Rule
from pytest_bncheck.types import Finding

STATISTICS = ("running_", "moving_", "num_batches_tracked")
"""How the names of running statistics begin."""


class EvalMutatesState(Rule):
    """An eval pass that writes to the model's state.

    What it does
    ------------
    Compares all state before and after an eval pass: parameters, buffers, non-trainable variables,
    tensors in attributes, lists and dictionaries; NaN equals NaN. It fires where a parameter
    changed, or where something changed and the same batch gets another prediction afterwards,
    though no random number was drawn. What is overwritten before it is read, as a cache, is silent.

    Why it is bad
    -------------
    The model drifts with every prediction, and the checkpoint depends on how often it was
    evaluated.

    Example
    -------
    ::

        # in forward, whatever the mode
        self.centre = 0.9 * self.centre + 0.1 * x.mean(0)
        return x - self.centre

    Use instead
    -----------
    Writing under ``if self.training`` only.

    References
    ----------
    torch.nn.Module.register_buffer; keras.layers.Layer.add_weight, on trainable.
    """

    code = "BN304"
    name = "eval-mutates-state"
    severity = "error"
    intended = frozenset({"stochastic-eval", "batch-statistics-in-eval"})

    def find(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        passes = evidence.passes
        if passes.eval is None or evidence.program is not None:
            return None
        # A module that a finding explains, and a call that normalises with the batch, write too.
        writers = {
            *passes.left_in_training(explained),
            *(trace.module for trace in passes.traces if trace.kind == "batch statistics"),
        }
        names = [name for name in passes.eval.mutated if name.rpartition(".")[0] not in writers]
        if passes.depends_on_batch:  # statistics are BN303's
            names = [name for name in names if not name.rsplit(".", 1)[-1].startswith(STATISTICS)]
        drifts = passes.is_random and not passes.draws
        names = [*passes.eval.rewritten, *(names if drifts else ())]
        if not names and not drifts:
            return None
        where = words.code(names[:1]) if names else "something that it reads again"
        return self.finding(
            _found(names, passes.repeat_gap if drifts else None),
            cause=f"The forward pass writes to {where} whatever the mode.",
            remedy=words.bullets(f"Write there under `if {evidence.dialect.mode}` only."),
            state=names,
        )

    def covers(self, design: str, finding: Finding, evidence: Evidence) -> bool:
        """Statistics in eval mode move running ones, random numbers the seed of a generator."""
        theirs = STATISTICS if design == "batch-statistics-in-eval" else ("seed",)
        names = [name.rsplit(".", 1)[-1] for name in finding.evidence["state"]]
        return bool(names) and all(name.startswith(theirs) for name in names)


def _found(names: list[str], repeat: float | None) -> str:
    """What changed, and how far the next prediction is from the first, where it is."""
    apart = f"the predictions differ by {repeat:.2g} of their spread." if repeat else ""
    if not names:
        return (
            "Eval mode gives the same batch another prediction each time, and draws no random "
            f"numbers: {apart}"
        )
    changed = f"An eval pass changed {words.code(names)}"
    if apart:
        return f"{changed}, and the next one predicts something else for the same batch: {apart}"
    return f"{changed}: {'a parameter' if len(names) == 1 else 'parameters'} of the model."
