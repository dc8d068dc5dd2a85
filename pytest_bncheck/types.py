"""Types that all parts of the package share.

Nothing here computes. Two conventions hold everywhere above the adapters:

* a variance is *biased* (divided by n), whatever the framework stores;
* an *update rate* α means ``running = (1 - α) * running + α * batch``, whatever the framework
  calls momentum. ``None`` stands for the cumulative average over all batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pytest_bncheck.dialect import Dialect as Dialect
from pytest_bncheck.errors import InputError as InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[np.float64]
    Slope: TypeAlias = tuple[Array, Array]
    """γ·∂/∂γ and γ·∂/∂β of something, for one layer, each of shape (channels,)."""

Verdict: TypeAlias = Literal["pass", "warn", "fail", "error"]
BNVerdict: TypeAlias = Literal["healthy", "degraded", "broken"]
Modes: TypeAlias = Literal["observed", "assumed", "hidden"]
Severity: TypeAlias = Literal["error", "warning", "note"]
Capability: TypeAlias = Literal[
    "watching", "sampling", "streams", "replicas", "slopes", "moving state", "rehearsal"
]
"""What an adapter may offer besides its required members; see `adapters.base`."""


@dataclass(frozen=True)
class Settings:
    """The options of one check, validated, each with the place it came from.

    Attributes
    ----------
    steps
        Training steps: a whole number from 0 to 10**9, or ``"auto"``.
    planned_updates
        Updates that the real training makes, >= 1, or None.
    device
        Where to run, as the framework names it, or None for where the model is.
    seed
        Seed of every random generator during the check.
    select, ignore
        Codes, names or prefixes of rules; `ignore` maps each to its reason.
    gap_tolerance
        Largest relative difference between eval and training predictions, > 0.
    distortion_tolerance
        Largest distortion of a layer, in standard deviations of its normalised output, > 0.
    strict
        Whether warnings fail too.
    intended
        Designs that the user declares as intended, for example ``"frozen-batchnorm"``.
    restore
        Whether the model gets its weights back after the check.
    origins
        For each option set by the user, the place: ``"call"``, ``"marker"``, ``"--bncheck-seed"``.
    """

    steps: int | Literal["auto"] = "auto"
    planned_updates: int | None = None
    device: str | None = None
    seed: int = 0
    select: tuple[str, ...] = ()
    ignore: Mapping[str, str | None] = field(default_factory=dict)
    gap_tolerance: float = 0.25
    distortion_tolerance: float = 0.10
    strict: bool = False
    intended: tuple[str, ...] = ()
    restore: bool = True
    origins: Mapping[str, str] = field(default_factory=dict)

    def origin(self, name: str) -> str:
        """Where an option came from, as messages say it: ``default``, ``from marker``."""
        origin = self.origins.get(name, "default")
        return origin if origin == "default" else f"from {origin}"


@dataclass(frozen=True)
class Recipe:
    """The user's part of training; what is None is inferred.

    Attributes
    ----------
    loss
        ``loss(outputs, targets)``, a scalar of the framework.
    optimizer
        ``optimizer(params)``, or an optimizer of the framework.
    train_step
        ``train_step(model, batch)``: the whole step; returns the loss.
    forward
        ``forward(model, batch)`` or ``forward(model, batch, training)``: returns the outputs.
    """

    loss: Callable[[Any, Any], Any] | None = None
    optimizer: Any = None
    train_step: Callable[[Any, Any], Any] | None = None
    forward: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Layer:
    """A layer with running statistics, as its adapter describes it.

    Attributes
    ----------
    name
        Path of the layer in the model, as the framework's user would write it.
    type
        Class name.
    momentum
        In the framework's convention; None for torch's cumulative average.
    update_rate
        α in (0, 1], 0 for a layer that never updates, None for the cumulative average.
    eps
        The constant added to the variance.
    frozen
        In inference mode by design while the rest trains.
    stock
        Normalises with batch statistics in training, at the rate that the framework's own layers
        have at its momentum; otherwise momentum says nothing and the rate was measured.
    resolution
        Spacing of the floating-point numbers around 1 that hold the statistics.
    dtype
        Name of that floating-point type.
    frozen_parameters
        All its parameters are frozen, at least one, and so are those of the layers before it.
    counted
        Updates that the framework counted so far, over the model's whole life; None if it counts
        none, or none of this layer.
    states, sizes
        Of a layer known by what it does only: what training moves, and how many values each has.
    """

    name: str
    type: str
    momentum: float | None
    update_rate: float | None
    eps: float
    frozen: bool = False
    stock: bool = True
    resolution: float = 2.0**-23
    dtype: str = "float32"
    frozen_parameters: bool = False
    counted: int | None = None
    states: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Statistics:
    """Mean and biased variance of every layer, each of shape (channels,).

    Of a layer that is known by what it does only (`Layer.states`) all values stand in `mean`, and
    `var` is empty.
    """

    mean: tuple[Array, ...]
    var: tuple[Array, ...]

    def __len__(self) -> int:
        return len(self.mean)


@dataclass(frozen=True)
class Streams:
    """Statistics of each call of one layer in one training step.

    Attributes
    ----------
    statistics
        Batch statistics, one entry per call; running statistics where rounding hides them.
    samples
        Samples in the smallest call's batch.
    """

    statistics: Statistics
    samples: int


@dataclass(frozen=True)
class Calls:
    """How often each layer ran in a pass and on how many values.

    Attributes
    ----------
    training, inference
        Calls with batch statistics and with running statistics, one count per layer.
    values
        n, the values per channel that one call's batch statistics come from; None if it never ran.
    """

    training: tuple[int, ...]
    inference: tuple[int, ...]
    values: tuple[int | None, ...]

    def beside(self, states: Sequence[int]) -> Calls:
        """These, and after them those of running state, which has no channels and always trains."""
        more = len(states)
        return Calls(
            (*self.training, *states),
            (*self.inference, *(0,) * more),
            (*self.values, *(None,) * more),
        )


@dataclass(frozen=True)
class State:
    """A tensor or variable that a forward can change, of no known layer and no optimizer.

    Attributes
    ----------
    name
        Path in the model: ``norm.moving_mean``.
    owner, type
        Path and class name of the module or layer that it hangs on.
    start, stop
        Its values before the first training step and after the last, flat, in float64. `start` is
        None where the check made no step.
    log
        Its values after each training step; empty where that would take too much memory.
    moves
        Training steps in which it changed.
    calls
        Calls of its owner in training mode over all training steps.
    as_in_pass
        Whether the last training step left it as a single training pass does.
    resolution, dtype
        Spacing of the floating-point numbers around 1 that hold it, and their type's name.
    """

    name: str
    owner: str
    type: str
    start: Array | None
    stop: Array
    log: Sequence[Array] = ()
    moves: int = 0
    calls: int = 0
    as_in_pass: bool = False
    resolution: float = 2.0**-23
    dtype: str = "float32"


@dataclass(frozen=True)
class Moved:
    """What training passes from given states did.

    Attributes
    ----------
    prediction
        Of the last pass, as in `Mode.TRAINING_PATH`; None where that has none.
    states
        Each state's values after the last pass, by its name.
    calls
        Calls of each state's owner in training mode in one pass, by the state's name.
    """

    prediction: Prediction | None
    states: Mapping[str, Array]
    calls: Mapping[str, int]


@dataclass(frozen=True)
class Rehearsal:
    """A pass in training mode from the same everything as the training step after it.

    Attributes
    ----------
    absent
        Paths of layers that the step trained and that the pass did not run in training mode.
    untrained
        Paths of layers with parameters that the pass ran and the step did not.
    changed
        Names of known layers and of states that the step moved otherwise than the pass, the one
        that differs most first.
    comparable
        Whether there was anything to compare.
    losses
        That of the pass and that of the step, where the check knows how the step computes it.
    """

    absent: tuple[str, ...] = ()
    untrained: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    comparable: bool = True
    losses: tuple[float, float] | None = None

    @property
    def is_of_others(self) -> bool:
        """Whether the pass ran other layers than those that the step trained."""
        return bool(self.absent and self.untrained)


@dataclass(frozen=True)
class RunningState:
    """States of one owner that training passes move towards a batch's values at one rate.

    Attributes
    ----------
    name, type
        Path and class name of the owner.
    states
        Names of the states.
    sizes
        The number of values of each.
    update_rate
        α of one update, in (0, 1]; None for the cumulative average.
    updates
        Updates in the training steps.
    calls
        Updates in one training pass.
    settled, clean
        The values towards which the first mini-batch moves them, joined in the order of `states`:
        as training does, and without the layers that draw random numbers.
    resolution, dtype
        As in `State`.
    kept
        The share of their values that they kept in each training step, in [0, 1]; empty where
        their rate did not change.
    """

    name: str
    type: str
    states: tuple[str, ...]
    sizes: tuple[int, ...]
    update_rate: float | None
    updates: int
    calls: int
    settled: Array
    clean: Array
    resolution: float = 2.0**-23
    dtype: str = "float32"
    kept: tuple[float, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """Outputs and scores of one forward pass.

    Attributes
    ----------
    outputs
        Every floating-point output that has an axis, by its path in the structure, with the samples
        along the leading axis. Flat where no axis holds the samples.
    structure
        Containers, shapes and types of the output; predictions that differ in it are not compared.
    loss, accuracy
        On the targets; None where it cannot be computed.
    constant_loss
        Loss of answering every sample with the mean prediction over the batch; None if unknown.
    random
        Whether the pass drew random numbers.
    mutated
        Names of all other state that the pass changed, without that of random generators and, in
        passes with batch statistics, the running statistics.
    rewritten
        Names of the parameters that a pass in eval mode changed.
    in_training
        Paths of mode-dependent modules that ran in training mode in a pass in eval mode.
    parts
        The predictions on the single mini-batches, if this one joins several.
    without_rows
        Paths of outputs that the model does not return with one row for each sample of the batch.
    """

    outputs: Mapping[str, Array]
    structure: str
    loss: float | None = None
    accuracy: float | None = None
    constant_loss: float | None = None
    random: bool = False
    mutated: tuple[str, ...] = ()
    rewritten: tuple[str, ...] = ()
    in_training: tuple[str, ...] = ()
    parts: tuple[Prediction, ...] = ()
    without_rows: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Trace:
    """One call in an eval pass that behaves as in training.

    Attributes
    ----------
    kind
        ``"random"`` if it drew random numbers, ``"batch statistics"`` if it normalised with them.
    call
        The call as a user would write it: ``F.dropout(p=0.5, training=True)``.
    module
        Path of the innermost module around it, empty for the model itself.
    source
        File, line and text of the user's code, ``net.py:12: h = F.dropout(h, 0.5)``, or empty.
    """

    kind: Literal["random", "batch statistics"]
    call: str
    module: str
    source: str


@dataclass(frozen=True)
class Parting:
    """Where eval mode begins to compute something else than training mode.

    Attributes
    ----------
    module, type
        Path and class name of the module whose code it is; the path of the model is empty.
    source
        File, line and text of its code, ``net.py:12: if self.training:``, or empty.
    library
        Whether the code is the framework's and not the user's.
    """

    module: str
    type: str
    source: str
    library: bool


@dataclass(frozen=True)
class Finding:
    """One fault that a rule found; the fields are those of the JSON report."""

    code: str
    name: str
    severity: Severity
    message: str
    cause: str
    layers: Sequence[str]
    remedy: str
    evidence: Mapping[str, Any]


@dataclass(frozen=True)
class Suppressed:
    """A finding that does not count, and why."""

    code: str
    name: str
    reason: str
    message: str
