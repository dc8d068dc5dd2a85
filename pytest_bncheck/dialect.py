"""Lines of code in the user's framework."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


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
    per_sample, shuffle, drop_last
        Layers that do not look across the batch; how a loader mixes samples, and drops the rest.
    unbiased
        Whether the framework stores the unbiased variance.
    counter
        Where the framework counts updates.
    replica, replicas
        What trains one model together with others of its kind.
    together
        What keeps their running statistics together, with code.
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
    per_sample: str = "group or layer normalisation"
    shuffle: str = "a loader that shuffles"
    drop_last: str = "a loader that drops it"
    unbiased: bool = False
    counter: str = "the counter"
    replica: str = "process"
    replicas: str = "processes"
    together: tuple[str, ...] = ("Normalise over all of them together.",)
