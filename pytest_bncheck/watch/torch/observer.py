"""What PyTorch's models do in a test, and which of it is a fault."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence, Set
from types import FrameType
from typing import Any

import torch
from torch import nn

from pytest_bncheck.adapters.torch.internals import is_compiled, run_uncompiled, runs_plainly
from pytest_bncheck.watch.ledger import Seen, Sighting
from pytest_bncheck.watch.places import Place, Places, is_under, passes_on, same_function
from pytest_bncheck.watch.torch import words
from pytest_bncheck.watch.torch.layers import NORMALISATION, kind_of_type, minds
from pytest_bncheck.watch.torch.norms import Fault, Norms
from pytest_bncheck.watch.torch.records import (
    Call,
    Model,
    Predictions,
    Stepped,
    any_of,
    class_name,
    core,
    path_of,
)
from pytest_bncheck.watch.torch.switches import Switches
from pytest_bncheck.watch.watcher import Watcher

MANY = 200
"""Layers of a model that are remembered."""

COMPILED = "compiled by torch.compile"


class Local(threading.local):
    """What goes on in a thread."""

    call: Call | None = None
    busy = False
    """Whether ``train()``, ``step()`` or an export is going on: their inner calls do not count."""


class Observer(Watcher):
    """Watches one process.

    Attributes
    ----------
    kinds
        What the layers of each class do in training mode, as `kind_of_type` says.
    """

    def __init__(self, root: str) -> None:
        super().__init__(run_uncompiled)
        self.local = Local()
        self._places = Places(root, torch.__path__)
        self.kinds: dict[type, str | None] = {}
        self._models: dict[int, Model] = {}
        self._stepped = Stepped()
        self._begin()

    # tests ----------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._open: dict[int, Model] = {}
        self._switches = Switches()
        self._entries: set[Place | None] = set()
        self._norms = Norms()
        self.test = Seen()
        self._steps = 0
        self._models = {key: each for key, each in self._models.items() if each.ref() is not None}
        self._stepped.forget()
        for model in list(self._models.values()):
            model.begin_test()

    def end_test(self) -> Seen:
        """What was seen in a test that has ended."""
        self.guarded(self._conclude)
        test = self.test
        test.trained = bool(self._steps)
        self._begin()
        return test

    def _conclude(self) -> None:
        if not self._stepped:
            return
        for model in list(self._models.values()):
            model.commit()
            self._report_modes(model)
        self._see_all(self._norms.end(self._stepped))

    def _see(self, code: str, model: str, place: Place | None, message: str) -> None:
        if place is not None:
            self.test.see(Sighting(code, model, place, message, words.REMEDIES[code]))

    def _see_all(self, faults: Iterable[Fault]) -> None:
        for code, model, message in faults:
            self._see(code, model.name, model.place, message)

    # calls ----------------------------------------------------------------------------------------

    def enter(self, module: nn.Module, frame: FrameType | None) -> None:
        """Begin the call of a module that no other module calls, if there is anything to see."""
        if not runs_plainly():
            return
        if is_compiled(module):
            self.test.unseen = COMPILED
            return
        model = self._models.get(id(module))
        if model is None or model.ref() is not module:
            model = self._models[id(module)] = Model(module)
        grad = torch.is_grad_enabled()
        if grad:
            self._open[id(module)] = model
        call = self.local.call = Call(model, module, frame, grad, module.training)
        if grad and module.training and model.place is None:
            model.place = self._place(call)
        if self.is_minding(module):
            self.layer(module)

    def _place(self, call: Call) -> Place | None:
        """The user's line that made a call."""
        if call.found is None:
            call.found = (self._places.of(call.frame, passes_on),)
        return call.found[0]

    def is_minding(self, module: nn.Module) -> bool:
        """Whether the layers of a class do something else in training mode."""
        kind = type(module)
        if kind not in self.kinds:
            self.kinds[kind] = kind_of_type(module)
        return self.kinds[kind] is not None

    def layer(self, layer: nn.Module) -> None:
        """Look at a layer that is called, and minds the mode."""
        call = self.local.call
        if call is None or not self.is_minding(layer):
            return
        kind = self.kinds[type(layer)] or ""
        if not minds(layer, kind):
            return
        self.test.minds = True
        model, training = call.model, layer.training
        if call.grad:
            found = model.trained if training else model.idle
            if len(found) < MANY:
                found[id(layer)] = weakref.ref(layer)
            if not training:
                model.idle_place = self._place(call)
        elif training and call.training and self._was_stepped(call):
            self._predicts(call, layer, kind)
        if training and not call.training and self._was_stepped(call):
            self._left_on(call, layer, kind)

    def _was_stepped(self, call: Call) -> bool:
        """Whether an optimizer has changed parameters of a model that are still there."""
        if call.stepped is None:
            call.stepped = self._stepped.any_in(call.module)
        return call.stepped

    def _predicts(self, call: Call, layer: nn.Module, kind: str) -> None:
        """Note a call without gradients in training mode; later events tell what it was."""
        if not call.looked_at:
            call.looked_at = True
            call.predictions = self._predictions(call)
        if call.predictions is not None:
            call.predictions.kinds[id(layer)] = kind

    def _predictions(self, call: Call) -> Predictions | None:
        """Where such a call is counted; None if it is meant so."""
        place = self._place(call)
        if place is None or is_under(call.frame, "update_bn"):
            return None
        switch = self._switches.of(call.module)
        since = None
        if switch is not None and switch.training:
            since = switch.place
            meant = same_function(since, place) or since not in self._entries
            if switch.steps == self._steps and meant:
                return None  # by a train() that is no training's: MC dropout, calibration
        fresh = call.model.fresh.setdefault(place, Predictions(since=since))
        fresh.last = self._steps
        fresh.calls += 1
        return fresh

    def _left_on(self, call: Call, layer: nn.Module, kind: str) -> None:
        """BN301: a layer in training mode in a model that is in eval mode."""
        number = self._switches.last
        if (id(layer), number) in call.model.looked_at:
            return
        call.model.looked_at.add((id(layer), number))
        path = path_of(layer, call.module)
        hidden = path is None
        if not hidden and kind != NORMALISATION:
            return  # MC dropout
        whole = self._switches.of(call.module)
        after = -1 if whole is None else whole.number
        own = (each for each in self._switches.reaching(layer) if each.number > after)
        if any(each.training and each.ref() is not call.module for each in own):
            return  # switched on by hand
        if is_under(call.frame, "update_bn"):
            return
        name = path or type(layer).__name__
        message = words.still_on(name, call.model.name, hidden)
        self._see("BN301", call.model.name, self._place(call), message)

    # modes ----------------------------------------------------------------------------------------

    def switched(self, module: nn.Module, training: bool, frame: FrameType | None) -> None:
        """Note a call of ``train()`` or ``eval()`` by no other module."""
        overrides = {
            getattr(getattr(type(module), name), "__code__", None) for name in ("train", "eval")
        }
        by_eval = frame is not None and frame.f_code is nn.Module.eval.__code__
        place = self._places.of(frame, lambda each: each.f_code in overrides)
        switch = self._switches.add(module, training, by_eval, place, self._steps)
        for model in list(self._models.values()):
            inner = model.ref()
            if not model.fresh or inner is None or not switch.covers(inner):
                continue
            if not training:  # what this function did before it was a calibration
                model.fresh = {
                    at: each
                    for at, each in model.fresh.items()
                    if NORMALISATION not in each.kinds.values()
                    or not same_function(switch.place, at)
                }
            model.commit()

    # steps ----------------------------------------------------------------------------------------

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """Look at the models whose parameters an optimizer has just changed."""
        changed = {
            id(parameter)
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        }
        if not changed:
            return
        self._steps += 1
        for key, model in list(self._open.items()):
            module = model.ref()
            if module is None:  # a loss, made for one call
                del self._open[key]
            elif model.has_any(changed):
                self._step_of(model, module, changed)
                del self._open[key]

    def _step_of(self, model: Model, module: nn.Module, changed: Set[int]) -> None:
        model.commit()
        number = self._switches.last
        if model.entered != number:
            model.entered, switch = number, self._switches.of(module)
            self._entries.add(None if switch is None else switch.place)
        model.steps += 1
        if not changed <= model.marked:
            model.marked = frozenset(changed)
            self._stepped.add(module, changed)
        if model.trained:
            model.trained_steps += 1
            for ref in model.trained.values():
                layer = ref()
                if layer is not None and self.kinds[type(layer)] == NORMALISATION:
                    self._see_all(self._norms.step(layer, model, self._stepped))
        elif model.idle and not core(module).training:
            self._sleeps(model, module, changed)
        model.trained, model.idle = {}, {}

    def _sleeps(self, model: Model, module: nn.Module, changed: Set[int]) -> None:
        """BN305: all layers of a model were off, and its parameters were changed."""
        number = self._switches.last
        same = frozenset(model.idle), number
        if model.decided is None or model.decided[0] != same:
            model.decided = same, self._are_asleep(model, module, changed)
        model.idle_steps += model.decided[1]

    def _are_asleep(self, model: Model, module: nn.Module, changed: Set[int]) -> bool:
        """Whether layers that should train are off, and nobody froze them."""
        parents = {id(part): each for each in module.modules() for part in each.children()}
        layers = [layer for ref in model.idle.values() if (layer := ref()) is not None]
        off = [each for each in layers if _trains(each, module, parents, changed)]
        inner = core(module)
        switch, owner = self._switches.of(inner), self._switches.owner(inner)
        in_training = owner.training and core(owner) is not inner
        left = model.trained_steps or (switch is not None and switch.by_eval)
        if not off or in_training or not left:
            return False  # in a model that trains, or frozen from the start
        model.name = class_name(owner)
        kinds = [self.kinds[type(layer)] or "" for layer in off]
        since = switch if switch is not None and switch.place else None
        model.asleep = kinds, since, model.idle_place
        return True

    def _report_modes(self, model: Model) -> None:
        if model.asleep is not None:
            kinds, since, at = model.asleep
            message = words.off(kinds, model.name, model.idle_steps, model.steps, since)
            self._see("BN305", model.name, at, message)
        for place, each in model.predictions.items():
            if each.are_apart(model.steps, self._steps):
                kinds = list(each.kinds.values())
                message = words.on(kinds, model.name, each.calls, each.since)
                self._see("BN307", model.name, place, message)

    # exports and states ---------------------------------------------------------------------------

    def exported(self, module: Any, how: str, frame: FrameType | None) -> None:
        """BN403: an export of a model that was trained, in training mode."""
        if not isinstance(module, nn.Module) or not module.training:
            return
        if not self._stepped.any_in(module):
            return
        on = [each for each in module.modules() if each.training and self.is_minding(each)]
        kinds = [self.kinds[type(each)] or "" for each in on]
        kinds = [kind for each, kind in zip(on, kinds, strict=True) if minds(each, kind)]
        if kinds:
            name, place = class_name(module), self._places.of(frame, passes_on)
            self._see("BN403", name, place, words.exported(name, kinds, how))

    def loaded(
        self,
        module: nn.Module,
        state: Mapping[str, Any],
        missing: Sequence[str],
        frame: FrameType | None,
    ) -> None:
        """BN401: a state with a layer's weights and without its running statistics."""
        if not self._steps:
            return
        lost = [
            name
            for name in missing
            if name.endswith("running_var") and f"{name.removesuffix('running_var')}weight" in state
        ]
        if lost:
            name, place = class_name(module), self._places.of(frame, passes_on)
            self._see("BN401", name, place, words.lost(name, lost))


def _trains(
    layer: nn.Module,
    module: nn.Module,
    parents: Mapping[int, nn.Module],
    changed: Set[int],
) -> bool:
    """Whether the parameters of a layer were changed; of one without any, those around it."""
    nearest = layer
    while next(nearest.parameters(), None) is None and nearest is not module:
        nearest = parents.get(id(nearest), module)
    return any_of(nearest.parameters(), changed)
