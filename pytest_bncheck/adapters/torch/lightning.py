"""PyTorch Lightning: the training step and the optimizers of a LightningModule, without a Trainer.

Lightning lets its Fabric take the Trainer's place in a module. The stand-in here answers the same
calls; nothing of Lightning is imported.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bncheck.adapters.torch.hints import hints
from pytest_bncheck.adapters.torch.internals import (
    attach_fabric,
    fabric_of,
    set_optimizers,
    uncompiled,
)
from pytest_bncheck.types import InputError

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def is_module(model: Any) -> bool:
    """Whether a model, compiled or not, is a LightningModule."""
    return _base(model) is not None


def attach(model: nn.Module) -> None:
    """Let a LightningModule log and use ``self.trainer`` without a Trainer."""
    if is_module(model):
        package = sys.modules[_base(model).__module__.split(".")[0]]
        version = getattr(package, "__version__", "of an unknown version")
        attach_fabric(uncompiled(model), _NoTrainer(), version)


def begin(model: nn.Module) -> None:
    """Call the hook that a Trainer calls after `train()`; it may put frozen parts in eval mode."""
    if is_module(model):
        uncompiled(model).on_train_epoch_start()


def has_forward(model: nn.Module) -> bool:
    """Whether a model defines what it predicts."""
    module, base = uncompiled(model), _base(model)
    undefined = [nn.Module.forward, *([] if base is None else [base.forward])]
    return getattr(type(module), "forward", None) not in undefined


class Step:
    """One step as Lightning's Trainer makes it, with automatic or manual optimisation.

    Parameters
    ----------
    model
        A LightningModule.
    optimizer
        Makes the optimizer of a module without `configure_optimizers`.
    given
        Whether the user gave an optimizer, which then replaces that of the module.
    """

    def __init__(
        self, model: nn.Module, optimizer: Callable[[], torch.optim.Optimizer], given: bool
    ) -> None:
        self._module: Any = uncompiled(model)
        self._base: Any = _base(model)
        self._optimizer, self._given = optimizer, given
        self._optimizers: list[Any] | None = None
        self._schedulers: list[_Scheduler] = []
        self._index = 0

    def __call__(self, batch: Any) -> Any:
        """Make one step and return the loss.

        Raises
        ------
        InputError
            If the module has no `training_step`, or it or `configure_optimizers` returns
            something that cannot be used.
        """
        __tracebackhide__ = True
        module, trainer = self._module, fabric_of(self._module)
        if self._optimizers is None:
            self._configure()
        trainer.backpropagated.clear()
        module.on_train_batch_start(batch, self._index)
        outputs = module.training_step(*self._arguments(batch))
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if module.automatic_optimization:
            self._update(loss)
        elif loss is None and trainer.backpropagated:
            loss = sum(trainer.backpropagated)
        module.on_train_batch_end(outputs, batch, self._index)
        self._index += 1
        return loss

    def _configure(self) -> None:
        module = self._module
        if type(module).training_step is self._base.training_step:
            raise hints.no_step(f"{type(module).__name__} defines no training_step")
        defined = type(module).configure_optimizers is not self._base.configure_optimizers
        wish = module.configure_optimizers() if defined and not self._given else self._optimizer()
        self._optimizers, self._schedulers = _configured(wish)
        set_optimizers(module, self._optimizers)
        trainer = fabric_of(module)
        trainer.optimizers = self._optimizers
        trainer.lr_scheduler_configs = self._schedulers
        if module.automatic_optimization and len(self._optimizers) != 1:
            raise InputError(
                f"{type(module).__name__}.configure_optimizers returned {len(self._optimizers)} "
                "optimizers; automatic optimisation takes one, "
                "self.automatic_optimization = False any number"
            )

    def _arguments(self, batch: Any) -> tuple[Any, ...]:
        wanted = len(inspect.signature(self._module.training_step).parameters)
        return (batch, self._index)[: max(wanted, 1)]

    def _update(self, loss: Any) -> None:
        __tracebackhide__ = True
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise InputError(
                f"{type(self._module).__name__}.training_step returned no loss that can be "
                'trained: expected a tensor with one number and a gradient, or a dict with "loss"'
            )
        assert self._optimizers is not None
        module, (optimizer,) = self._module, self._optimizers
        module.on_before_zero_grad(optimizer)
        optimizer.zero_grad()
        module.on_before_backward(loss)
        module.backward(loss)
        module.on_after_backward()
        module.on_before_optimizer_step(optimizer)
        optimizer.step()
        for each in self._schedulers:
            if each.interval == "step":
                each.scheduler.step()


@dataclass
class _Scheduler:
    """A learning rate schedule, under the names that Lightning gives it."""

    scheduler: Any
    interval: str


class _NoTrainer:
    """Stands in for a LightningModule's Fabric and its trainer."""

    logger = None
    loggers: tuple[Any, ...] = ()
    is_global_zero = True
    world_size, global_rank, local_rank = 1, 0, 0
    sanity_checking = False

    def __init__(self) -> None:
        self.optimizers: list[Any] = []
        self.lr_scheduler_configs: list[_Scheduler] = []
        self.backpropagated: list[Tensor] = []

    def log_dict(self, metrics: Mapping[str, Any]) -> None:
        """Drops what is logged."""

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self.backpropagated.append(loss.detach())
        loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]

    def clip_gradients(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        clip_val: float | None = None,
        max_norm: float | None = None,
    ) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if clip_val is not None:
            nn.utils.clip_grad_value_(parameters, clip_val)
        if max_norm is not None:
            nn.utils.clip_grad_norm_(parameters, max_norm)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise hints.no_step(f"the training step asks for self.trainer.{name}; there is no trainer")


def _configured(wish: Any) -> tuple[list[Any], list[_Scheduler]]:
    """Optimizers and schedules from the forms that `configure_optimizers` may return."""
    if isinstance(wish, torch.optim.Optimizer):
        return [wish], []
    if isinstance(wish, Mapping) and "optimizer" in wish:
        schedule = wish.get("lr_scheduler")
        return [wish["optimizer"]], [] if schedule is None else [_schedule(schedule)]
    if isinstance(wish, (tuple, list)):
        if len(wish) == 2 and all(isinstance(part, (tuple, list)) for part in wish):
            return list(wish[0]), [_schedule(schedule) for schedule in wish[1]]
        parts = [_configured(part) for part in wish]
        return [o for part in parts for o in part[0]], [s for part in parts for s in part[1]]
    raise InputError(
        f"configure_optimizers returned a {type(wish).__name__}; expected an optimizer, a list "
        'of them, optimizers and schedulers, or a dict with "optimizer"'
    )


def _schedule(wish: Any) -> _Scheduler:
    if isinstance(wish, Mapping):
        return _Scheduler(wish["scheduler"], wish.get("interval", "epoch"))
    return _Scheduler(wish, "epoch")


def _base(model: Any) -> Any:
    """The class LightningModule that a model derives from, or None."""
    for package in _PACKAGES:
        base = getattr(sys.modules.get(package), "LightningModule", None)
        if base is not None and isinstance(uncompiled(model), base):
            return base
    return None
