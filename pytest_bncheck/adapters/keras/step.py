"""One training step of a Keras model: the one of ``fit``, the user's, or the model's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import keras

from pytest_bncheck.adapters.hints import kind
from pytest_bncheck.adapters.keras import internals
from pytest_bncheck.adapters.keras.backends.base import Tensor
from pytest_bncheck.adapters.keras.batch import Batch
from pytest_bncheck.adapters.keras.hints import hints
from pytest_bncheck.adapters.keras.layers import Layers
from pytest_bncheck.adapters.keras.loss import Criterion, scalar
from pytest_bncheck.adapters.keras.records import Record
from pytest_bncheck.adapters.keras.subject import Subject
from pytest_bncheck.adapters.refusals import NOTHING_TO_TRAIN
from pytest_bncheck.types import InputError

Optimizer: TypeAlias = Any


class FitStep:
    """What ``fit`` does with a batch, without its metrics.

    Attributes
    ----------
    optimizer
        A fresh optimizer with the user's settings.
    keeps_outputs
        Whether `run` returns the outputs. They serve a model that only normalises: the step's
        forward is then a pass with batch statistics, and needs no program besides the step's.
    """

    def __init__(
        self, subject: Subject, layers: Layers, criterion: Criterion, optimizer: Optimizer
    ) -> None:
        self._subject, self._layers, self._criterion = subject, layers, criterion
        self.optimizer = optimizer
        self.keeps_outputs = layers.only_normalises and subject.backend.compiles_passes

    def run(self, batch: Batch, records: list[Record]) -> tuple[Tensor, Any]:
        """Make the step; `records` are those that its calls are counted in.

        Returns
        -------
        pair
            The loss, and the outputs or an empty tuple; see `keeps_outputs`.

        Raises
        ------
        InputError
            If the loss cannot be inferred, or does not depend on any weight.
        """
        __tracebackhide__ = True
        backend, weights = self._subject.backend, self._subject.model.trainable_weights

        if not weights:
            raise InputError(NOTHING_TO_TRAIN)

        def losses() -> tuple[Any, Tensor]:
            __tracebackhide__ = True
            outputs = self._subject.forward(batch, training=True)
            loss, total = self._criterion.losses(outputs, batch)
            seen = [(record.between, record.masked) for record in records]
            kept = outputs if self.keeps_outputs else ()
            return (loss, seen, kept), self.optimizer.scale_loss(total)

        self.build()
        (loss, seen, outputs), gradients = backend.gradients(losses, weights)
        for record, (between, masked) in zip(records, seen, strict=True):
            record.between, record.masked = between, masked
        if all(gradient is None for gradient in gradients):
            raise hints.no_loss(
                "the loss does not depend on any trainable weight of the model, so it cannot "
                "be trained on; loss= must return a value computed from the outputs with "
                f"keras.ops or {backend.name}, not with numpy"
            )
        backend.apply(self.optimizer, gradients, weights)
        return loss, outputs

    def build(self) -> None:
        """Make the optimizer's variables, once."""
        _build(self.optimizer, self._subject, self._layers)


class UsersStep:
    """The user's ``train_step``."""

    def __init__(self, subject: Subject, train_step: Callable[[Any, Any], Any]) -> None:
        self._subject, self._train_step = subject, train_step

    def show(self, batch: Batch, records: list[Record]) -> None:
        """Make a step of which nothing is kept."""
        self.run(batch, records)

    def run(self, batch: Batch, records: list[Record]) -> tuple[Tensor, Any]:
        """Make the step; returns its loss, and no outputs."""
        __tracebackhide__ = True
        subject = self._subject
        with subject.backend.users_step():
            returned = self._train_step(subject.model, batch.whole)
            return _loss_in(returned, "train_step"), ()


