"""What the passes after the training gave, in both modes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_bncheck.evidence.comparison import Comparison
from pytest_bncheck.maths import predictions
from pytest_bncheck.maths.verdict import Scores, decisions_suffer
from pytest_bncheck.types import Calls, Prediction, Statistics, Trace

if TYPE_CHECKING:
    from pytest_bncheck.types import Array

PATH_GAP = 0.01
"""Above this gap between training path and eval path, the model's own code is to blame."""


@dataclass(frozen=True)
class MiniBatches:
    """Several mini-batches that were trained on, and are judged together.

    A single one differs from its neighbours, so gaps are measured from eval mode with the mean of
    their statistics.

    Attributes
    ----------
    statistics
        Batch statistics of each, as in training.
    with_mean
        Eval mode with the mean of the statistics.
    """

    statistics: Sequence[Statistics]
    with_mean: Prediction


@dataclass(frozen=True)
class Projection:
    """Eval mode as it will be after the planned updates: running statistics and prediction."""

    statistics: Statistics
    prediction: Prediction


@dataclass(frozen=True)
class Passes:
    """The passes of one check that are made whatever they show.

    Attributes
    ----------
    batch, noisy_batch
        Batch statistics with stochastic layers off, and on as in training.
    calls
        Calls of each layer in one pass with batch statistics.
    rounding
        Relative difference of two predictions that rounding explains.
    train, eval
        Predictions with batch statistics and in eval mode; of several mini-batches on all of them
        together, with loss and accuracy of `train` as each was trained on.
    first, path
        On the first batch alone: with batch statistics, and the same on the training path.
    half, again, half_again
        Eval mode on half of the first batch, once more on all of it, and once more on the half.
    traces
        Calls in an eval pass that behave as in training; looked for only if something is off.
    sticky
        Attributes that an eval pass changed for good.
    own_path
        Whether the model's code takes another path in training mode, and no running state of it
        explains that. The statistics are then judged on the path of eval mode.
    shares_state
        Whether both modes read running state of no known layer, and nearly agree.
    settled
        Training mode once running state of no known layer has settled; None where there is none.
    splits
        Whether the training path runs some layer on parts of a batch that eval mode leaves whole.
    noisy_path
        Whether `path` is a mean over what the model's own code draws in training mode, and each
        draw decides better than eval mode.
    projection
        Eval mode after the planned updates, where they are declared.
    mini_batches
        None where there is only one.
    """

    batch: Statistics
    noisy_batch: Statistics
    calls: Calls
    rounding: float = 1e-4
    train: Prediction | None = None
    eval: Prediction | None = None
    first: Prediction | None = None
    path: Prediction | None = None
    half: Prediction | None = None
    again: Prediction | None = None
    half_again: Prediction | None = None
    traces: Sequence[Trace] = ()
    sticky: Sequence[str] = ()
    own_path: bool = False
    shares_state: bool = False
    settled: Prediction | None = None
    splits: bool = False
    noisy_path: bool = False
    projection: Projection | None = None
    mini_batches: MiniBatches | None = None

    @property
    def active(self) -> list[bool]:
        """Whether each layer used batch statistics."""
        return [count > 0 for count in self.calls.training]

    @property
    def batches(self) -> Sequence[Statistics]:
        """Batch statistics of several mini-batches, as in training; empty where there is one."""
        return self.mini_batches.statistics if self.mini_batches else ()

    @property
    def with_mean(self) -> Prediction | None:
        """Eval mode with the mean statistics of several mini-batches; None where there is one."""
        return self.mini_batches.with_mean if self.mini_batches else None

    def compared(self, recalibrated: Prediction | None = None) -> Comparison:
        """The predictions that are judged.

        Parameters
        ----------
        recalibrated
            Eval mode with converged statistics, where that is known.
        """
        projected = self.projection.prediction if self.projection else None
        train = (self.with_mean or self.first) if self.own_path else self.train
        return Comparison(train, self.eval, projected, recalibrated)

    # eval mode by itself --------------------------------------------------------------------------

    @property
    def half_gap(self) -> float | None:
        """How far half of the batch's predictions move when its other half is left out."""
        return gap_of_half(self.half, self.eval)

    @property
    def repeat_gap(self) -> float | None:
        """How far two eval passes on the same samples are apart; None if there was no second."""
        pairs = ((self.again, self.eval), (self.half_again, self.half))
        repeated = [(second, first) for second, first in pairs if second and first]
        apart = [predictions.gap(second.outputs, first.outputs) for second, first in repeated]
        gaps = [gap for gap in apart if gap is not None]
        return max(gaps, key=lambda gap: (gap != gap, gap), default=None)

    @property
    def draws(self) -> bool:
        """Whether an eval pass drew random numbers."""
        passes = (self.eval, self.half, self.again, self.half_again)
        return any(each is not None and each.random for each in passes) or any(
            trace.kind == "random" for trace in self.traces
        )

    @property
    def is_random(self) -> bool:
        """Whether eval mode gives another prediction each time, so that none can be compared."""
        repeat = self.repeat_gap
        return repeat is not None and not repeat <= self.rounding

    @property
    def depends_on_batch(self) -> bool:
        """Whether a sample's prediction changes with its batch mates, and not by chance.

        State that drifts may count the samples; beside it a call has to be seen that uses them.
        """
        half = self.half_gap
        if half is None or half <= self.rounding:
            return False
        if self.is_random:
            return not self.draws and any(x.kind == "batch statistics" for x in self.traces)
        return True

    def left_in_training(self, explained: Set[str]) -> Set[str]:
        """Modules that ran in training mode in the eval pass and that a finding explains."""
        return set() if self.eval is None else explained & set(self.eval.in_training)

    def traces_outside(self, modules: Collection[str], kind: str) -> list[Trace]:
        """The traces of a kind that do not lie in one of `modules`."""
        return [
            trace for trace in self.traces if trace.kind == kind and trace.module not in modules
        ]

    # the training path ----------------------------------------------------------------------------

    @property
    def path_gap(self) -> float | None:
        """See `gap_of_path`."""
        return gap_of_path(self.path, self.first)

    @property
    def allowed_path_gap(self) -> float:
        """The largest `path_gap` that rounding explains."""
        return max(PATH_GAP, self.rounding)


