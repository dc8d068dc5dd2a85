"""What every framework adapter can do, in the order in which the experiment asks for it.

Three rules:

* An adapter is the only place that knows its framework; it is imported only if the framework is
  in ``sys.modules`` already.
* Momentum direction and variance kind are converted here and nowhere else: what leaves an adapter
  is an update rate and a biased variance.
* `save` comes before anything is changed, and `restore` puts back everything that `save` saw,
  bit for bit, whatever happened in between.

An adapter needs nine members (see `Adapter`). What only some rules need is a capability: a class
to inherit from besides (`Watching`, `Sampling`, `Streaming`, `Replicated`, `Sloping`, `Stateful`,
`Rehearsing`). Without it those rules stay silent, and the report names them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pytest_bncheck.adapters.capabilities import (
    CAPABILITIES,
    Rehearsing,
    Replicated,
    Sampling,
    Sloping,
    Stateful,
    Streaming,
    Watching,
)
from pytest_bncheck.types import (
    Calls,
    Capability,
    Dialect,
    InputError,
    Layer,
    Prediction,
    Recipe,
    Statistics,
)

if TYPE_CHECKING:
    from pytest_bncheck.adapters.invented import Invented, Shapes

__all__ = [
    "CAPABILITIES",
    "NO_CALLS",
    "NO_STATISTICS",
    "Adapter",
    "Mode",
    "Pass",
    "Rehearsing",
    "Replicated",
    "Sampling",
    "Sloping",
    "Stateful",
    "Streaming",
    "TooFewValues",
    "Watching",
]

NO_STATISTICS = Statistics((), ())
NO_CALLS = Calls((), (), ())


class TooFewValues(Exception):
    """A layer refused to train on a single value per channel."""

    def __init__(self, layer: str) -> None:
        super().__init__(layer)
        self.layer = layer


class Mode(Enum):
    """The mode that a pass runs in."""

    EVAL = "eval mode"
    """Eval mode as the user enters it."""

    BATCH_STATISTICS = "batch statistics"
    """Eval mode, but the layers that trained use batch statistics; stochastic layers are off."""

    TRAINING = "training mode"
    """Full training mode, stochastic layers on."""

    TRAINING_PATH = "training path"
    """As `BATCH_STATISTICS`, but the user's code sees training mode.

    The framework's other layers stay in inference mode, so that only user code that depends on
    the mode can make a difference.
    """


@dataclass(frozen=True)
class Pass:
    """Result of one forward pass, which leaves the running statistics as they were.

    Attributes
    ----------
    prediction
        None in `Mode.TRAINING`, and in `Mode.TRAINING_PATH` if the model needs more than its
        inputs there.
    statistics
        Batch statistics of each layer, in every mode but `EVAL`. For a layer that used none, its
        running statistics; for one that ran c times, the limit of its running statistics under c
        calls a step.
    calls
        Calls of each layer in this pass.
    """

    prediction: Prediction | None
    statistics: Statistics = NO_STATISTICS
    calls: Calls = NO_CALLS


class Adapter(ABC):
    """One model under test, with its batches, in one framework.

    Required are `__init__`, `save`, `restore`, `begin`, `step`, `layers`, `read`, `write` and
    `run`. `index` always means a mini-batch: its position in `batches`.

    Parameters
    ----------
    model
        The user's model.
    batches
        At least one batch: ``(inputs, targets)`` or whatever the recipe's functions understand.
        NumPy arrays become tensors of the framework; the user's objects are not changed.
    recipe
        The user's loss, optimizer, train step and forward, where given.
    device
        Where to run, or None for where the model is.

    Raises
    ------
    InputError
        For a device that the machine lacks, an empty batch, or an optimizer of another framework.

    Attributes
    ----------
    framework, backend, device
        Names for the report.
    dialect
        Lines of code in this framework.
    stochastic
        Whether a training forward drew random numbers; known after the first training step.
    noise
        Largest relative difference of two predictions that rounding explains, > 0.
    batch_size
        Samples in the first batch, or None if unknown.
    expected_steps
        Largest number of training steps that the experiment will make; set before `save`.
    assumes_modes
        Whether nothing showed in which modes the layers train, so that they are told to; known
        after `begin`.
    program
        What the model is, if it is a finished program that can neither be watched nor trained:
        ``a ScriptModule``; otherwise None.
    """

    framework: str
    backend: str
    device: str
    dialect: Dialect
    stochastic: bool = False
    noise: float = 1e-4
    batch_size: int | None = None
    expected_steps: int = 0
    assumes_modes: bool = False
    program: str | None = None

    @abstractmethod
    def __init__(
        self, model: Any, batches: Sequence[Any], recipe: Recipe, device: str | None
    ) -> None: ...

    @classmethod
    def accepts(cls, model: Any) -> bool:
        """Whether this adapter can take the model; used for the built-in adapters only."""
        return False

    @classmethod
    def invent(cls, model: Any, shapes: Shapes | None) -> Invented:
        """A batch for a model that comes with none; the global random generators are used.

        Parameters
        ----------
        shapes
            The inputs that the user asks for; None to try what the first layers take.

        Raises
        ------
        InputError
            If the model does not take the inputs, if none is found that it takes, or if no
            targets can be made up for its outputs.
        """
        raise InputError(
            f"no batch can be made up for a model of {getattr(cls, 'framework', cls.__name__)}; "
            "write a test with the fixtures bncheck_model and bncheck_batch"
        )

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
    def step(self, index: int) -> Any:
        """One optimizer step on a mini-batch; returns its loss, a number or a scalar tensor.

        Raises
        ------
        InputError
            If the loss cannot be inferred or the targets do not fit the outputs.
        TooFewValues
            If a layer refuses to train on a single value per channel.
        """

    def resume(self) -> None:  # noqa: B027  not every framework has modes to enter again
        """Go on with the training after passes; where modes are kept, enter training mode."""

    @property
    def ends(self) -> str | None:
        """What the framework does to the weights at the end of the training; None if nothing.

        As a message says it: ``replaced the weights by their average``.
        """
        return None

    def finish(self) -> None:
        """Do what `ends` says.

        Called after the passes that show the weights as they were trained. All passes after it
        show those that the user predicts with.
        """
        raise NotImplementedError

    def train_step(self, index: int) -> None:
        """`step`, with its loss and the running statistics after it logged."""
        if not self._history:
            self._history.append(self.read())
        self._losses.append(self.step(index))
        self._history.append(self.read())

    @cached_property
    def _losses(self) -> list[Any]:
        return []

    @cached_property
    def _history(self) -> list[Statistics]:
        return []

    @cached_property
    def _read_losses(self) -> list[float]:
        return []

    @property
    def losses(self) -> list[float]:
        """The loss of every training step so far; each is fetched from its device once."""
        if unread := self._losses[len(self._read_losses) :]:
            self._read_losses.extend(self.fetched(unread))
        return list(self._read_losses)

    def fetched(self, losses: Sequence[Any]) -> list[float]:
        """What `step` returned, as numbers; at best in one transfer from the device."""
        return [float(loss) for loss in losses]

    @property
    def history(self) -> list[Statistics]:
        """Running statistics before the first step and after each: steps + 1 entries."""
        return self._history or [self.read()]

    @property
    def kept(self) -> Sequence[Sequence[float]]:
        """The share of its statistics that each layer kept in each training step.

        Only where rates change from call to call; empty where each call has `Layer.update_rate`.
        """
        return ()

    @property
    def calls(self) -> Calls:
        """Calls of each layer over all training steps together.

        By default each step calls a layer as often as one pass with batch statistics does.
        """
        one, steps = self._calls_in_pass, len(self._losses)
        return Calls(
            tuple(steps * count for count in one.training),
            tuple(steps * count for count in one.inference),
            one.values,
        )

    @cached_property
    def _calls_in_pass(self) -> Calls:
        return self.run(0, Mode.BATCH_STATISTICS).calls

    # statistics -------------------------------------------------------------------------------

    def not_finite(self, index: int) -> str | None:
        """Where a mini-batch holds NaN or infinity, as a message says it; None if nowhere.

        Asked where the first loss is not finite.
        """
        return None

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
            Store the biased variances unchanged, so that eval mode repeats the normalisation with
            batch statistics; otherwise convert them to what the framework stores
            (`Dialect.unbiased`).
        """

    # passes -----------------------------------------------------------------------------------

    @abstractmethod
    def run(self, index: int, mode: Mode, *, observe: bool = True) -> Pass:
        """One forward pass without a training step.

        Parameters
        ----------
        observe
            In eval mode: look for random numbers, changed buffers and modules in training mode.
            Without it a pass is quicker.
        """

    def predict(self, index: int, *, observe: bool = True) -> Prediction:
        """The prediction in eval mode."""
        __tracebackhide__ = True
        prediction = self.run(index, Mode.EVAL, observe=observe).prediction
        if prediction is None:
            raise TypeError(f"{type(self).__name__}.run gave no prediction in eval mode")
        return prediction

    def predict_again(self, index: int) -> Prediction:
        """The prediction in eval mode after another one that left its traces in the model.

        Asked where a pass changed state: only what a later pass returns tells a cache from a fault.
        """
        __tracebackhide__ = True
        return self.predict(index)

    # capabilities -----------------------------------------------------------------------------

    @property
    def offers(self) -> frozenset[Capability]:
        """The capabilities that this adapter has besides the required members."""
        return frozenset(name for name, kind in CAPABILITIES.items() if isinstance(self, kind))
