"""BN403: a program that was traced or exported while its model was training."""

from __future__ import annotations

from collections.abc import Iterator, Set

from pytest_bncheck.evidence import Evidence, Passes
from pytest_bncheck.rules import _words as words
from pytest_bncheck.rules._base import Rule
from pytest_bncheck.types import Finding


class ExportedInTrainMode(Rule):
    """A traced or exported program that repeats what its model did in training.

    What it does
    ------------
    Takes the program itself as the model, with ``steps=0``: what ``torch.jit.trace``,
    ``torch.jit.script``, ``torch.export`` or a loaded file gives. It predicts twice, and half of
    the batch, and looks at the buffers. It fires where the program draws random numbers, where a
    sample's prediction changes with its batch mates, and where predicting moves its statistics.

    Why it is bad
    -------------
    The mode was written into the program. ``eval()`` on it raises or does nothing: dropout goes
    on, and normalisation uses the batch that a request happens to be in.

    Example
    -------
    ::

        model.train()
        program = torch.jit.trace(model, inputs)
        program.eval()                                   # changes nothing any more

    Use instead
    -----------
    ``model.eval()`` before ``torch.jit.trace``, ``torch.export.export`` or a graph for serving.

    References
    ----------
    torch.jit.trace, on modules that behave differently in train and eval mode. torch.export, on
    train and eval mode.
    """

    code = "BN403"
    name = "exported-in-train-mode"
    severity = "error"

    def find(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        if evidence.program is None:
            return None
        passes = evidence.passes
        signs = list(_signs(passes))
        if not signs:
            return None
        return self.finding(
            f"The model is {evidence.program}, and {'; '.join(signs)}.",
            cause="It was made while its model was in training mode, which is part of the program "
            "now: eval() cannot change it any more.",
            remedy=words.bullets(
                "Put the model in eval mode first, and make the program anew:\nmodel.eval()"
            ),
            repeat_gap=passes.repeat_gap,
            half_gap=passes.half_gap,
            state=list(passes.eval.mutated) if passes.eval else [],
        )


def _signs(passes: Passes) -> Iterator[str]:
    """What the program does that no program in eval mode does."""
    evaluated, repeat = passes.eval, passes.repeat_gap
    if passes.is_random:
        yield f"two predictions of the same batch differ by {repeat:.2g} of their spread"
    elif evaluated is not None and evaluated.random:
        yield "it draws random numbers when it predicts"
    if passes.depends_on_batch:
        yield (
            f"a sample's prediction changes by {passes.half_gap:.2g} of the spread with its "
            "batch mates"
        )
    if evaluated is not None and evaluated.mutated:
        yield f"predicting changes {words.code(evaluated.mutated, 3)}"