def gap_of_half(half: Prediction | None, whole: Prediction | None) -> float | None:
    """How far the predictions on half of a batch are from those that the whole gives them."""
    if half is None or whole is None or not half.outputs:
        return None
    return predictions.gap(*_rows(half, whole))


def suffers_beside(
    reference: Prediction, other: Prediction, first_loss: float | None, samples: int | None
) -> bool | None:
    """Whether a prediction decides worse than another; None if that is unknown.

    Parameters
    ----------
    first_loss
        The first training loss; None if it is unknown.
    samples
        See `decisions_suffer`.
    """
    scores = Scores(
        gap=None,
        distortion=None,
        retained=predictions.retained(
            first_loss, reference.constant_loss, reference.loss, other.loss
        ),
        loss=other.loss,
        accuracy=other.accuracy,
        finite=predictions.finite(other.outputs, reference.outputs),
    )
    return decisions_suffer(scores, reference, samples)


def gap_of_path(path: Prediction | None, first: Prediction | None) -> float | None:
    """How far the training path differs from the eval path; None where that tells nothing.

    Random numbers explain a difference, and so do other types.
    """
    if path is None or first is None or path.random:
        return None
    if path.structure != first.structure and path.outputs.keys() == first.outputs.keys():
        return None
    return predictions.gap(path.outputs, first.outputs)


def _rows(part: Prediction, whole: Prediction) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
    """The outputs of `part` and those of `whole` for the same samples.

    Only outputs with one row per sample: of others nobody knows what belongs to a sample.
    """
    without = part.without_rows | whole.without_rows
    rows = {path: values for path, values in part.outputs.items() if path not in without}
    return rows, {
        path: whole.outputs[path][: len(values)]
        for path, values in rows.items()
        if path in whole.outputs
    }
