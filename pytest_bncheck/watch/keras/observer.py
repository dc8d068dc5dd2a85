"""What Keras' models do in a test, and which of it is a fault.

A compiled function runs its Python once, while it is traced. What was seen then is remembered with
the model, for as long as it lives.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NamedTuple

import keras
import numpy as np

from pytest_bncheck.adapters.keras import internals
from pytest_bncheck.adapters.keras.backends.base import to_numpy
from pytest_bncheck.adapters.keras.layers import affine_of, statistics_of, trains_unless_told
from pytest_bncheck.watch.keras import words
from pytest_bncheck.watch.ledger import Seen, Sighting
from pytest_bncheck.watch.places import Place, Places, passes_on
from pytest_bncheck.watch.watcher import Watcher

COMPILED = "a Keras model that was compiled before, or calls its layers in a way of its own"
TRAINS = ("fit", "train_on_batch")
FEW = 2
"""Calls of ``train_on_batch`` whose statistics are looked at."""


@dataclass
class Network:
    """A layer or model that was called by no other layer.

    Attributes
    ----------
    ref
        The model.
    on, off
        Since the last step: whether a call was in training mode, and whether one had no mode.
    off_place
        The line of the latter.
    idle, trained
        Names of layers that ran in this mode, by their id; those of all steps.
    predicting
        Those that ran in training mode in a prediction, by its kind.
    steps
        Whether its variables were ever changed.
    seen
        Whether a layer that minds the mode was ever seen in its training.
    batches
        Calls of ``train_on_batch`` in a test.
    """

    ref: weakref.ref[Any]
    on: bool = False
    off: bool = False
    off_place: Place | None = None
    idle: dict[int, str] = field(default_factory=dict)
    trained: dict[int, str] = field(default_factory=dict)
    predicting: dict[str, dict[int, str]] = field(default_factory=dict)
    predicting_place: Place | None = None
    steps: bool = False
    seen: bool = False
    batches: int = 0


class Values(NamedTuple):
    """What a normalisation layer holds: its statistics, and scale and offset if it is frozen."""

    mean: Any
    variance: Any
    affine: list[Any]

    @property
    def are_valid(self) -> bool:
        """Whether the statistics are finite, and the variances none below zero."""
        finite = np.isfinite(self.mean).all() and np.isfinite(self.variance).all()
        return bool(finite and (self.variance >= 0).all())

    def have_moved(self, after: Values) -> bool:
        """Whether the statistics are others now."""
        return not _are_equal(self[:2], after[:2])


@dataclass
class Phase:
    """A call of ``fit``, ``evaluate``, ``predict`` or one of their kind that is going on.

    Attributes
    ----------
    how
        The name of the method.
    network, place
        The model, and the user's line.
    before
        What the layers held before that keep statistics; None if it is not looked at.
    updates
        How many updates the optimizer had made.
    """

    how: str
    network: Network
    place: Place | None
    before: dict[int, Values] | None = None
    updates: int = 0


@dataclass
class Root:
    """A call that is going on, and its mode: None without one."""

    network: Network
    mode: bool | None
    predicts: str
    place: Place | None = None


class Local(threading.local):
    """What goes on in a thread."""

    root: Root | None = None
    phases: tuple[Phase, ...] = ()


class Observer(Watcher):
    """Watches one process; see the one of PyTorch."""

    def __init__(
        self, root: str, libraries: Sequence[str], run: Callable[..., None] | None = None
    ) -> None:
        super().__init__(run)
        self.local = Local()
        self._places = Places(root, libraries)
        self._networks: dict[int, Network] = {}
        self._begin()

    def _begin(self) -> None:
        self.test = Seen()
        self._networks = {k: each for k, each in self._networks.items() if each.ref() is not None}
        for network in self._networks.values():
            network.batches = 0
            network.on = network.off = False
            network.idle = {}

    def end_test(self) -> Seen:
        """What was seen in a test that has ended."""
        test = self.test
        self._begin()
        return test

    def _see(self, code: str, network: Network, place: Place | None, message: str) -> None:
        if place is not None:
            name = type(network.ref()).__name__
            self.test.see(Sighting(code, name, place, message, words.REMEDIES[code]))

    def _network(self, model: Any) -> Network:
        found = self._networks.get(id(model))
        if found is None or found.ref() is not model:
            found = self._networks[id(model)] = Network(weakref.ref(model))
        return found

    # calls ----------------------------------------------------------------------------------------

    def enter(self, layer: Any, args: Any, kwargs: Any, frame: FrameType | None) -> None:
        """Begin the call of a layer that no other layer calls."""
        first = args[0] if args else None
        if internals.is_symbolic() or any(map(_is_symbolic, keras.tree.flatten(first))):
            return
        network, mode = self._network(layer), _mode(layer, kwargs)
        phase = next((each for each in self.local.phases[-1:]), None)
        predicts = phase.how if phase is not None and phase.how not in TRAINS else ""
        root = self.local.root = Root(network, mode, predicts)
        if not predicts:
            network.on |= mode is True
            if mode is None:
                network.off, network.off_place = True, self._places.of(frame, passes_on)
        elif mode:
            root.place = self._places.of(frame, passes_on)

    def layer(self, layer: Any, kwargs: Any) -> None:
        """Look at a layer that is called."""
        root = self.local.root
        if root is None or not minds(layer):
            return
        self.test.minds = True
        network, mode, key = root.network, _mode(layer, kwargs), id(layer)
        if root.predicts:
            # JAX calls the parts of a model, and not the model itself.
            whole = self.local.phases[-1].network
            by_whole = network is whole and bool(root.mode)
            if mode and layer.trainable and (by_whole or _has_statistics(layer)):
                whole.predicting.setdefault(root.predicts, {})[key] = layer.name
                whole.predicting_place = root.place if by_whole else None
            return
        # The model that is fitted may call nothing but its parts.
        for each in (network, *(phase.network for phase in self.local.phases)):
            each.seen = True
            if mode:
                each.trained[key] = layer.name
        if not mode and layer.trainable:
            network.idle[key] = layer.name

    # steps ----------------------------------------------------------------------------------------

    def stepped(self, groups: Any) -> None:
        """Look at the models whose variables an optimizer of PyTorch has just changed."""
        tensors = (each for group in groups for each in group["params"])
        changed = {id(each) for each in tensors if each.grad is not None}
        self.applied(changed, lambda variable: id(variable.value))

    def applied(self, changed: Set[int], identity: Callable[[Any], int]) -> None:
        """Look at the models whose variables an optimizer changes, or will when this is run."""
        self.test.trained = True
        for network in list(self._networks.values()):
            model = network.ref()
            if model is None or not (network.on or network.off):
                continue
            if changed.isdisjoint(map(identity, model.trainable_variables)):
                continue
            network.steps = True
            names = [name for key, name in network.idle.items() if key not in network.trained]
            if network.off and not network.on and names:
                message = words.off(type(model).__name__, names)
                self._see("BN305", network, network.off_place, message)
            network.on = network.off = False
            network.idle = {}

    # fit, evaluate, predict -----------------------------------------------------------------------

    def begin(self, model: Any, how: str, frame: FrameType | None) -> None:
        """Note what a model is before it is trained, or predicts."""
        network = self._network(model)
        inner = self.local.phases[-1:] and self.local.phases[-1].network is network
        place = self.local.phases[0].place if inner else self._places.of(frame, passes_on)
        phase = Phase(how, network, place)
        self.local.phases = (*self.local.phases, phase)
        network.batches += how == "train_on_batch"
        if how == "fit" or (how == "train_on_batch" and network.batches <= FEW):
            phase.before = {id(each): _values(each) for each in _normalisations(model)}
        phase.updates = _updates(model)

    def end(self, model: Any, how: str) -> None:
        """Look at what has become of it."""
        *outer, phase = self.local.phases
        self.local.phases = tuple(outer)
        network = phase.network
        if how in TRAINS:
            if _updates(model) == phase.updates:
                return
            self.test.trained = network.steps = True
            self._statistics(model, phase)
            return
        names = network.predicting.get(how, {})
        if names and network.steps:
            message = words.on(type(model).__name__, list(names.values()), how)
            code = "BN403" if how == "export" else "BN307"
            self._see(code, network, network.predicting_place or phase.place, message)

    def _statistics(self, model: Any, phase: Phase) -> None:
        """BN103, BN104, BN105 and BN107."""
        network = phase.network
        if any(map(minds, internals.flat_layers(model))):
            self.test.minds = True
            if not network.seen:
                self.test.unseen = COMPILED
        for layer in _normalisations(model):
            if id(layer) not in network.trained or phase.before is None:
                continue
            before = phase.before.get(id(layer))
            momentum = getattr(layer, "momentum", None)
            for code in _faults(model, layer, before):
                name = type(model).__name__
                message = words.of_statistics(code, name, layer.name, momentum, phase.how)
                self._see(code, network, phase.place, message)


def _faults(model: Any, layer: Any, before: Values | None) -> list[str]:
    """What is wrong with the statistics of a layer that ran in training mode."""
    after = _values(layer)
    if before is None:  # built since
        before = Values(np.zeros_like(after.mean), np.ones_like(after.variance), after.affine)
    momentum, moved = getattr(layer, "momentum", None), before.have_moved(after)
    short = isinstance(momentum, float) and momentum <= 0.5
    faults = {
        "BN103": layer.trainable and not moved,
        "BN104": layer.trainable and short and moved,
        "BN105": layer.trainable and not after.are_valid and _are_finite(layer),
        "BN107": moved and _is_frozen(model, layer) and _are_equal(before.affine, after.affine),
    }
    return [code for code, is_there in faults.items() if is_there]


def _is_frozen(model: Any, layer: Any) -> bool:
    """Whether nothing trains in a layer, nor in those before it."""
    leaves = [each for each in internals.flat_layers(model) if not internals.inner_layers(each)]
    before = leaves[: leaves.index(layer)] if layer in leaves else []
    return not layer.trainable and not any(each.trainable_variables for each in before)


def _are_equal(before: Sequence[Any], after: Sequence[Any]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def minds(layer: Any) -> bool:
    """Whether a layer does something else in training mode."""
    if _has_statistics(layer):
        return True
    name = type(layer).__name__
    named = "Drop" in name or name == "GaussianNoise"
    rates = (getattr(layer, each, 0) for each in ("rate", "stddev", "drop_prob"))
    return named and any(isinstance(rate, (int, float)) and rate > 0 for rate in rates)


def _has_statistics(layer: Any) -> bool:
    return getattr(layer, "moving_variance", None) is not None


def _normalisations(model: Any) -> Iterator[Any]:
    return (each for each in internals.flat_layers(model) if _has_statistics(each))


def _mode(layer: Any, kwargs: Any) -> bool | None:
    """The mode that a call is in, as Keras resolves it; None where nobody said one."""
    given = kwargs.get("training")
    mode = internals.mode_around() if given is None else given
    if mode is None and trains_unless_told(layer):
        return True
    return mode if isinstance(mode, bool) or mode is None else bool(mode)


def _is_symbolic(value: Any) -> bool:
    return isinstance(value, keras.KerasTensor)


def _values(layer: Any) -> Values:
    """Copies on the host."""
    mean, variance = (np.array(_host(each)) for each in statistics_of(layer))
    affine = [] if layer.trainable else [each for each in affine_of(layer) if each is not None]
    return Values(mean, variance, [np.array(_host(each)) for each in affine])


def _host(variable: Any) -> Any:
    """A variable's value on the host, without the warning that TensorFlow's conversion gives."""
    value = variable.value
    own = getattr(value, "numpy", None)
    return to_numpy(value) if own is None or hasattr(value, "detach") else own()


def _updates(model: Any) -> int:
    """How many updates the optimizer says that it made."""
    iterations = getattr(getattr(model, "optimizer", None), "iterations", None)
    return -1 if iterations is None else int(_host(iterations))


def _are_finite(layer: Any) -> bool:
    weights = [_host(each) for each in layer.trainable_variables]
    return all(bool(np.isfinite(each).all()) for each in weights)
