"""BN307: a model that was trained predicts in training mode."""

from __future__ import annotations

from collections.abc import Set

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.rules._base import Rule
from pytest_bncheck.types import Finding


class PredictsInTrainMode(Rule):
    """A training loop that predicts without leaving training mode.

    What it does
    ------------
    Speaks in watch mode only (``--bncheck-watch``), which looks at the loops of a test suite as
    they are; a check enters the modes itself. It fires where parameters that an optimizer has
    changed predict without gradients while normalisation or dropout layers are in training
    mode. It is silent where each training step begins with such a prediction, as for pseudo-labels
    or in a discriminator's step, in ``update_bn``, and where the function that predicts has called
    ``train()`` itself after the training.

    Why it is bad
    -------------
    Dropout makes the prediction random, normalisation makes it depend on the samples that
    happen to be beside it, and every validation moves the running statistics.

    Example
    -------
    ::

        def validate(model, loader):
            with torch.no_grad():  # turns gradients off, and no layer
                return sum(loss(model(x), y) for x, y in loader)

    Use instead
    -----------
    ``model.eval()`` before predicting, and ``model.train()`` before the next step.

    References
    ----------
    torch.nn.Module.eval; PyTorch's notes on autograd, "Evaluation Mode".
    """

    code = "BN307"
    name = "predicts-in-train-mode"
    severity = "warning"

    def find(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        return None  # a check enters eval mode itself
