"""One training step of a PyTorch model: from a loss and an optimizer, or the user's code."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from pytest_bncheck.adapters.hints import kind as in_words
from pytest_bncheck.adapters.refusals import NOTHING_TO_TRAIN
from pytest_bncheck.adapters.torch import lightning
from pytest_bncheck.adapters.torch.batch import per_sample, targets_of
from pytest_bncheck.adapters.torch.hints import hints
from pytest_bncheck.adapters.torch.internals import last_operation
from pytest_bncheck.adapters.torch.loss import (
    PRECISION,
    Criterion,
    columns_of,
    like,
    main_output,
)
from pytest_bncheck.adapters.torch.refusals import refuse_optimizer, refuse_training
from pytest_bncheck.types import InputError, Recipe

Step: TypeAlias = Callable[[Any], Any]
"""Trains on one batch and returns the loss."""


def is_custom(model: nn.Module, recipe: Recipe) -> bool:
    """Whether the step is the user's code: `train_step`, or Lightning's without a `loss`."""
    if recipe.train_step is not None:
        return True
    return recipe.loss is None and lightning.is_module(model)


def make(
    model: nn.Module, recipe: Recipe, forward: Callable[[Any], Any], criterion: Criterion
) -> Step:
    """The training step of a model.

    The user's `train_step` comes before Lightning's ``training_step``, which comes before the
    step that is made here. A `loss` overrides Lightning's step.
    """
    if not is_custom(model, recipe):
        return _LossStep(model, recipe.optimizer, forward, criterion)
    if recipe.train_step is not None:
        return _CustomStep(model, recipe.train_step, criterion, "train_step")
    wish = recipe.optimizer
    step = lightning.Step(model, lambda: optimizer_for(model, wish), wish is not None)
    return _CustomStep(model, lambda _, batch: step(batch), criterion, "training_step")


def optimizer_for(model: nn.Module, wish: Any) -> torch.optim.Optimizer:
    """The optimizer that the user gave, or Adam(1e-3).

    Raises
    ------
    InputError
        If nothing can be trained, or `wish` does not give an optimizer.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise InputError(NOTHING_TO_TRAIN)
    refuse_training(model)
    if wish is None:
        return torch.optim.Adam(parameters, lr=1e-3)
    made = wish if isinstance(wish, torch.optim.Optimizer) else wish(parameters)
    if not isinstance(made, torch.optim.Optimizer):
        raise InputError(
            "optimizer: expected a torch.optim.Optimizer or a function of the parameters "
            f"that returns one, got a {type(made).__name__}"
        )
    refuse_optimizer(made, model)
    return made


class _LossStep:
    """Forward, loss, backward and one update of an optimizer."""

    def __init__(
        self, model: nn.Module, wish: Any, forward: Callable[[Any], Any], criterion: Criterion
    ) -> None:
        self._model, self._wish = model, wish
        self._forward, self._criterion = forward, criterion
        self._optimizer: torch.optim.Optimizer | None = None

    def __call__(self, batch: Any) -> Any:
        __tracebackhide__ = True
        if per_sample(batch) and self._criterion.loss is None:
            raise hints.no_step(
                "batch: samples with a dict of targets each are for a model that makes its own "
                "loss from both",
                "sum(model(*batch).values())",
            )
        if self._optimizer is None:
            self._optimizer = optimizer_for(self._model, self._wish)
        if _wants_closure(self._optimizer):
            return self._optimizer.step(lambda: self._gradients(batch))
        loss = self._gradients(batch)
        self._optimizer.step()
        return loss

    def _gradients(self, batch: Any) -> Any:
        """The loss, after forward and backward."""
        __tracebackhide__ = True
        assert self._optimizer is not None
        loss = self._criterion(self._forward(batch), targets_of(self._model, batch))
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise hints.no_loss(
                "loss: expected one number that depends on the model's parameters, a tensor "
                f"with a gradient; got {_describe(loss)}"
            )
        # Only now: else the memory of gradients goes to the forward pass, and is fetched anew.
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss


def _wants_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's step computes the loss itself, several times: LBFGS."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


class _CustomStep:
    """The user's training step, of which only the returned loss is known.

    During the first one the inferred loss of every module's output is computed. If one of them
    equals the returned loss, predictions can be scored with that loss later.
    """

    def __init__(
        self,
        model: nn.Module,
        step: Callable[[Any, Any], Any],
        criterion: Criterion,
        name: str,
    ) -> None:
        self._model, self._step, self._criterion, self._name = model, step, criterion, name
        self._first = True

    def __call__(self, batch: Any) -> Any:
        __tracebackhide__ = True
        if not self._first:
            return self._checked(self._step(self._model, batch))
        self._first, inferred = False, _InferredLosses(targets_of(self._model, batch))
        with inferred.watch():
            loss = self._checked(self._step(self._model, batch))
        self._criterion.decide(*inferred.match(float(loss)))
        return loss

    def _checked(self, loss: Any) -> Any:
        if loss is None:
            raise hints.no_step(f"{self._name} returned None; it has to return the loss")
        if isinstance(loss, Tensor) and loss.numel() == 1:
            return loss.detach()
        try:
            if isinstance(loss, (str, bytes)):
                raise TypeError
            return float(loss)
        except (TypeError, ValueError, OverflowError):
            raise hints.no_step(
                f"{self._name} returned {_describe(loss)}; it has to return the loss, one number"
            ) from None


class _InferredLosses:
    """Collects the inferred loss of every module's output that fits the targets."""

    def __init__(self, targets: Any) -> None:
        self._targets = targets
        self._found: list[tuple[float, str, int | None]] = []

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Collect during a ``with`` block."""
        handle = register_module_forward_hook(self._see)
        try:
            yield
        finally:
            handle.remove()

    def match(self, value: float) -> tuple[str | None, int | None]:
        """Kind and columns of the last output whose inferred loss has this value, or None."""
        for candidate, kind, columns in reversed(self._found):
            if math.isclose(candidate, value, rel_tol=PRECISION):
                return kind, columns
        return None, None

    def _see(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        output = main_output(outputs)
        try:
            kind = last_operation(output) if isinstance(output, Tensor) else "logits"
            with torch.no_grad():
                loss = float(like(kind)(outputs, self._targets))
            self._found.append((loss, kind, columns_of(output)))
        except Exception:  # most modules' outputs do not fit the targets
            return


def _describe(value: Any) -> str:
    if not isinstance(value, Tensor):
        return in_words(value)
    if value.numel() != 1:
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a tensor without a gradient ({value.item():g})"
