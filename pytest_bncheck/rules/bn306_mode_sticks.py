"""BN306: after a prediction the model trains differently."""

from __future__ import annotations

from collections.abc import Set

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.rules import _words as words
from pytest_bncheck.rules._base import Rule
from pytest_bncheck.types import Finding


class ModeSticks(Rule):
    """An eval pass that changes how the model trains afterwards.

    What it does
    ------------
    Compares the plain attributes of all modules before an eval pass and after going back to
    training mode. If some changed, the model runs in training mode with both values from the same
    random state; it fires if the results differ.

    Why it is bad
    -------------
    After the first validation the rest of the training runs without dropout, say, and nothing
    shows it.

    Example
    -------
    ::

        def forward(self, x):
            if not self.training:
                self.p = 0.0                     # never set back
            return F.dropout(x, self.p)

    Use instead
    -----------
    A local variable: ``p = self.p if self.training else 0.0``.

    References
    ----------
    torch.nn.Module.train.
    """

    code = "BN306"
    name = "mode-sticks"
    severity = "warning"
    needs = frozenset({"watching"})

    def find(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        names = list(evidence.passes.sticky)
        if not names or (evidence.passes.is_random and not explained):
            return None
        return self.finding(
            f"An eval pass changed {words.code(names)} for good, and training differs from "
            "what it was before.",
            cause="The forward pass in eval mode writes to an attribute that training reads.",
            remedy=words.bullets(
                f"Use a local variable that depends on the mode (`{evidence.dialect.mode}`)."
            ),
            attributes=names,
        )
