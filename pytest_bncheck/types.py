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
Severity: TypeAlias = Literal["error", "warning"]
Capability: TypeAlias = Literal["watching", "sampling", "streams", "replicas", "slopes"]
"""What an adapter may offer besides its required members; see `adapters.base`."""


@dataclass(frozen=True)
class Settings:
    """The options of one check, validated, each with the place it came from.

    Attributes
    ----------
    steps
        Training steps: a whole number >= 0, or ``"auto"``.
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
        ``forward(model, batch)``: returns the outputs.
    """

    loss: Callable[[Any, Any], Any] | None = None
    optimizer: Any = None
    train_step: Callable[[Any, Any], Any] | None = None
    forward: Callable[[Any, Any], Any] | None = None


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
    trained
        Scale or offset differ from their initial 1 and 0.
    resolution
        Spacing of the floating-point numbers around 1 that hold the statistics.
    dtype
        Name of that floating-point type.
    frozen_parameters
        All its parameters are frozen, at least one, and so are those of the layers before it.
    counted
        Updates that the framework counted so far, over the model's whole life; None if it counts
        none, or none of this layer.
    """

    name: str
    type: str
    momentum: float | None
    update_rate: float | None
    eps: float
    frozen: bool = False
    stock: bool = True
    trained: bool = False
    resolution: float = 2.0**-23
    dtype: str = "float32"
    frozen_parameters: bool = False
    counted: int | None = None


@dataclass(frozen=True)
class Statistics:
    """Mean and biased variance of every layer, each of shape (channels,)."""

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
        Batch statistics, one entry per call; the running statistics in channels where rounding
        hides them.
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
        Names of the buffers or non-trainable variables that the pass changed, without the states
        of random generators and, in passes with batch statistics, the running statistics.
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
class Dialect:
    """Lines of code in the user's framework, for remedies.

    Attributes
    ----------
    set_momentum
        Code that gives a layer type the update rate α.
    recalibrate
        Code that re-estimates running statistics from data.
    momentum_of
        The framework's momentum for an update rate α.
    training_mode
        How to enter training mode.
    mode
        The name under which the user's code reads the mode.
    freeze
        How to keep the running statistics of a frozen part.
    running_in_eval
        How to let a normalisation use running statistics in eval mode.
    reset
        Code that resets running statistics, if `recalibrate` does not do so itself.
    copy_statistics
        Code that copies running statistics along with the parameters.
    unbiased
        Whether the framework stores the unbiased variance.
    counter
        Where the framework counts updates.
    """

    set_momentum: Callable[[str, float], str]
    recalibrate: str
    momentum_of: Callable[[float], float]
    training_mode: str
    mode: str = "training"
    freeze: str = "Keep the frozen part in inference mode."
    running_in_eval: str = "Let it use running statistics in eval mode"
    reset: str = ""
    copy_statistics: str = ""
    unbiased: bool = False
    counter: str = "the counter"


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
