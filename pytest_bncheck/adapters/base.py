"""What every framework adapter can do, in the order in which the experiment asks for it.

Three rules:

* An adapter is the only place that knows its framework; it is imported only if the framework is
  in ``sys.modules`` already.
* Momentum direction and variance kind are converted here and nowhere else: what leaves an adapter
  is an update rate and a biased variance.
* `save` comes before anything is changed, and `restore` puts back everything that `save` saw,
  bit for bit, whatever happened in between.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_bncheck.types import (
    Calls,
    Dialect,
    Layer,
    Prediction,
    Recipe,
    Statistics,
    Streams,
    Trace,
)

if TYPE_CHECKING:
    from pytest_bncheck.types import Array, Slope


class TooFewValues(Exception):
    """A layer refused to train on a single value per channel."""

    def __init__(self, layer: str) -> None:
        super().__init__(layer)
        self.layer = layer


class Adapter(ABC):
    """One model under test, with its batches, in one framework.

    Parameters
    ----------
    model
        The user's model.
    batches
        At least one batch: ``(inputs, targets)`` or whatever the recipe's functions understand.
        Arrays of numpy become tensors of the framework; the user's own objects are not changed.
    recipe
        The user's loss, optimizer, train step and forward, where given.
    device
        Where to run, or None for where the model is.

    Raises
    ------
    InputError
        For a device that is not there, an empty batch, or an optimizer of another framework.

    Attributes
    ----------
    framework, backend, device
        As the report names them.
    dialect
        Lines of code in this framework.
    stochastic
        Whether a training forward drew random numbers; known after the first training step.
    noise
        Relative difference of two predictions that rounding explains.
    batch_size
        Samples in the first batch, or None if that cannot be told.
    expected_steps
        Training steps that the experiment will make at most; set before `begin`.
    program
        What a finished program is that can neither be watched nor trained: ``a ScriptModule``;
        None for a model.
    follows
        Whether another process's batches make the running statistics here; their batch statistics
        are then given instead of the own ones.
    stores_biased
        Whether running variances are biased, so that `exact` makes no difference.
    """

    framework: str
    backend: str
    device: str
    dialect: Dialect
    stochastic: bool = False
    noise: float = 1e-4
    batch_size: int | None = None
    expected_steps: int = 0
    follows: bool = False
    program: str | None = None
    stores_biased: bool = False

    @abstractmethod
    def __init__(
        self, model: Any, batches: Sequence[Any], recipe: Recipe, device: str | None
    ) -> None: ...

    # before -----------------------------------------------------------------------------------

    @abstractmethod
    def save(self) -> None:
        """Remember everything that the experiment can change.

        A model whose variables do not exist yet (lazy, unbuilt) is built first. The state of the
        global random generators is not its concern: the experiment seeds them and puts them back.
        """

    @abstractmethod
    def restore(self, *, keep_weights: bool = False) -> None:
        """Put back what `save` saw.

        With `keep_weights` parameters and running statistics stay as the experiment left them;
        modes, gradients, hooks and random state still go back.
        """

    # training ---------------------------------------------------------------------------------

    @abstractmethod
    def begin(self) -> None:
        """Enter training mode as the user does, and note which layers stay frozen by design."""

    @abstractmethod
    def train_step(self, batch: int) -> None:
        """One optimizer step on ``batches[batch]``; logs loss, running statistics and calls.

        Raises
        ------
        InputError
            If the loss cannot be inferred or the targets do not fit the outputs.
        TooFewValues
            If a layer refuses to train on a single value per channel.
        """

    @property
    @abstractmethod
    def losses(self) -> list[float]:
        """The loss of every training step so far."""

    @property
    @abstractmethod
    def history(self) -> list[Statistics]:
        """Running statistics before the first step and after each: steps + 1 entries."""

    @property
    @abstractmethod
    def calls(self) -> Calls:
        """Calls of each layer over all training steps together."""

    @property
    def streams(self) -> Mapping[str, Streams]:
        """What each call in the last training step normalised, by the layer's name.

        Only layers that were called more than once. Empty if the adapter does not look.
        """
        return {}

    def gather(self) -> list[Statistics]:
        """Training is over: the running statistics in every process that trains the same model.

        As the next forward would find them. Empty where there is only one process. All of them
        have to come here.
        """
        return []

    def agree(self, value: bool) -> bool:
        """Whether it is so in every process that trains the same model.

        For what decides on a pass in training mode, which may wait for the others.
        """
        return value

    # looking ----------------------------------------------------------------------------------

    @property
    def idle(self) -> list[str]:
        """Normalisation and dropout layers that ran in inference mode only, in some training step.

        Without those that are frozen by design. Empty if the adapter does not look.
        """
        return []

    def not_finite(self, batch: int) -> str | None:
        """Where a mini-batch holds NaN or infinity, as a message says it; None if nowhere.

        Asked where the first loss is not finite.
        """
        return None

    @property
    def asleep(self) -> list[str]:
        """Normalisation and dropout layers in a part that came in eval mode, though it trains.

        Frozen layers come in eval mode too, but alone, or with a part whose parameters are frozen.
        Empty if the adapter does not look.
        """
        return []

    @property
    def unsaved(self) -> list[str]:
        """Layers whose running statistics are not part of the state that the model saves."""
        return []

    @abstractmethod
    def layers(self) -> list[Layer]:
        """The layers with running statistics, in the order in which they first ran.

        Layers that never ran come last. The order is fixed once `begin` was called.
        """

    @abstractmethod
    def read(self, *, exact: bool = False) -> Statistics:
        """The running statistics now.

        Parameters
        ----------
        exact
            As eval mode normalises with them, whatever kind of variance the framework stores.
        """

    @abstractmethod
    def write(self, statistics: Statistics, *, exact: bool = False) -> None:
        """Set the running statistics.

        Parameters
        ----------
        exact
            Store the biased variances as they are, so that eval mode repeats the batch's own
            normalisation; otherwise in the convention in which the framework stores them.
        """

    # passes -----------------------------------------------------------------------------------

    @abstractmethod
    def predict(self, batch: int, *, observe: bool = True) -> Prediction:
        """The user's own eval mode, untouched.

        Parameters
        ----------
        observe
            Look for random numbers, changed buffers and modules in training mode; a pass that was
            looked at once need not be again, and is quicker.
        """

    def predict_half(self, batch: int) -> Prediction | None:
        """Eval mode on the first half of the samples, with or without their loss.

        None where the batch cannot be cut in two or the model does not take another size.
        """
        return None

    def trace(self, batch: int) -> list[Trace]:
        """One pass in eval mode that finds the calls in it that behave as in training."""
        return []

    def sticky(self, batch: int) -> list[str]:
        """Attributes that an eval pass changed for good, and that change training with them.

        Called after `predict`; looks at the attributes as they were before it, and only if some
        changed runs the model in training mode with both values.
        """
        return []

    @abstractmethod
    def predict_with_batch_statistics(self, batch: int) -> tuple[Prediction, Statistics, Calls]:
        """Eval mode, but the layers that were training use batch statistics.

        Dropout and other stochastic layers are off. Running statistics are as before afterwards.
        The batch statistics of a layer that did not use any are its running ones. A layer that
        ran c times gives the value to which c calls a step lead.
        """

    def predict_remixed(self, batches: int) -> list[Prediction]:
        """As `predict_with_batch_statistics`, on the samples of the first batches dealt anew.

        Each new batch takes its samples from all of the old ones and is as large as they were; of
        batches of one sample there is a single new one. Empty where batches cannot be cut by
        samples.
        """
        return []

    @abstractmethod
    def batch_statistics(self, batch: int) -> Statistics:
        """Batch statistics of a pass in full training mode, stochastic layers on."""

    @abstractmethod
    def predict_on_training_path(self, batch: int) -> Prediction | None:
        """As `predict_with_batch_statistics`, but the user's own code is told that it trains.

        Layers of the framework other than the normalisation itself stay in inference mode, so
        that only code of the user's that depends on the mode can make a difference. None where
        the model cannot run so on its inputs alone.
        """

    def slopes(self, batch: int, direction: Mapping[str, Array]) -> list[Slope | None] | None:
        """How eval mode reacts to the normalised output of each layer.

        For y = γ·x̂ + β, with c over channels: γ·∂/∂γ and γ·∂/∂β of the inner product of the
        prediction with `direction`, by one forward and one backward.

        Parameters
        ----------
        direction
            Outputs to take the inner product with, as in `Prediction.outputs`.

        Returns
        -------
        list of pairs of arrays of shape (channels,)
            None for a layer whose scale is unknown; None as a whole where there is no gradient.
        """
        return None
