"""BN303: what a sample gets depends on the samples beside it."""

from __future__ import annotations

from collections.abc import Set

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.rules import _words as words
from pytest_bncheck.rules._base import Rule
from pytest_bncheck.types import Finding


class EvalDependsOnBatch(Rule):
    """Batch statistics in eval mode.

    What it does
    ------------
    Predicts the batch and its first half in eval mode and compares the same samples. If a third
    pass shows that it is not chance, a sample's prediction depends on its batch mates.

    Why it is bad
    -------------
    Accuracy depends on the batch size and on the order of the test set; one sample alone gets a
    meaningless answer. Training and eval mode agree perfectly, so nothing else shows it.

    Example
    -------
    ::

        nn.BatchNorm2d(64, track_running_stats=False)
        F.batch_norm(x, mean, var, training=True)
        self.norm(x, training=True)  # Keras, inside of a subclassed layer

    Use instead
    -----------
    Running statistics (the default), ``training=self.training``, or GroupNorm. Adaptation to the
    test batch on purpose is declared with ``intended="batch-statistics-in-eval"``.

    References
    ----------
    torch.nn.BatchNorm2d, on track_running_stats. Schneider et al. 2020, Improving robustness
    against common corruptions by covariate shift adaptation (where it is the design).
    """

    code = "BN303"
    name = "eval-depends-on-batch"
    severity = "error"
    needs = frozenset({"sampling"})
    intended = frozenset({"batch-statistics-in-eval"})

    def find(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        passes = evidence.passes
        if evidence.program is not None or not passes.depends_on_batch:
            return None
        if passes.eval is not None and passes.eval.rewritten:  # other parameters, which BN304 says
            return None
        in_training = passes.left_in_training(explained)
        traces = passes.traces_outside(in_training, "batch statistics")
        if in_training and not traces:
            return None
        return self.finding(
            f"In eval mode the predictions of the first samples change by "
            f"{passes.half_gap:.2g} of their spread when the other half of the batch is left "
            f"out (up to {passes.rounding:g} is rounding).{words.places(traces)}",
            cause=f"{traces[0].call} normalises with the batch's own statistics in eval mode."
            if traces
            else "Something in the model looks across the batch in eval mode.",
            remedy=words.bullets(
                f"{evidence.dialect.running_in_eval}, or use {evidence.dialect.per_sample}.",
                'If it is the design, declare it: intended="batch-statistics-in-eval".',
            ),
            layers=[trace.module for trace in traces],
            gap=passes.half_gap,
            calls=[words.place(trace) for trace in traces],
        )
