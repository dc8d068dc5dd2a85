"""What is remembered of modules that are watched: numbers, short strings, weak references."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from torch import nn

from pytest_bncheck.adapters.torch.internals import plain_name, uncompiled
from pytest_bncheck.watch.places import Place
from pytest_bncheck.watch.torch.switches import Switch

Leaf = weakref.ref[nn.Module]


class Stepped(dict[int, Leaf]):
    """Modules with parameters that an optimizer has changed, by their ids.

    Of modules, since tensors that something refers to weakly cannot be swapped.
    """

    def __contains__(self, key: object) -> bool:
        ref = self.get(key)  # type: ignore[call-overload]
        return ref is not None and ref() is not None

    def add(self, module: nn.Module, changed: Set[int]) -> None:
        """Remember the parts of a module whose own parameters are among these, by their ids."""
        for each in module.modules():
            if any_of(each.parameters(recurse=False), changed):
                self[id(each)] = weakref.ref(each)

    def any_in(self, module: nn.Module) -> bool:
        """Whether any part of a module is here."""
        return bool(self) and any(id(each) in self for each in module.modules())

    def forget(self) -> None:
        """Drop those that are gone."""
        for key in [key for key in self if key not in self]:
            del self[key]


@dataclass
class Predictions:
    """Calls in training mode without gradients from one line, of a model that was trained.

    Attributes
    ----------
    calls
        How many.
    kinds
        The kind of each layer that was on, by its id.
    steps
        How many steps of the model came before each run of calls.
    last
        How many steps of any optimizer came before the last call.
    since
        Where the model had entered training mode.
    """

    calls: int = 0
    kinds: dict[int, str] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)
    last: int = 0
    since: Place | None = None

    def are_apart(self, own: int, steps: int) -> bool:
        """Whether they come after the training, or between its parts, and not in its steps.

        A step may well predict without gradients, for pseudo-labels or a discriminator; then each
        of the model's own steps has such a call before it.

        Parameters
        ----------
        own, steps
            Steps of the model, and of any optimizer, in the whole test.
        """
        if self.last == steps:
            return True
        once = len(set(self.steps)) == 1 and 1 < self.steps[0] < own - 1
        pairs = zip(self.steps, self.steps[1:], strict=False)
        return once or any(after - before > 1 for before, after in pairs)


class Model:
    """A module that was called by no other module: what was seen of it in a test.

    Attributes
    ----------
    ref
        The module.
    name
        Its class.
    trained, idle
        Since the last step: the layers that ran with gradients in this mode.
    place, idle_place
        The first line that trained it, and the last one that did so in eval mode.
    steps, trained_steps, idle_steps
        How many steps changed its parameters, and those with all layers in one mode.
    asleep
        The kinds of the layers that were off, since which switch, and the line that trained
        them; None if none were.
    decided
        What was said of layers that were off, and of which.
    looked_at
        Layers that were found in training mode while the model was not, and when.
    entered
        The number of the last switch of a mode before its last step.
    fresh
        Calls without gradients whose sense the next event tells, by their line.
    predictions
        The others.
    marked
        The ids of parameters whose change was noted for the parts that they are in.
    """

    def __init__(self, module: nn.Module) -> None:
        self.ref = weakref.ref(module)
        self.name = class_name(module)
        self._ids: frozenset[int] | None = None
        self._looked_again = 0
        self.marked: Set[int] = frozenset()
        self.begin_test()

    def begin_test(self) -> None:
        """Forget what was seen in the test before."""
        self.trained: dict[int, Leaf] = {}
        self.idle: dict[int, Leaf] = {}
        self.place: Place | None = None
        self.idle_place: Place | None = None
        self.steps = self.trained_steps = self.idle_steps = 0
        self.asleep: tuple[list[str], Switch | None, Place | None] | None = None
        self.decided: tuple[tuple[frozenset[int], int], bool] | None = None
        self.looked_at: set[tuple[int, int]] = set()
        self.entered = -1
        self.fresh: dict[Place, Predictions] = {}
        self.predictions: dict[Place, Predictions] = {}

    def has_any(self, changed: Set[int]) -> bool:
        """Whether any of its parameters is among these, by their ids."""
        module = self.ref()
        if module is None:
            return False
        if self._ids is None or (self._ids.isdisjoint(changed) and self._looked_again < 5):
            self._looked_again += self._ids is not None  # layers may come later
            self._ids = frozenset(map(id, module.parameters()))
        return not self._ids.isdisjoint(changed)

    def commit(self) -> None:
        """Count the fresh calls: they were predictions."""
        for place, fresh in self.fresh.items():
            known = self.predictions.setdefault(place, Predictions(since=fresh.since))
            known.calls += fresh.calls
            known.kinds |= fresh.kinds
            known.last = fresh.last
            if len(known.steps) < 1000:
                known.steps.append(self.steps)
        self.fresh = {}


@dataclass(slots=True)
class Call:
    """A call of a model that is going on.

    Attributes
    ----------
    model, module
        The model.
    frame
        The frame that called it, for as long as the call goes on.
    grad
        Whether gradients are recorded.
    training
        The mode of the model.
    found
        The user's line, once it was looked for.
    stepped
        Whether an optimizer has changed parameters of the model, once it was looked for.
    looked_at, predictions
        Whether it was asked if this is a prediction in training mode, and where it is counted.
    """

    model: Model
    module: nn.Module
    frame: FrameType | None
    grad: bool
    training: bool
    found: tuple[Place | None] | None = None
    stepped: bool | None = None
    looked_at: bool = False
    predictions: Predictions | None = None


def class_name(module: nn.Module) -> str:
    """The class of a module, as the user wrote it."""
    inner = uncompiled(module)
    if type(inner).__module__.startswith("torch.nn.parallel"):
        inner = getattr(inner, "module", inner)
    return type(inner).__name__


def core(module: nn.Module) -> nn.Module:
    """The module that another one only hands its inputs to, as it has no other parameters."""
    while next(module.parameters(recurse=False), None) is None:
        within = [each for each in module.children() if next(each.parameters(), None) is not None]
        if len(within) != 1:
            break
        module = within[0]
    return module


def path_of(layer: nn.Module, module: nn.Module) -> str | None:
    """The path of a layer in a model; None if it is no registered part of it."""
    found = (name for name, each in module.named_modules() if each is layer)
    path = next(found, None)
    return None if path is None else plain_name(path) or type(layer).__name__


def any_of(parameters: Iterable[Any], changed: Set[int]) -> bool:
    """Whether any of the parameters is among these, by their ids."""
    return any(id(each) in changed for each in parameters)