class ModelsStep:
    """The model's ``train_step``, whose logs are means since the last reset of its metrics."""

    def __init__(self, subject: Subject, layers: Layers, optimizer: Optimizer) -> None:
        self._subject, self._layers, self._optimizer = subject, layers, optimizer

    def show(self, batch: Batch, records: list[Record]) -> None:
        """Make a step of which nothing is kept, where operations are compiled only for shapes."""
        backend, model = self._subject.backend, self._subject.model

        def rehearse(data: Any) -> None:
            backend.models_step(model, self._optimizer, data)

        _build(self._optimizer, self._subject, self._layers)
        if not (backend.compiles_passes and backend.rehearsed(rehearse, batch.data)):
            self.run(batch, records)

    def run(self, batch: Batch, records: list[Record]) -> tuple[Tensor, Any]:
        """Make the step; returns its loss, and no outputs.

        Raises
        ------
        InputError
            If the model is not compiled.
        """
        __tracebackhide__ = True
        model = self._subject.model
        if not model.compiled:
            raise InputError(
                f"{type(model).__name__} has a train_step of its own, which needs the model "
                "to be compiled; call model.compile(...), or pass loss= to train without it"
            )
        _build(self._optimizer, self._subject, self._layers)
        model.reset_metrics()
        logs = self._subject.backend.models_step(model, self._optimizer, batch.data)
        return _loss_in(logs, f"train_step of {type(model).__name__}"), ()


def make(
    subject: Subject, layers: Layers, criterion: Criterion, optimizer: Optimizer
) -> FitStep | UsersStep | ModelsStep:
    """The step of a model: the user's before the model's, unless a `loss` is given."""
    if subject.recipe.train_step is not None:
        return UsersStep(subject, subject.recipe.train_step)
    if not subject.trains_as_fit:
        return ModelsStep(subject, layers, optimizer)
    return FitStep(subject, layers, criterion, optimizer)


def _build(optimizer: Optimizer, subject: Subject, layers: Layers) -> None:
    weights = subject.model.trainable_weights
    if weights and not optimizer.built:  # for all weights: a later step may reach others
        with subject.backend.building(optimizer):
            optimizer.build(weights)
        shapes = {tuple(v.shape) for v in layers.kernels}
        subject.backend.lay_out([v for v in optimizer.variables if tuple(v.shape) in shapes])


def _loss_in(returned: Any, where: str) -> Tensor:
    """The loss that a step returned, alone or among its logs."""
    loss = returned.get("loss") if isinstance(returned, dict) else returned
    is_small = isinstance(loss, int) and abs(loss) < 2**63
    if not (hasattr(loss, "dtype") or isinstance(loss, float) or is_small):
        raise hints.no_step(
            f"{where} returned {kind(returned)}; it has to return the loss, one number"
        )
    return keras.ops.stop_gradient(scalar(loss))  # read later, without the graph behind it


# optimizers ---------------------------------------------------------------------------------------


def check_optimizer(optimizer: Any, *, made: bool = False) -> Any:
    """An optimizer or a function that makes one.

    Raises
    ------
    InputError
        If it is anything else.
    """
    if optimizer is None and not made:
        return None
    if isinstance(optimizer, keras.optimizers.Optimizer):
        return optimizer
    if callable(optimizer) and not made:
        return optimizer
    raise InputError(
        "optimizer: expected a keras.optimizers.Optimizer or a function of the parameters that "
        f"returns one, got a {type(optimizer).__name__}"
    )


def make_optimizer(chosen: Any, model: Any) -> Any:
    """A fresh optimizer like the chosen, the compiled or the default one."""
    if chosen is not None and not isinstance(chosen, keras.optimizers.Optimizer):
        made = check_optimizer(chosen(model.trainable_variables), made=True)
        try:
            return _of_config(made)  # a function may return the same one each time
        except Exception:  # a class that only its maker can make
            return made
    chosen = chosen or getattr(model, "optimizer", None)
    if chosen is not None:
        return _clone(chosen)
    adam = keras.optimizers.Adam(1e-3)
    if model.dtype_policy.name == "mixed_float16":  # as compile() does
        return keras.optimizers.LossScaleOptimizer(adam)
    return adam


def _clone(optimizer: Any) -> Any:
    """A fresh optimizer with the same settings; a schedule is shared, since it has no state."""
    try:
        return _of_config(optimizer)
    except Exception as error:
        name = type(optimizer).__name__
        raise InputError(
            f"cannot make a fresh {name} from the config of the optimizer: {error!r}. Pass a "
            f"function that makes one: optimizer=lambda variables: {name}(...)."
        ) from error


def _of_config(optimizer: Any) -> Any:
    config = optimizer.get_config()
    rate = internals.learning_rate(optimizer)
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        config["learning_rate"] = rate
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        config["inner_optimizer"] = _of_config(optimizer.inner_optimizer)
        return type(optimizer)(**config)
    return type(optimizer).from_config(config)
