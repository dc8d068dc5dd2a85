"""What PyTorch's models do in a test, and which of it is a fault."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import nn

from pytest_bncheck.adapters.torch.internals import runs_plainly, uncompiled, version_of
from pytest_bncheck.watch.ledger import Ledger, Seen, Sighting
from pytest_bncheck.watch.places import Place, Places, is_under, passes_on
from pytest_bncheck.watch.torch import words
from pytest_bncheck.watch.torch.layers import (
    ENOUGH,
    NORMALISATION,
    fingerprint,
    has_finite_weights,
    kind_of_type,
    minds,
    updates_as_torch,
)
from pytest_bncheck.watch.torch.records import (
    Call,
    Model,
    Predictions,
    Statistics,
    Switch,
    any_of,
    class_name,
    path_of,
)

MANY = 200
"""Layers of a model, and switches of a test, that are remembered."""

COMPILED = "compiled by torch.compile"


class Local(threading.local):
    """What goes on in a thread."""

    call: Call | None = None
    busy = False
    """Whether ``train()``, ``step()`` or an export is going on: their inner calls do not count."""


class Observer:
    """Watches one process.

    Attributes
    ----------
    active
        Whether a test is running, and no check.
    kinds
        What the layers of each class do in training mode, as `kind_of_type` says.
    """

    def __init__(self, root: str, ledger: Ledger) -> None:
        self.active = False
        self.local = Local()
        self._ledger = ledger
        self._places = Places(root, torch.__path__)
        self.kinds: dict[type, str | None] = {}
        self._models: dict[int, Model] = {}
        self._stepped: dict[int, weakref.ref[torch.Tensor]] = {}
        self._begin()

    # tests ----------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._open: dict[int, Model] = {}
        self._switches: list[Switch] = []
        self._entries: set[Place | None] = set()
        self._norms: dict[int, Statistics] = {}
        self._test = Seen()
        self._steps = 0
        self._models = {key: each for key, each in self._models.items() if each.ref() is not None}
        self._stepped = {key: ref for key, ref in self._stepped.items() if ref() is not None}
        for model in list(self._models.values()):
            model.begin_test()

    def end_test(self) -> Seen:
        """What was seen in a test that has ended."""
        self.guarded(self._conclude)
        test = self._test
        test.trained = bool(self._steps)
        self._begin()
        return test

    def _conclude(self) -> None:
        if not self._stepped:
            return
        for model in list(self._models.values()):
            model.commit()
            self._report_modes(model)
        for norm in self._norms.values():
            self._report_statistics(norm, ended=True)

    def guarded(self, look: Callable[..., None], *args: Any) -> None:
        """Look, and raise nothing into a test: a failure ends the watching."""
        try:
            look(*args)
        except Exception as error:
            self.active = False
            text = " ".join(str(error).split())[:200]
            self._ledger.problem = self._ledger.problem or f"{type(error).__name__}: {text}"

    def _see(self, code: str, model: str, place: Place | None, message: str) -> None:
        if place is not None:
            self._test.see(Sighting(code, model, place, message, words.REMEDIES[code]))

    # calls ----------------------------------------------------------------------------------------

    def enter(self, module: nn.Module, frame: FrameType | None) -> None:
        """Begin the call of a module that no other module calls, if there is anything to see."""
        if not runs_plainly():
            return
        if uncompiled(module) is not module:
            self._test.unseen = COMPILED
            return
        model = self._models.get(id(module))
        if model is None or model.ref() is not module:
            model = self._models[id(module)] = Model(module)
        grad = torch.is_grad_enabled()
        if grad:
            self._open[id(module)] = model
        call = self.local.call = Call(model, module, frame, grad, module.training)
        if grad and not module.training:
            model.idle_place = self._place(call)
        elif grad and model.place is None:
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
        self._test.minds = True
        model, training = call.model, layer.training
        if call.grad:
            found = model.trained if training else model.idle
            if len(found) < MANY:
                found[id(layer)] = weakref.ref(layer)
        elif training and call.training and self._was_stepped(model):
            self._predicts(call, layer, kind)
        if training and not call.training and self._was_stepped(model):
            self._left_on(call, layer, kind)

    def _was_stepped(self, model: Model) -> bool:
        """Whether an optimizer has changed parameters of a model that are still there."""
        return model.ever_trained or bool(self._stepped and model.is_part_of(self._stepped))

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
        switch = self._switch(call.module)
        since = None
        if switch is not None and switch.training:
            since = switch.place
            meant = _same_function(since, place) or since not in self._entries
            if switch.steps == self._steps and meant:
                return None  # by a train() that is no training's: MC dropout, calibration
        fresh = call.model.fresh.setdefault(place, Predictions(since=since))
        fresh.last = self._steps
        fresh.calls += 1
        return fresh

    def _left_on(self, call: Call, layer: nn.Module, kind: str) -> None:
        """BN301: a layer in training mode in a model that is in eval mode."""
        number = self._switches[-1].number if self._switches else -1
        if (id(layer), number) in call.model.looked_at:
            return
        call.model.looked_at.add((id(layer), number))
        path = path_of(layer, call.module)
        hidden = path is None
        if not hidden and kind != NORMALISATION:
            return  # MC dropout
        whole = self._switch(call.module)
        after = -1 if whole is None else whole.number
        own = (each for each in self._switches if each.training and each.number > after)
        if any(each.ref() is not call.module and each.covers(layer) for each in own):
            return  # switched on by hand
        if is_under(call.frame, "update_bn"):
            return
        name = path or type(layer).__name__
        message = words.still_on(name, call.model.name, hidden)
        self._see("BN301", call.model.name, self._place(call), message)

    # modes ----------------------------------------------------------------------------------------

    def switched(self, module: nn.Module, training: bool, frame: FrameType | None) -> None:
        """Note a call of ``train()`` or ``eval()`` by no other module."""
        by_eval = frame is not None and frame.f_code is nn.Module.eval.__code__
        overrides = {
            getattr(getattr(type(module), name), "__code__", None) for name in ("train", "eval")
        }
        place = self._places.of(frame, lambda each: each.f_code in overrides)
        before = next((each for each in self._switches if each.ref() is module), None)
        if place is None and before is not None and before.training == bool(training):
            place = before.place  # a library says again what the user said
        number = self._switches[-1].number + 1 if self._switches else 0
        ref = weakref.ref(module)
        switch = Switch(ref, bool(training), by_eval, place, number, self._steps)
        earlier = [each for each in self._switches if each.ref() not in (module, None)]
        self._switches = [*earlier[-MANY:], switch]
        for model in list(self._models.values()):
            inner = model.ref()
            if not model.fresh or inner is None or not switch.covers(inner):
                continue
            if not training:  # what this function did before it was a calibration
                model.fresh = {
                    at: each
                    for at, each in model.fresh.items()
                    if NORMALISATION not in each.kinds.values() or not _same_function(place, at)
                }
            model.commit()

    def _switch(self, module: nn.Module) -> Switch | None:
        """The last call of ``train()`` or ``eval()`` that reached a module."""
        return next((each for each in reversed(self._switches) if each.covers(module)), None)

    def _owner(self, module: nn.Module) -> nn.Module:
        """The largest module around this one whose mode somebody switched."""
        found = [each.ref() for each in self._switches if each.covers(module)]
        around = [each for each in found if each is not None]
        return max(around, key=lambda each: sum(1 for _ in each.modules()), default=module)

    # steps ----------------------------------------------------------------------------------------

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """Look at the models whose parameters an optimizer has just changed."""
        changed = {
            id(parameter): parameter
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        }
        if not changed:
            return
        self._steps += 1
        for key, parameter in changed.items():
            if key not in self._stepped or self._stepped[key]() is not parameter:
                self._stepped[key] = weakref.ref(parameter)
        for key, model in list(self._open.items()):
            module = model.ref()
            if module is None:  # a loss, made for one call
                del self._open[key]
            elif model.is_part_of(changed):
                self._step_of(model, module, changed)
                del self._open[key]

    def _step_of(self, model: Model, module: nn.Module, changed: Mapping[int, Any]) -> None:
        model.commit()
        number = self._switches[-1].number if self._switches else -1
        if model.entered != number:
            model.entered, switch = number, self._switch(module)
            self._entries.add(None if switch is None else switch.place)
        model.steps += 1
        if model.trained:
            model.ever_trained = True
            model.trained_steps += 1
            for ref in model.trained.values():
                layer = ref()
                if layer is not None and self.kinds[type(layer)] == NORMALISATION:
                    self._moves(layer, model)
        elif model.idle and not module.training:
            self._sleeps(model, module, changed)
        model.trained, model.idle = {}, {}

    def _sleeps(self, model: Model, module: nn.Module, changed: Mapping[int, Any]) -> None:
        """BN305: all layers of a model were off, and its parameters were changed."""
        number = self._switches[-1].number if self._switches else -1
        same = frozenset(model.idle), number
        if model.decided is None or model.decided[0] != same:
            model.decided = same, self._are_asleep(model, module, changed)
        model.idle_steps += model.decided[1]

    def _are_asleep(self, model: Model, module: nn.Module, changed: Mapping[int, Any]) -> bool:
        """Whether layers that should train are off, and nobody froze them."""
        parents = {id(part): each for each in module.modules() for part in each.children()}
        layers = [layer for ref in model.idle.values() if (layer := ref()) is not None]
        off = [each for each in layers if _trains(each, module, parents, changed)]
        switch, owner = self._switch(module), self._owner(module)
        left = switch if switch is not None and switch.by_eval else None
        if not off or owner.training or not (left or model.trained_steps):
            return False  # frozen from the start, or in a model that trains
        model.name = class_name(owner)
        kinds = [self.kinds[type(layer)] or "" for layer in off]
        model.asleep = kinds, left.place if left else None, model.idle_place
        return True

    # statistics -----------------------------------------------------------------------------------

    def _moves(self, layer: Any, model: Model) -> None:
        """Look at a normalisation layer that ran in training mode in a step."""
        norm = self._norms.get(id(layer))
        if norm is None or norm.ref() is not layer:
            norm = self._norms[id(layer)] = Statistics(weakref.ref(layer), model)
            own = list(layer.parameters())
            if own and not any(parameter.requires_grad for parameter in own):
                norm.versions = tuple(map(version_of, own))
        norm.steps += 1
        if norm.steps > ENOUGH:
            return
        if not norm.moved:
            seen = fingerprint(layer)
            norm.moved = seen is None or (norm.seen is not None and seen != norm.seen)
            norm.seen = seen
        self._report_statistics(norm, ended=False)

    def _report_statistics(self, norm: Statistics, *, ended: bool) -> None:
        """Say what is wrong with a layer's statistics, as soon as it shows: nets die early."""
        layer, model = norm.ref(), norm.model
        module = model.ref()
        if layer is None or module is None:
            return
        momentum, stays = layer.momentum, norm.seen is not None and not norm.moved
        new = stays and norm.seen is not None and norm.seen.is_initial and updates_as_torch(layer)
        faults = {
            "BN103": momentum == 0 or new or (stays and norm.steps >= ENOUGH),
            "BN104": isinstance(momentum, float) and momentum >= 0.5,
            "BN105": self._is_invalid(layer, norm, ended),
            "BN107": (ended or norm.steps > 1) and self._is_frozen(layer, module, norm),
        }
        found = [code for code, is_there in faults.items() if is_there]
        if "BN103" in found:
            found = ["BN103"]
        for code in found:
            path = path_of(layer, module) or type(layer).__name__
            message = words.of_statistics(code, path, model.name, momentum, norm.steps)
            self._see(code, model.name, model.place, message)

    def _is_invalid(self, layer: nn.Module, norm: Statistics, ended: bool) -> bool:
        """Whether statistics are no numbers though the weights are."""
        last = fingerprint(layer) if ended else norm.seen
        return last is not None and not last.is_valid and has_finite_weights(layer)

    def _is_frozen(self, layer: nn.Module, module: nn.Module, norm: Statistics) -> bool:
        """Whether the parameters of a layer, and all before it, are as they were."""
        own = list(layer.parameters())
        if norm.versions is None or any_of(own, self._stepped):
            return False
        if tuple(map(version_of, own)) != norm.versions:
            return False  # a teacher that follows the net
        for each in module.modules():
            if each is layer:
                return True
            if any(parameter.requires_grad for parameter in each.parameters(recurse=False)):
                return False
        return False

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
        if not any_of(module.parameters(), self._stepped):
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
    changed: Mapping[int, Any],
) -> bool:
    """Whether the parameters of a layer were changed; of one without any, those around it."""
    nearest = layer
    while next(nearest.parameters(), None) is None and nearest is not module:
        nearest = parents.get(id(nearest), module)
    return any_of(nearest.parameters(), changed)


def _same_function(one: Place | None, other: Place) -> bool:
    return one is not None and (one.file, one.function) == (other.file, other.function)
