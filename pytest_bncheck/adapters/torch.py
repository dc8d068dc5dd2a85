"""PyTorch: any `torch.nn.Module`, every layer in it that keeps a running mean and variance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pytest_bncheck.adapters import _torch_loss as losses
from pytest_bncheck.adapters._torch_data import (
    batch_length,
    describe,
    find_device,
    first_half,
    float_outputs,
    mean_output,
    rounding,
    split,
    to_tensors,
)
from pytest_bncheck.adapters._torch_layers import Layers, Raw
from pytest_bncheck.adapters._torch_modes import Tracer, Watch, attributes, depends_on_mode
from pytest_bncheck.adapters._torch_state import Snapshot, random_fingerprint
from pytest_bncheck.adapters.base import Adapter, TooFewValues
from pytest_bncheck.adapters.random_state import RandomState
from pytest_bncheck.maths.predictions import gap
from pytest_bncheck.types import (
    Calls,
    Dialect,
    InputError,
    Layer,
    Prediction,
    Recipe,
    Statistics,
    Trace,
)

T = TypeVar("T")

LIBRARIES = ("torch", "torchvision", "timm")
"""Packages whose layers are library layers on the training path."""

DIALECT = Dialect(
    set_momentum=lambda kind, rate: f"nn.{kind}(..., momentum={rate:g})",
    recalibrate="torch.optim.swa_utils.update_bn(train_loader, model)",
    momentum_of=lambda rate: rate,
    training_mode="model.train()",
    mode="self.training",
    freeze="Keep the frozen part in eval mode: override train(mode) of the model and call eval() "
    "on that part after super().train(mode).",
    running_in_eval="Let it use running statistics in eval mode (track_running_stats=True, "
    "training=self.training)",
    unbiased=True,
)


class TorchAdapter(Adapter):
    """See `Adapter`. The running variance of torch's layers is unbiased; here it becomes biased."""

    framework = "torch"
    backend = "torch"
    dialect = DIALECT

    @classmethod
    def accepts(cls, model: Any) -> bool:
        """Whether this adapter can take the model."""
        return isinstance(model, nn.Module)

    def __init__(
        self, model: nn.Module, batches: Sequence[Any], recipe: Recipe, device: str | None
    ) -> None:
        self.model = model
        self.recipe = recipe
        self._to = None if device is None else find_device(device)
        home = self._to or next((t.device for t in _tensors(model)), torch.device("cpu"))
        self.device = str(home)
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
        self._layers = Layers(model)
        self._batches = [to_tensors(batch, home, dtype) for batch in batches]
        self._sizes = [batch_length(batch) for batch in self._batches]
        self.batch_size = self._sizes[0]
        self._kind: str | None = None
        self._loss = recipe.loss
        self._optimizer: Any = None
        self._log: list[Raw] = []
        self._read_log: list[Statistics] = []
        self._losses: list[Any] = []
        self._idle: dict[nn.Module, None] = {}
        self._attributes: dict[tuple[nn.Module, str], Any] | None = None
        self.noise = rounding(dtype, home)

    # before -----------------------------------------------------------------------------------

    def save(self) -> None:
        __tracebackhide__ = True
        if any(nn.parameter.is_lazy(tensor) for tensor in _tensors(self.model)):
            self._materialise()
        self._snapshot = Snapshot(self.model, *vars(self.recipe).values(), self._batches)
        if self._to is not None:
            self.model.to(self._to)
        self._layers = Layers(self.model)

    def _materialise(self) -> None:
        """Give lazy modules their parameters, which takes a forward; nothing else changes."""
        __tracebackhide__ = True
        modes = {module: module.training for module in self.model.modules()}
        for module in modes:
            module.training = False
        try:
            with torch.no_grad():
                self._forward(self._batches[0])
        finally:
            for module, training in modes.items():
                module.training = training

    def restore(self, *, keep_weights: bool = False) -> None:
        kept: list[tuple[Tensor, Tensor]] = []
        if keep_weights:
            kept = [(tensor, tensor.detach().clone()) for tensor in _tensors(self.model)]
        self._snapshot.restore()
        for tensor, values in kept:
            tensor.data.copy_(values)

    # training ---------------------------------------------------------------------------------

    def begin(self) -> None:
        __tracebackhide__ = True
        self._mixed = len({module.training for module in self.model.modules()}) > 1
        if not self._mixed:
            self.model.train()
        self._modes = {module: module.training for module in self.model.modules()}
        self._layers.watch()
        if len(self._layers.rates) < len(self._layers.modules):
            state = RandomState.capture()
            with torch.no_grad():
                self._in_training(
                    lambda: self._layers.measure_silent_rates(
                        lambda: self._forward(self._batches[0])
                    )
                )
            state.restore()
            self._enter_training()
        self._layers.reset_counters()
        self._log, self._calls = [self._layers.raw()], self._layers.counted()

    def train_step(self, batch: int) -> None:
        __tracebackhide__ = True
        first, ran = not self._losses, Watch()
        before = random_fingerprint() if first else None
        with torch.enable_grad(), ran.open():
            loss = self._users_step(batch) if self.recipe.train_step else self._own_step(batch)
        self._losses.append(loss.detach() if isinstance(loss, Tensor) else float(loss))
        self._log.append(self._layers.raw())
        self._idle.update({m: None for m in ran.inference if m not in ran.training})
        if first:
            self.stochastic = before != random_fingerprint()
            self._log = self._layers.order_by_call(self._log)
        self._calls = self._layers.counted()

    def _users_step(self, batch: int) -> Any:
        __tracebackhide__ = True
        assert self.recipe.train_step is not None
        loss = self.recipe.train_step(self.model, self._batches[batch])
        if loss is None:
            raise InputError("train_step returned None; it has to return the loss")
        return loss

    def _own_step(self, batch: int) -> Any:
        __tracebackhide__ = True
        if self._optimizer is None:
            self._optimizer = self._make_optimizer()
        self._optimizer.zero_grad()
        loss = self._loss_of(self._forward(self._batches[batch]), self._batches[batch])
        loss.backward()
        self._optimizer.step()
        return loss

    def _make_optimizer(self) -> Any:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if not parameters:
            raise InputError(
                "model: no parameter requires a gradient, so it cannot be trained; "
                "steps=0 judges it as it is"
            )
        wish = self.recipe.optimizer
        if wish is None:
            return torch.optim.Adam(parameters, lr=1e-3)
        made = wish if isinstance(wish, torch.optim.Optimizer) else wish(parameters)
        if not isinstance(made, torch.optim.Optimizer):
            raise InputError(
                "optimizer: expected a torch.optim.Optimizer or a function of the parameters "
                f"that returns one, got a {type(made).__name__}"
            )
        return made

    @property
    def losses(self) -> list[float]:
        return [_number(loss) for loss in self._losses]

    @property
    def history(self) -> list[Statistics]:
        for raw in self._log[len(self._read_log) :]:
            self._read_log.append(self._layers.biased(raw))
        return self._read_log

    @property
    def calls(self) -> Calls:
        return self._calls

    # looking ----------------------------------------------------------------------------------

    @property
    def idle(self) -> list[str]:
        paths = self._snapshot.paths
        return [
            paths[module]
            for module in self._idle
            if self._modes.get(module, False) and module in paths and depends_on_mode(module)
        ]

    @property
    def asleep(self) -> list[str]:
        found: dict[nn.Module, None] = {}
        for part in self.model.modules():
            members = [m for m in part.modules() if not self._modes.get(m, True)]
            if self._mixed and part in members and any(part.children()) and _trains(members):
                found.update({m: None for m in members if m in self._idle and depends_on_mode(m)})
        return [self._snapshot.paths[module] for module in found]

    def layers(self) -> list[Layer]:
        return self._layers.describe({id(m) for m, mode in self._modes.items() if not mode})

    def read(self) -> Statistics:
        return self._layers.biased(self._layers.raw())

    def write(self, statistics: Statistics, *, exact: bool = False) -> None:
        self._layers.write(statistics, exact)

    # passes -----------------------------------------------------------------------------------

    def predict(self, batch: int) -> Prediction:
        __tracebackhide__ = True
        self._enter_eval()
        watch, own = Watch(), self._layers.named_buffers()
        before = {name: buffer.detach().clone() for name, buffer in own.items()}
        with watch.open():
            prediction = self._pass(self._batches[batch], self._sizes[batch])
        moved = [name for name, buffer in own.items() if not _equal(buffer, before[name])]
        stuck = [
            self._snapshot.paths[module]
            for module in watch.training
            if module in self._snapshot.paths and depends_on_mode(module)
        ]
        return dataclasses.replace(
            prediction, mutated=(*prediction.mutated, *moved), in_training=tuple(stuck)
        )

    def predict_half(self, batch: int) -> Prediction | None:
        half = first_half(self._batches[batch], self._sizes[batch])
        if half is None:
            return None
        self.model.eval()
        try:
            return self._pass(half, self._sizes[batch] // 2)
        except Exception:  # a model for one batch size only has no half to compare
            return None

    def trace(self, batch: int) -> list[Trace]:
        self.model.eval()
        tracer = Tracer(self._snapshot.paths)
        with torch.no_grad(), tracer.watch():
            self._forward(self._batches[batch])
        return tracer.found

    def sticky(self, batch: int) -> list[str]:
        before, paths = self._attributes or {}, self._snapshot.paths
        self._enter_training()
        changed = {
            (module, key): vars(module).get(key)
            for (module, key), value in before.items()
            if vars(module).get(key) != value
        }
        if not changed:
            return []
        state, results = RandomState.capture(), []
        for values in (changed, {place: before[place] for place in changed}):
            for (module, key), value in values.items():
                vars(module)[key] = value
            state.restore()
            results.append(self._in_training(lambda: self._training_outputs(batch)))
        differs = gap(*results)
        if differs is not None and differs <= self.noise:
            return []
        return [f"{paths[module]}.{key}".removeprefix(".") for module, key in changed]

    def predict_with_batch_statistics(self, batch: int) -> tuple[Prediction, Statistics, Calls]:
        __tracebackhide__ = True
        self._enter_eval()
        active = self._active()
        with self._layers.emptied(active):
            for module in active.values():
                module.training = True
            self._layers.reset_counters()
            prediction = self._pass(self._batches[batch], self._sizes[batch])
            calls, filled = self._layers.counted(), self._layers.raw()
        return prediction, self._layers.batch_statistics(filled, active, calls), calls

    def batch_statistics(self, batch: int) -> Statistics:
        __tracebackhide__ = True
        active = self._active()

        def run() -> Statistics:
            with self._layers.emptied(active):
                self._layers.reset_counters()
                with torch.no_grad():
                    self._forward(self._batches[batch])
                calls, filled = self._layers.counted(), self._layers.raw()
            return self._layers.batch_statistics(filled, active, calls)

        return self._in_training(run)

    def predict_on_training_path(self, batch: int) -> Prediction | None:
        __tracebackhide__ = True
        self._enter_training()
        active = self._active()
        live = {id(module) for module in active.values()}
        for module in self.model.modules():
            if _is_library_leaf(module):
                module.training = id(module) in live
        try:
            with self._layers.emptied(active):
                return self._pass(self._batches[batch], self._sizes[batch])
        except Exception:
            if self.recipe.train_step is None:
                raise
            return None  # in training mode the model wants more than its inputs

    # inside -----------------------------------------------------------------------------------

    def _forward(self, batch: Any) -> Any:
        __tracebackhide__ = True
        try:
            return self._call(batch)
        except ValueError as error:
            if "more than 1 value per channel" in str(error) and self._layers.last is not None:
                raise TooFewValues(self._layers.last) from None
            raise

    def _call(self, batch: Any) -> Any:
        __tracebackhide__ = True
        if self.recipe.forward is not None:
            return self.recipe.forward(self.model, batch)
        inputs, _ = split(batch)
        if isinstance(inputs, dict):
            return self.model(**inputs)
        return self.model(*inputs) if isinstance(inputs, (tuple, list)) else self.model(inputs)

    def _loss_of(self, outputs: Any, batch: Any) -> Any:
        __tracebackhide__ = True
        targets = split(batch)[1]
        output = losses.main_output(outputs)
        if self._kind is None and isinstance(output, Tensor) and output.grad_fn is not None:
            self._kind = losses.last_operation(output)
        if self._loss is None:
            self._loss = losses.infer(outputs, targets)
        return self._loss(outputs, targets)

    def _training_outputs(self, batch: int) -> Any:
        with self._layers.emptied(self._active()), torch.no_grad():
            return float_outputs(self._forward(self._batches[batch]), self._sizes[batch])

    def _pass(self, batch: Any, size: int) -> Prediction:
        """One forward without gradients in the modes that the modules are in."""
        __tracebackhide__ = True
        random_before = random_fingerprint()
        others = self._other_buffers()
        # Only the autograd graph tells logits from probabilities, so the first pass may need it.
        with torch.set_grad_enabled(self._loss is None and self.recipe.train_step is None):
            outputs = self._forward(batch)
            loss, constant = self._scores(outputs, batch)
        return Prediction(
            outputs=float_outputs(outputs, size),
            structure=describe(outputs),
            loss=loss,
            accuracy=losses.accuracy(outputs, split(batch)[1], self._kind),
            constant_loss=constant,
            random=random_before != random_fingerprint(),
            mutated=tuple(name for name, now, then in others if not _equal(now, then)),
        )

    def _scores(self, outputs: Any, batch: Any) -> tuple[float | None, float | None]:
        """Loss of the outputs, and of the mean output for every sample; None if unknown."""
        __tracebackhide__ = True
        if self._loss is None and self.recipe.train_step is not None:
            try:
                loss = self._loss_of(outputs, batch)
            except InputError:  # the user's own step knows the loss, nobody else does
                return None, None
        else:
            loss = self._loss_of(outputs, batch)
        mean = mean_output(outputs)
        return _number(loss), None if mean is None else _number(self._loss_of(mean, batch))

    def _enter_eval(self) -> None:
        if self._attributes is None:  # the first pass in eval mode is the first to change them
            self._attributes = attributes(self._snapshot.paths)
        self.model.eval()

    def _enter_training(self) -> None:
        if not self._mixed:
            self.model.train()
        for module, training in self._modes.items():
            module.training = training

    def _in_training(self, run: Callable[[], T]) -> T:
        """`run` in training mode.

        A model that then wants more than its inputs (the targets, of which only the user's own
        step knows) is told to predict, while its layers are told to train.
        """
        __tracebackhide__ = True
        self._enter_training()
        try:
            return run()
        except TooFewValues:
            raise
        except Exception:
            if self.recipe.train_step is None:
                raise
        self.model.eval()
        own = {id(module) for module in self._layers.modules.values()}
        for module, training in self._modes.items():
            if _is_library_leaf(module) or id(module) in own:
                module.training = training
        return run()

    def _active(self) -> dict[str, Any]:
        """The layers that used batch statistics in training, or would have."""
        pairs = zip(self._layers.modules.items(), self._calls.training, strict=True)
        return {
            name: module
            for (name, module), calls in pairs
            if (calls if self._losses else self._modes[module])
            and not self._layers.is_constant(name)
        }

    def _other_buffers(self) -> list[tuple[str, Tensor, Tensor]]:
        own = {id(buffer) for buffer in self._layers.named_buffers().values()}
        others = [(n, b) for n, b in self.model.named_buffers() if id(b) not in own]
        return [(name, buffer, buffer.detach().clone()) for name, buffer in others]


def _trains(modules: Sequence[nn.Module]) -> bool:
    """Whether parameters of the modules themselves train, other than a normalisation's."""
    own = [m for m in modules if "Norm" not in type(m).__name__]
    return any(p.requires_grad for m in own for p in m.parameters(recurse=False))


def _is_library_leaf(module: nn.Module) -> bool:
    return type(module).__module__.split(".")[0] in LIBRARIES and not any(module.children())


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _number(loss: Any) -> float:
    return float(loss.detach() if isinstance(loss, Tensor) else loss)


def _equal(left: Tensor, right: Tensor) -> bool:
    """Equality in which NaN equals itself."""
    same = (left == right) | ((left != left) & (right != right))
    return bool(same.all())
