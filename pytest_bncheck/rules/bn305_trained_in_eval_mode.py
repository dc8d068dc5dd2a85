"""BN305: training ran with layers in inference mode."""

from __future__ import annotations

from collections.abc import Sequence, Set

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.rules import _words as words
from pytest_bncheck.rules._base import Rule
from pytest_bncheck.types import Finding


class TrainedInEvalMode(Rule):
    """Normalisation or dropout that is switched off while the model trains.

    What it does
    ------------
    Watches the mode in which layers run in each training step. It fires for normalisation and
    dropout layers that ran in inference mode throughout a step without being frozen by design.
    A part of the model that was handed over in eval mode counts as frozen, and gives a warning if
    its weights train all the same, as those of a loaded backbone do.

    Why it is bad
    -------------
    Dropout does not regularise and batch normalisation does not adapt: the network trains around
    its initial statistics, and training and eval mode agree so well that nothing looks wrong.

    Example
    -------
    ::

        validate(model)  # calls model.eval(), and nobody model.train() again
        backbone = from_pretrained()  # in eval mode, where a trainer keeps it
        model(x)  # Keras, in a training loop of one's own: inference mode

    Use instead
    -----------
    ``model.train()`` at the start of every training step or epoch; ``model(x, training=True)`` in
    a Keras training loop, and ``training`` passed on to every layer. Freezing on purpose is
    declared with ``intended="frozen-batchnorm"``.

    References
    ----------
    torch.nn.Module.train; Keras guide "Writing a training loop from scratch".
    """

    code = "BN305"
    name = "trained-in-eval-mode"
    severity = "error"
    needs = frozenset({"watching"})
    intended = frozenset({"frozen-batchnorm"})

    def find(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        training = evidence.training
        idle = [name for name in training.idle if name not in explained]
        names = idle or [name for name in training.asleep if name not in explained]
        if not names:
            return None
        return self.finding(
            f"{words.plural(len(names), 'layer')} ran in inference mode in training steps: "
            f"{words.listing(names)}.",
            cause=_cause(evidence, names)
            if idle
            else "A part of the model was handed over in eval mode, and its weights train.",
            severity="error" if idle else "warning",
            remedy=words.bullets(
                f"Enter training mode before each step ({evidence.dialect.training_mode}), and "
                "pass the mode on to every layer.",
                'If that is on purpose, declare it: intended="frozen-batchnorm".',
            ),
            layers=names,
        )


def _cause(evidence: Evidence, names: Sequence[str]) -> str:
    """Whether the layers never trained, or stopped to."""
    calls = evidence.training.calls
    counts = zip(calls.training, calls.inference, strict=True)
    for layer, (trained, idle) in zip(evidence.layers, counts, strict=True):
        if layer.name in names and trained and idle:
            return (
                f"Layer {layer.name} was in training mode in {trained} of "
                f"{trained + idle} forward passes of the training, in eval mode in the others."
            )
    return "The model, or a part of it, is in eval mode while it trains."
