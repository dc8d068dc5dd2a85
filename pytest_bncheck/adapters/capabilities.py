"""What only some rules need of an adapter, one class for each.

An adapter inherits from those that it offers besides `base.Adapter`. Without one the rules that
need it stay silent, and the report names them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pytest_bncheck.types import (
    Capability,
    Moved,
    Parting,
    Prediction,
    Rehearsal,
    RunningState,
    State,
    Statistics,
    Streams,
    Trace,
)

if TYPE_CHECKING:
    from pytest_bncheck.types import Array, Slope


class Watching(ABC):
    """Capability "watching": what single modules and calls do."""

    @property
    @abstractmethod
    def idle(self) -> list[str]:
        """Normalisation and dropout layers that ran only in inference mode in some training step.

        Layers that are frozen by design are left out.
        """

    @property
    def asleep(self) -> list[str]:
        """Normalisation and dropout layers in a part that is in eval mode although it trains.

        Frozen layers are in eval mode too, but alone, or with a part whose parameters are frozen.
        """
        return []

    @property
    def unsaved(self) -> list[str]:
        """Layers whose running statistics are not part of the state that the model saves."""
        return []

    @abstractmethod
    def trace(self, index: int) -> list[Trace]:
        """The calls in one eval pass that behave as in training."""

    def draws(self, index: int) -> list[Trace]:
        """The calls in one pass in training mode that draw random numbers."""
        return []

    @abstractmethod
    def sticky(self, index: int) -> list[str]:
        """Attributes that an eval pass changed and did not set back, and that change training.

        Called after a pass in eval mode. If attributes changed since before the first one, the
        model runs in training mode with the old and the new values.
        """

    def part(self, index: int) -> Parting | None:
        """Where the paths of training and of eval mode part, on the same batch statistics.

        None where they do not, or where nobody can look.
        """
        return None


class Sampling(ABC):
    """Capability "sampling": passes over some samples of a batch, or samples of several."""

    @abstractmethod
    def predict_half(self, index: int) -> Prediction | None:
        """Eval mode on the first half of the samples, with or without their loss.

        None where the batch cannot be cut in two or the model does not take another size.
        """

    def predict_remixed(self, batches: int) -> list[Prediction]:
        """As `Mode.BATCH_STATISTICS`, with the samples of the first `batches` batches mixed.

        New batches have the sizes of the old ones and take samples from every old one; batches of
        one sample are joined into a single new one. Empty where batches cannot be cut by samples.
        """
        return []


class Streaming(ABC):
    """Capability "streams": what each call of a layer normalised."""

    @property
    @abstractmethod
    def streams(self) -> Mapping[str, Streams]:
        """By layer name: what each call normalised in the last training step.

        Only layers with more than one call.
        """


class Replicated(ABC):
    """Capability "replicas": the same model trained in several processes.

    Attributes
    ----------
    follows
        Whether running statistics are broadcast from the first process; batch statistics are then
        the first process's.
    """

    follows: bool = False

    @abstractmethod
    def gather(self) -> list[Statistics]:
        """The running statistics in every process that trains the same model, after training.

        As the next forward would find them. Empty for a single process. A collective: every
        process has to call it.
        """

    @abstractmethod
    def agree(self, value: bool) -> bool:
        """Whether `value` is true in every process that trains the same model. A collective.

        For decisions on passes in training mode, which can wait for the other processes.
        """


class Sloping(ABC):
    """Capability "slopes": gradients, for each layer's share in the gap."""

    @abstractmethod
    def slopes(self, index: int, direction: Mapping[str, Array]) -> list[Slope | None] | None:
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
            None for a layer whose scale is unknown; None instead of a list without gradients.
        """


class Stateful(ABC):
    """Capability "moving state": what training moves besides the statistics of known layers."""

    @abstractmethod
    def states(self) -> list[State]:
        """Everything floating that a forward can change: of no known layer and no optimizer.

        Called after the training, in the order in which the owners first ran. State that never
        changed in a training step may be left out, if a step was made.
        """

    @abstractmethod
    def train_from(
        self,
        index: int,
        states: Mapping[str, Array] | None = None,
        *,
        passes: int = 1,
        draw: int | None = None,
    ) -> Moved:
        """Passes in training mode, from the state as it is and these values in it.

        Nothing of it remains: afterwards every state, statistic, counter and attribute is as
        before.

        Parameters
        ----------
        states
            Values to start from, flat, by the name of the state.
        passes
            How many, one after the other; the last one's prediction is returned.
        draw
            None for passes as in `Mode.TRAINING_PATH`, which all draw the same random numbers; a
            number for passes as in `Mode.TRAINING` with random numbers that depend on it alone,
            which give no prediction.
        """

    @abstractmethod
    def adopt(self, found: Sequence[RunningState]) -> None:
        """Treat these as layers from now on; replaces what was adopted before.

        They come after all others in `layers`, `read`, `write`, `history` and `calls`, with
        `Layer.states`. `adapters.states.Adopted` does most of it.
        """


class Rehearsing(ABC):
    """Capability "rehearsal": whether the passes run what a training step runs."""

    @abstractmethod
    def rehearse(self, index: int) -> None:
        """A training pass, stochastic layers on, just before a training step on a mini-batch.

        From the same weights, state, seeds and generators as the step, and nothing of it remains:
        the step draws the same random numbers again. No further program is compiled for it.
        """

    @property
    @abstractmethod
    def rehearsal(self) -> Rehearsal | None:
        """The last rehearsal beside the step after it; None if there was none.

        A layer was moved otherwise if the two moves differ by `settling.OTHERWISE` of the move, and
        by more than rounding.
        """


CAPABILITIES: Mapping[Capability, type] = {
    "watching": Watching,
    "sampling": Sampling,
    "streams": Streaming,
    "replicas": Replicated,
    "slopes": Sloping,
    "moving state": Stateful,
    "rehearsal": Rehearsing,
}
"""The classes to inherit from, by the names that rules and reports use."""
