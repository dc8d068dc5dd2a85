"""BN301: the model was told to predict, a part of it goes on training."""

from __future__ import annotations

from collections.abc import Set

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.rules import _words as words
from pytest_bncheck.rules._base import Rule
from pytest_bncheck.types import Finding

KINDS = {"stochastic-eval": "random", "batch-statistics-in-eval": "batch statistics"}
"""What the calls of a declared design do."""


class ModuleIgnoresMode(Rule):
    """A module that stays in training mode after ``eval()``.

    What it does
    ------------
    Watches which modules run in an eval pass and which of them are still in training mode,
    although what they compute depends on it. It names the way to each from the model.

    Why it is bad
    -------------
    Dropout goes on dropping and batch normalisation goes on using, and updating from, the batch
    in every prediction. Modules in a plain list are missing from the state dict too, and the
    optimizer does not train them.

    Example
    -------
    ::

        self.norms = [nn.BatchNorm1d(32)]  # a plain list: not registered

        def train(self, mode=True):
            self.training = mode  # does not recurse
            return self

    Use instead
    -----------
    ``nn.ModuleList`` and ``nn.ModuleDict``; ``super().train(mode)`` in an override of ``train``.

    References
    ----------
    torch.nn.Module.train, torch.nn.ModuleList.
    """

    code = "BN301"
    name = "module-ignores-mode"
    severity = "error"
    intended = frozenset({"stochastic-eval", "batch-statistics-in-eval"})

    def find(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        evaluated = evidence.passes.eval
        if evaluated is None or not evaluated.in_training:
            return None
        paths = list(evaluated.in_training)
        listed = [path for path in paths if "[" in path]
        return self.finding(
            f"After eval() {words.plural(len(paths), 'module')} still ran in training mode: "
            f"{words.listing(paths)}.",
            cause=f"{listed[0]} is kept in a plain list or dict, where eval() cannot find it."
            if listed
            else "An override of train() does not pass the mode on to it, or it sets its own.",
            remedy=words.bullets(
                "Keep modules in nn.ModuleList or nn.ModuleDict."
                if listed
                else "Call super().train(mode) in the override of train(mode)."
            ),
            layers=paths,
        )

    def covers(self, design: str, finding: Finding, evidence: Evidence) -> bool:
        """Dropout on purpose is no reason for a lost normalisation, nor the other way round."""
        traces = evidence.passes.traces
        return {t.kind for t in traces if t.module in finding.layers} == {KINDS[design]}
