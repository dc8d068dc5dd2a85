"""Forward passes of a PyTorch model: their modes, their predictions and what they change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pytest_bncheck.adapters.attributes import PlainAttributes
from pytest_bncheck.adapters.base import TooFewValues
from pytest_bncheck.adapters.random_state import fingerprint
from pytest_bncheck.adapters.signatures import forwarded
from pytest_bncheck.adapters.torch import lightning
from pytest_bncheck.adapters.torch import loss as losses
from pytest_bncheck.adapters.torch.batch import Call, refuse_arguments, targets_of, understand
from pytest_bncheck.adapters.torch.data import (
    describe,
    float_outputs,
    mean_output,
    sizes_of,
    without_rows,
)
from pytest_bncheck.adapters.torch.hints import hints
from pytest_bncheck.adapters.torch.internals import has_too_few_values
from pytest_bncheck.adapters.torch.layers import Layers
from pytest_bncheck.adapters.torch.modes import Watch, is_library_leaf
from pytest_bncheck.adapters.torch.refusals import dtype_note
from pytest_bncheck.adapters.torch.replicas import shard_again, sharded_modules
from pytest_bncheck.errors import add_note
from pytest_bncheck.types import InputError, Prediction, Recipe

T = TypeVar("T")


class Passes:
    """The passes of one check.

    Parameters
    ----------
    model, recipe
        The user's.
    layers, criterion
        The model's layers with running statistics, and its loss.
    paths
        The path of each module in the model.
    custom_step
        Whether the training step is the user's code.
    needs_loss
        Whether the check itself trains the model, which takes targets and a loss.

    Attributes
    ----------
    mixed
        Whether the model was handed over with some modules in training mode and some not.
    modes
        Whether each module was in training mode when the training began.
    last_modes
        Whether each module is in training mode in a training step, as the last one had it.
    attributes
        Plain attributes of all modules before the first pass in eval mode.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        layers: Layers,
        criterion: losses.Criterion,
        paths: Mapping[nn.Module, str],
        custom_step: bool,
        needs_loss: bool,
    ) -> None:
        self._model, self._recipe, self._paths = model, recipe, paths
        self._layers, self._criterion = layers, criterion
        self._custom_step, self._needs_loss = custom_step, needs_loss
        self.mixed = False
        self.modes: dict[nn.Module, bool] = {}
        self.last_modes: dict[nn.Module, bool] = {}
        self.attributes: PlainAttributes | None = None
        self._left: list[tuple[nn.Module, bool]] = []
        self._trains = True
        self._sharded = sharded_modules(model)

    # modes ------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Enter training mode as the user does, and remember it."""
        self.mixed = len({module.training for module in self._model.modules()}) > 1
        if not self.mixed:
            self._model.train()
        if self._recipe.train_step is None:
            lightning.begin(self._model)
        self.modes = {module: module.training for module in self._model.modules()}
        self.last_modes = dict(self.modes)

    def follow(self, ran: Watch) -> None:
        """Take over the modes in which modules ran in a training step.

        A module that ran in both counts as in training mode: the other may have been a validation.
        """
        self.last_modes.update(dict.fromkeys(ran.inference, False))
        self.last_modes.update(dict.fromkeys(ran.training, True))
        self._left = [(module, module.training) for module in self._model.modules()]

    def leave_as_step(self) -> None:
        """Give every module the mode in which the last training step left it."""
        self._trains = True
        for module, training in self._left:
            module.training = training

    def enter_eval(self) -> None:
        """Enter eval mode as the user does."""
        if self.attributes is None:  # the first pass in eval mode is the first to change them
            self.attributes = PlainAttributes(self._paths.items(), without={"training"})
        self._model.eval()
        self._trains = False

    def resume(self) -> None:
        """Go on with the training: in its modes, and with its attributes."""
        if self.attributes is not None:
            self.attributes.put_back()
            self.attributes = None
        self.leave_as_step()

    def as_trained(self) -> AbstractContextManager[None]:
        """Temporarily restore attributes that eval passes changed."""
        return nullcontext() if self.attributes is None else self.attributes.as_before()

    def enter_training(self) -> None:
        """Give every module the mode that it has in a training step."""
        self._trains = True
        if not self.mixed:
            self._model.train()
        for module, training in self.last_modes.items():
            module.training = training

    def in_training(self, run: Callable[[], T]) -> T:
        """`run` in training mode.

        A model that needs more than its inputs in training mode (the targets, which only the
        user's step passes) runs in eval mode, with its layers in training mode.
        """
        __tracebackhide__ = True
        self.enter_training()
        try:
            return run()
        except TooFewValues:
            raise
        except Exception:
            if not self._custom_step:
                raise
        self._model.eval()
        own = {id(module) for module in self._layers.modules.values()}
        for module, training in self.last_modes.items():
            if is_library_leaf(module) or id(module) in own:
                module.training = training
        return run()

    # one pass ---------------------------------------------------------------------------------

    def forward(self, batch: Any) -> Any:
        """The model's outputs.

        Raises
        ------
        TooFewValues
            If a layer refuses to train on a single value per channel.
        """
        __tracebackhide__ = True
        try:
            outputs = self._call(batch)
        except ValueError as error:
            if has_too_few_values(error) and self._layers.calls.last is not None:
                raise TooFewValues(self._layers.calls.last) from None
            raise
        except RuntimeError as error:
            note = dtype_note(error, batch)
            if note is not None:
                add_note(error, note)
            raise
        if not torch.is_grad_enabled():
            shard_again(self._sharded)
        return outputs

    def call(self, batch: Any) -> Call:
        """The call of the model that a batch stands for.

        Raises
        ------
        InputError
            If it cannot be told.
        """
        call = understand(self._model, batch, targets=self._needs_loss)
        if not lightning.has_forward(self._model):
            raise hints.no_forward(
                f"{type(self._model).__name__} defines no forward, which is what it predicts"
            )
        return call

    def refuse_call(self, batch: Any) -> None:
        """Raise an InputError if a step of the user's is to train what cannot predict."""
        if self._recipe.forward is None:
            call = self.call(batch)
            if self._custom_step:
                refuse_arguments(self._model, call)

    def _call(self, batch: Any) -> Any:
        __tracebackhide__ = True
        if self._recipe.forward is not None:
            return forwarded(self._recipe.forward, self._model, batch, training=self._trains)
        call = self.call(batch)
        self._criterion.sees_targets = call.gives_targets
        try:
            return self._model(*call.args, **call.kwargs)
        except TypeError:
            refuse_arguments(self._model, call)
            raise

    def run(
        self, batch: Any, size: int | None, *, observe: bool = True, gradients: bool = False
    ) -> Prediction:
        """One forward in the modes that the modules are in, with or without gradients."""
        __tracebackhide__ = True
        random_before = fingerprint() if observe else {}
        targets = targets_of(self._model, batch)
        sizes = sizes_of(size, targets)
        # Only the autograd graph tells logits from probabilities, so the first pass may need it.
        with torch.set_grad_enabled(gradients or not self._criterion.decided):
            outputs = self.forward(batch)
            loss = self.loss(outputs, targets)
            known = observe and loss is not None
            constant = self._constant_loss(outputs, targets, sizes) if known else None
        shard_again(self._sharded)
        return Prediction(
            outputs=float_outputs(outputs, sizes),
            without_rows=without_rows(outputs, sizes),
            structure=describe(outputs),
            loss=loss,
            accuracy=self._criterion.accuracy(outputs, targets),
            constant_loss=constant,
            random=observe and random_before != fingerprint(),
        )

    def _constant_loss(self, outputs: Any, targets: Any, sizes: Sequence[int]) -> float | None:
        """Loss of the mean output for every sample; None if unknown."""
        __tracebackhide__ = True
        if self._criterion.own(outputs) is not None:  # which knows no other output
            return None
        try:
            constant = mean_output(outputs, sizes)
            return None if constant is None else self.loss(constant, targets)
        except Exception:  # the user's loss may accept only real outputs
            return None

    def loss(self, outputs: Any, targets: Any) -> float | None:
        """The loss of outputs; None where only the user's step knows it."""
        __tracebackhide__ = True
        criterion = self._criterion
        if criterion.decided and criterion.loss is None:
            return None
        known = criterion.decided
        try:
            loss = criterion(outputs, targets)
        except Exception as error:
            if self._recipe.loss is None and known:
                return None  # eval mode returns what the loss of training mode cannot take
            if isinstance(error, InputError) and not self._needs_loss:
                return None  # only the user's step knows the loss, or nobody asks for it
            raise
        return None if loss is None else number(loss)


def number(loss: Any) -> float:
    """A loss on the host."""
    return float(loss.detach() if isinstance(loss, Tensor) else loss)
