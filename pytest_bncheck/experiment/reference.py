"""What training mode predicts, where the model's own code may compute or draw something else."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_bncheck.adapters.base import Adapter, Mode
from pytest_bncheck.evidence.passes import PATH_GAP, suffers_beside
from pytest_bncheck.experiment.panel import averaged
from pytest_bncheck.maths import predictions
from pytest_bncheck.maths.verdict import USUAL_GAP
from pytest_bncheck.types import Prediction

PATH_DRAWS = 4
"""Passes in training mode that stand for the mean over what the user's code draws."""


def draw(adapter: Adapter, path: Prediction) -> list[Prediction]:
    """The training path with other random numbers of the model's own code, if it draws any."""
    if not path.random:
        return [path]
    more = (adapter.run(0, Mode.TRAINING_PATH).prediction for _ in range(PATH_DRAWS - 1))
    return [path, *(each for each in more if each is not None)]


def reference_of(
    adapter: Adapter,
    first: Prediction | None,
    draws: Sequence[Prediction],
    *,
    beyond_chance: bool,
) -> Prediction | None:
    """What training mode predicts: eval mode with batch statistics, unless its code differs.

    Where training draws random numbers, the mean over some draws, unless they explain the
    difference.

    Parameters
    ----------
    beyond_chance
        See `decides_worse_than_all`.
    """
    if not draws or first is None:
        return first
    mean = averaged(draws)
    if mean.structure != first.structure:
        return first
    return mean if beyond_chance or not chance_explains(adapter, first, draws) else first


def chance_explains(adapter: Adapter, other: Prediction, draws: Sequence[Prediction]) -> bool:
    """Whether a prediction differs from the mean of some draws by less than twice their scatter.

    Also where they cannot be compared.
    """
    mean = averaged(draws)
    apart = predictions.gap(mean.outputs, other.outputs)
    scatter = [predictions.gap(each.outputs, mean.outputs) or 0.0 for each in draws]
    return apart is None or apart <= max(PATH_GAP, adapter.noise) + 2.0 * max(scatter)


def decides_worse_than_all(
    adapter: Adapter, first: Prediction | None, draws: Sequence[Prediction]
) -> bool:
    """Whether code without random numbers decides worse than with any of the numbers drawn."""
    if first is None or len(draws) < 2:
        return False
    apart = predictions.gap(averaged(draws).outputs, first.outputs)
    if apart is None or apart <= USUAL_GAP or draws[0].structure != first.structure:
        return False
    start = adapter.losses[0] if adapter.losses else None
    return all(
        suffers_beside(
            each, first, each.constant_loss if start is None else start, adapter.batch_size
        )
        for each in draws
    )
