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
    Compares buffers and non-trainable variables before and after an eval pass; NaN equals NaN. It
    also fires where the same batch gets another prediction and no random number was drawn.

    Why it is bad
    -------------
    The model drifts with every prediction, and the checkpoint depends on how often it was
    evaluated.

    Example
    -------
    ::

        self.seen += 1  # a buffer, in forward
        F.batch_norm(x, self.mean, self.var, training=True)  # updates both

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
        if not names and not drifts:
            return None
        where = words.code(names[:1]) if names else "something that it reads again"
        found = "Eval mode gives the same batch another prediction each time, and draws no random "
        found += (
            f"numbers: the predictions differ by {passes.repeat_gap or 0.0:.2g} of their spread."
        )
        if names:
            found = f"An eval pass changed {words.plural(len(names), 'value')} of the model's state"
            found += f": {words.code(names)}."
        return self.finding(
            found,
            cause=f"The forward pass writes to {where} whatever the mode.",
            remedy=words.bullets(f"Write there under `if {evidence.dialect.mode}` only."),
            state=names,
        )

    def covers(self, design: str, finding: Finding, evidence: Evidence) -> bool:
        """Statistics in eval mode move running ones, random numbers the seed of a generator."""
        theirs = STATISTICS if design == "batch-statistics-in-eval" else ("seed",)
        names = [name.rsplit(".", 1)[-1] for name in finding.evidence["state"]]
        return bool(names) and all(name.startswith(theirs) for name in names)
