"""PyTorch: any `torch.nn.Module`, every layer in it that keeps a running mean and variance."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.lazy import LazyModuleMixin

from pytest_bncheck.adapters import _torch_loss as losses
from pytest_bncheck.adapters._torch_data import (
    batch_length,
    describe,
    float_outputs,
    mean_output,
    split,
    to_tensors,
)
from pytest_bncheck.adapters._torch_state import Snapshot, random_fingerprint
from pytest_bncheck.adapters.base import Adapter, TooFewValues
from pytest_bncheck.adapters.random_state import RandomState, seed_everything
from pytest_bncheck.maths.running import bessel
from pytest_bncheck.types import Calls, Dialect, InputError, Layer, Prediction, Recipe, Statistics

LIBRARIES = ("torch", "torchvision", "timm")
"""Packages whose layers are library layers on the training path."""

DIALECT = Dialect(
    set_momentum=lambda kind, rate: f"nn.{kind}(..., momentum={rate:g})",
    recalibrate="torch.optim.swa_utils.update_bn(train_loader, model)",
    momentum_of=lambda rate: rate,
    training_mode="model.train()",
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
        self._to = None if device is None else _device(device)
        home = self._to or next((t.device for t in _tensors(model)), torch.device("cpu"))
        self.device = str(home)
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
        self._batches = [to_tensors(batch, home, dtype) for batch in batches]
        self._sizes = [batch_length(batch) for batch in self._batches]
        self.batch_size = self._sizes[0]
        self._kind: str | None = None
        self._loss = recipe.loss
        self._optimizer: Any = None
        self._log: list[tuple[Tensor, Tensor]] = []
        self._read_log: list[Statistics] = []
        self._losses: list[Any] = []
        self._last: str | None = None

    # before -----------------------------------------------------------------------------------

    def save(self) -> None:
        self._random = RandomState.capture()
        if any(isinstance(m, LazyModuleMixin) and _is_lazy(m) for m in self.model.modules()):
            with torch.no_grad():  # a lazy module gets its parameters in its first forward
                self._forward(0)
        self._snapshot = Snapshot(self.model, *vars(self.recipe).values(), self._batches)
        if self._to is not None:
            self.model.to(self._to)
        self._named = {n: m for n, m in self.model.named_modules() if _has_statistics(m)}
        self._rates: dict[str, float | None] = {}
        self._reset_counters()

    def restore(self, *, keep_weights: bool = False) -> None:
        kept: list[tuple[Tensor, Tensor]] = []
        if keep_weights:
            kept = [(t, t.detach().clone()) for t in _tensors(self.model)]
        self._snapshot.restore()
        for tensor, values in kept:
            tensor.data.copy_(values)
        self._random.restore()

    def seed(self, seed: int) -> None:
        seed_everything(seed)

    # training ---------------------------------------------------------------------------------

    def begin(self) -> None:
        modes = {module.training for module in self.model.modules()}
        self._mixed = len(modes) > 1
        if not self._mixed:
            self.model.train()
        self._modes = {module: module.training for module in self.model.modules()}
        for name, module in self._named.items():
            module.register_forward_pre_hook(self._counter(name))
        self._probe_rates()
        self._reset_counters()
        self._log, self._calls = [self._raw()], self._counted()

    def train_step(self, batch: int) -> None:
        first = not self._losses
        before = random_fingerprint() if first else None
        with torch.enable_grad():
            if self.recipe.train_step is not None:
                loss = self.recipe.train_step(self.model, self._batches[batch])
                if loss is None:
                    raise InputError("train_step returned None; it has to return the loss")
            else:
                loss = self._own_step(batch)
        self._losses.append(loss.detach() if isinstance(loss, Tensor) else float(loss))
        self._log.append(self._raw())
        if first:
            self.stochastic = before != random_fingerprint()
            self._order_by_call()
        self._calls = self._counted()

    def _own_step(self, batch: int) -> Any:
        if self._optimizer is None:
            self._optimizer = self._make_optimizer()
        self._optimizer.zero_grad()
        outputs = self._forward(batch)
        loss = self._loss_of(outputs, batch)
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
                f"optimizer: expected a torch.optim.Optimizer or a function of the parameters "
                f"that returns one, got {type(made).__name__}"
            )
        return made

    @property
    def losses(self) -> list[float]:
        return [_number(loss) for loss in self._losses]

    @property
    def history(self) -> list[Statistics]:
        for raw in self._log[len(self._read_log) :]:
            self._read_log.append(self._biased(raw))
        return self._read_log

    @property
    def calls(self) -> Calls:
        return self._calls

    # looking ----------------------------------------------------------------------------------

    def layers(self) -> list[Layer]:
        return [self._describe(name, module) for name, module in self._named.items()]

    def read(self) -> Statistics:
        return self._biased(self._raw())

    def write(self, statistics: Statistics, *, exact: bool = False) -> None:
        for k, (name, module) in enumerate(self._named.items()):
            factor = 1.0 if exact else bessel(self._values.get(name))
            _fill(module.running_mean, statistics.mean[k])
            _fill(module.running_var, statistics.var[k] * factor)

    # passes -----------------------------------------------------------------------------------

    def predict(self, batch: int) -> Prediction:
        self.model.eval()
        return self._pass(batch)

    def predict_with_batch_statistics(self, batch: int) -> tuple[Prediction, Statistics, Calls]:
        self.model.eval()
        active = self._active()
        with self._emptied(active):
            for module in active.values():
                module.training = True
            self._reset_counters()
            prediction = self._pass(batch)
            calls = self._counted()
            filled = self._raw()
        return prediction, self._batch_statistics(filled, active, calls), calls

    def batch_statistics(self, batch: int) -> Statistics:
        self._enter_training()
        active = self._active()
        with self._emptied(active):
            self._reset_counters()
            with torch.no_grad():
                self._forward(batch)
            calls, filled = self._counted(), self._raw()
        return self._batch_statistics(filled, active, calls)

    def predict_on_training_path(self, batch: int) -> Prediction:
        self._enter_training()
        active = self._active()
        live = {id(module) for module in active.values()}
        for module in self.model.modules():
            if _is_library_leaf(module):
                module.training = id(module) in live
        with self._emptied(active):
            return self._pass(batch)

    # inside -----------------------------------------------------------------------------------

    def _forward(self, batch: int) -> Any:
        try:
            return self._call(batch)
        except ValueError as error:
            if "more than 1 value per channel" in str(error) and self._last is not None:
                raise TooFewValues(self._last) from None
            raise

    def _call(self, batch: int) -> Any:
        if self.recipe.forward is not None:
            return self.recipe.forward(self.model, self._batches[batch])
        inputs, _ = split(self._batches[batch])
        if isinstance(inputs, dict):
            return self.model(**inputs)
        return self.model(*inputs) if isinstance(inputs, (tuple, list)) else self.model(inputs)

    def _targets(self, batch: int) -> Any:
        return split(self._batches[batch])[1]

    def _loss_of(self, outputs: Any, batch: int) -> Any:
        output = losses.main_output(outputs)
        if self._kind is None and isinstance(output, Tensor) and output.grad_fn is not None:
            self._kind = losses.last_operation(output)
        if self._loss is None:
            self._loss = losses.infer(outputs, self._targets(batch))
        return self._loss(outputs, self._targets(batch))

    def _pass(self, batch: int) -> Prediction:
        """One forward without gradients in the modes that the modules are in."""
        random_before = random_fingerprint()
        others = self._other_buffers()
        # Only the autograd graph tells logits from probabilities, so the first pass may need it.
        with torch.set_grad_enabled(self._loss is None and self.recipe.train_step is None):
            outputs = self._forward(batch)
            loss, constant = self._scores(outputs, batch)
        mutated = any(not _equal(now, then) for now, then in others)
        return Prediction(
            outputs=float_outputs(outputs, self._sizes[batch]),
            structure=describe(outputs),
            loss=loss,
            accuracy=losses.accuracy(outputs, self._targets(batch), self._kind),
            constant_loss=constant,
            random=random_before != random_fingerprint(),
            mutated=mutated,
        )

    def _scores(self, outputs: Any, batch: int) -> tuple[float | None, float | None]:
        """Loss of the outputs, and of the mean output for every sample; None if unknown."""
        if self._loss is None and self.recipe.train_step is not None:
            try:
                loss = self._loss_of(outputs, batch)
            except InputError:  # the user's own step knows the loss, nobody else does
                return None, None
        else:
            loss = self._loss_of(outputs, batch)
        mean = mean_output(outputs)
        constant = None if mean is None else _number(self._loss_of(mean, batch))
        return _number(loss), constant

    def _enter_training(self) -> None:
        if not self._mixed:
            self.model.train()
        for module, training in self._modes.items():
            module.training = training

    def _active(self) -> dict[str, nn.Module]:
        """The layers that used batch statistics in training, or would have."""
        trained = dict(zip(self._named, self._calls.training, strict=True))
        return {
            name: module
            for name, module in self._named.items()
            if (trained[name] if self._losses else self._modes[module])
        }

    @contextmanager
    def _emptied(self, active: dict[str, nn.Module]) -> Iterator[None]:
        """Zero running statistics, so that a pass leaves α times its batch statistics in them.

        A layer without momentum averages over its calls; one with momentum 0 gets a temporary one.
        """
        saved = [(b, b.detach().clone()) for m in self._named.values() for b in _buffers(m)]
        still = [m for n, m in active.items() if self._rates.get(n, 0.0) == 0.0]
        before = [m.momentum for m in still]
        for module in active.values():
            for buffer in _buffers(module):
                buffer.data.zero_()
        for module in still:
            module.momentum = 1.0
        try:
            yield
        finally:
            for module, momentum in zip(still, before, strict=True):
                module.momentum = momentum
            for buffer, values in saved:
                buffer.data.copy_(values)

    def _batch_statistics(
        self, filled: tuple[Tensor, Tensor], active: dict[str, nn.Module], calls: Calls
    ) -> Statistics:
        """b = r1 / (1 - (1-α)^c), from statistics that were zero before c calls."""
        found, current = self._biased(filled), self.read()
        mean, var = list(current.mean), list(current.var)
        for k, name in enumerate(self._named):
            if name in active and calls.training[k]:
                rate = self._rates[name]
                share = 1.0 if not rate else 1.0 - (1.0 - rate) ** calls.training[k]
                mean[k], var[k] = found.mean[k] / share, np.maximum(found.var[k] / share, 0.0)
        return Statistics(tuple(mean), tuple(var))

    def _raw(self) -> tuple[Tensor, Tensor]:
        """All running means and all variances as they are stored, in one tensor each."""
        modules = self._named.values()
        if not modules:
            return torch.empty(0), torch.empty(0)
        return (
            torch.cat([m.running_mean.detach().reshape(-1) for m in modules]),
            torch.cat([m.running_var.detach().reshape(-1) for m in modules]),
        )

    def _biased(self, raw: tuple[Tensor, Tensor]) -> Statistics:
        sizes = [m.running_mean.numel() for m in self._named.values()]
        ends = np.cumsum(sizes)[:-1]
        mean, var = (np.asarray(t.cpu().double().numpy()) for t in raw)
        factors = [bessel(self._values.get(name)) for name in self._named]
        variances = np.split(var, ends) if sizes else []
        return Statistics(
            tuple(np.split(mean, ends) if sizes else []),
            tuple(v / f for v, f in zip(variances, factors, strict=True)),
        )

    def _describe(self, name: str, module: Any) -> Layer:
        rate = self._rates.get(name, getattr(module, "momentum", None))
        affine = [getattr(module, key, None) for key in ("weight", "bias")]
        return Layer(
            name=name or type(module).__name__,
            type=type(module).__name__,
            momentum=getattr(module, "momentum", None),
            update_rate=rate,
            eps=float(getattr(module, "eps", 0.0)),
            frozen=self._is_frozen(name, module),
            stock=type(module).__module__.startswith("torch.nn."),
            trained=any(
                isinstance(t, Tensor) and bool((t.detach() != start).any())
                for t, start in zip(affine, (1.0, 0.0), strict=True)
            ),
            resolution=torch.finfo(module.running_var.dtype).eps,
            dtype=str(module.running_var.dtype).removeprefix("torch."),
        )

    def _is_frozen(self, name: str, module: nn.Module) -> bool:
        """In eval mode on purpose, or a layer of constants, which has no momentum to update with."""
        if self._modes.get(module) is False:
            return True
        return not hasattr(module, "momentum") and self._rates.get(name) == 0.0

    def _probe_rates(self) -> None:
        """The update rate of every layer; measured where the layer does not say.

        With zeroed statistics and one batch, two passes leave α·b and α·b·(2-α).
        """
        self._rates = {n: m.momentum for n, m in self._named.items() if hasattr(m, "momentum")}
        silent = {n: m for n, m in self._named.items() if not hasattr(m, "momentum")}
        if not silent:
            return
        state = RandomState.capture()
        saved = [(b, b.detach().clone()) for m in self.model.modules() for b in _buffers(m)]
        for module in silent.values():
            module.running_mean.data.zero_()
            module.running_var.data.zero_()
        reads = []
        with torch.no_grad():
            for _ in range(2):
                self._forward(0)
                reads.append({n: m.running_var.detach().clone() for n, m in silent.items()})
        for name in silent:
            one, two = reads[0][name].double(), reads[1][name].double()
            norm = float((one * one).sum())
            self._rates[name] = 0.0 if norm == 0 else 2.0 - float((one * two).sum()) / norm
        for buffer, values in saved:
            buffer.data.copy_(values)
        state.restore()

    def _counter(self, name: str) -> Any:
        def count(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._order.setdefault(name)
            if not module.training:
                self._inferred[name] += 1
                return
            self._trained[name] += 1
            self._last = name
            if args and isinstance(args[0], Tensor):
                self._values[name] = _values_per_channel(module, args[0])

        return count

    def _reset_counters(self) -> None:
        if not hasattr(self, "_values"):
            self._values: dict[str, int] = {}
            self._order: dict[str, None] = {}
        self._trained = dict.fromkeys(self._named, 0)
        self._inferred = dict.fromkeys(self._named, 0)

    def _counted(self) -> Calls:
        return Calls(
            tuple(self._trained.values()),
            tuple(self._inferred.values()),
            tuple(self._values.get(name) for name in self._named),
        )

    def _order_by_call(self) -> None:
        """Put the layers in the order of their first call; nothing was handed out by index yet."""
        order = [*self._order, *(n for n in self._named if n not in self._order)]
        sizes = {n: m.running_mean.numel() for n, m in self._named.items()}
        split_log = [
            tuple(dict(zip(self._named, t.split(list(sizes.values())), strict=True)) for t in pair)
            for pair in self._log
        ] if self._named else []
        self._log = [
            (torch.cat([m[n] for n in order]), torch.cat([v[n] for n in order]))
            for m, v in split_log
        ] or self._log
        for counter in ("_named", "_trained", "_inferred"):
            old = getattr(self, counter)
            setattr(self, counter, {n: old[n] for n in order})

    def _other_buffers(self) -> list[tuple[Tensor, Tensor]]:
        own = {id(b) for m in self._named.values() for b in _buffers(m)}
        return [(b, b.detach().clone()) for b in self.model.buffers() if id(b) not in own]


def _has_statistics(module: nn.Module) -> bool:
    return all(
        isinstance(getattr(module, key, None), Tensor) for key in ("running_mean", "running_var")
    )


def _buffers(module: nn.Module) -> list[Tensor]:
    """What a layer updates in training: its statistics and its counter of batches."""
    found = [getattr(module, k, None) for k in ("running_mean", "running_var", "num_batches_tracked")]
    return [buffer for buffer in found if isinstance(buffer, Tensor)]


def _values_per_channel(module: nn.Module, values: Tensor) -> int:
    channels = module.running_mean.numel() or 1
    n = values.numel() // channels
    per_sample = isinstance(module, _NormBase) and "InstanceNorm" in type(module).__name__
    return n // max(values.shape[0], 1) if per_sample else n


def _is_library_leaf(module: nn.Module) -> bool:
    return type(module).__module__.split(".")[0] in LIBRARIES and not any(module.children())


def _is_lazy(module: nn.Module) -> bool:
    return any(nn.parameter.is_lazy(t) for t in _tensors(module))


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _fill(buffer: Tensor, values: Any) -> None:
    buffer.data.copy_(torch.as_tensor(values).to(buffer.dtype).reshape(buffer.shape))


def _number(loss: Any) -> float:
    return float(loss.detach() if isinstance(loss, Tensor) else loss)


def _equal(left: Tensor, right: Tensor) -> bool:
    """Equality in which NaN equals itself."""
    same = (left == right) | ((left != left) & (right != right))
    return bool(same.all())


def _device(wish: str) -> torch.device:
    """The device of that name; under xdist, ``cuda`` and ``auto`` spread the workers over all.

    Raises
    ------
    InputError
        If there is no such device.
    """
    there = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
    there += ["mps"] if torch.backends.mps.is_available() else []
    spread = [name for name in there if name.startswith("cuda")]
    if wish == "auto":
        wish = "cuda" if spread else there[-1]
    if wish == "cuda" and spread:
        worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
        wish = spread[(int(worker) if worker.isdigit() else 0) % len(spread)]
    if wish not in there:
        raise InputError(f"device: {wish!r} is not there; this machine has {', '.join(there)}")
    return torch.device(wish)
