"""Keras' PyTorch backend."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import torch

from pytest_bncheck.adapters.devices import torch_devices
from pytest_bncheck.adapters.keras.backends import torch_internals as internals
from pytest_bncheck.adapters.keras.backends.base import (
    Backend,
    Loose,
    Losses,
    Tensor,
    Variable,
    wide_type,
)
from pytest_bncheck.adapters.keras.state import contents
from pytest_bncheck.adapters.torch.draws import Draws, function_name
from pytest_bncheck.adapters.torch.internals import buffers_by_name, force_eager, swap_memory
from pytest_bncheck.adapters.torch.placement import exchanged, keeps_objects
from pytest_bncheck.adapters.torch.state import WALKED, remember_object
from pytest_bncheck.adapters.torch.switches import global_flags
from pytest_bncheck.adapters.undo import Undo


class Torch(Backend):
    """See `Backend`. It has no compiled step: eager operations cost little here."""

    name = "torch"

    def __init__(self) -> None:
        self._generators: dict[int, Any] = {}

    def devices(self, wish: str = "") -> list[str]:
        return torch_devices(wish)

    def device_of(self, variables: Sequence[Variable]) -> str:
        return str(variables[0].value.device) if variables else internals.default_device()

    def move(self, variables: Sequence[Variable], device: str) -> Callable[[], None]:
        if keeps_objects(torch.device(device)):
            return _moved(variables, lambda data: data.to(device))
        pairs = exchanged([v.value for v in variables], torch.device(device))

        def back() -> None:
            for tensor, twin in pairs:
                swap_memory(tensor, twin)
                tensor.data.copy_(twin.data)

        return back

    def lay_out(self, kernels: Sequence[Variable]) -> Callable[[], None]:
        # Keras would copy each kernel in each pass, and its gradient would have another order.
        return _moved(kernels, _as_convolved)

    def keep(self, layers: Sequence[Any], variables: Sequence[Variable]) -> Callable[[], None]:
        tensors = [v.value for v in variables]
        before = [(t, t.grad, None if t.grad is None else t.grad.clone()) for t in tensors]
        # A module of torch in a layer gets its mode from each call.
        modes = [(module, module.training) for layer in layers for module in layer.modules()]

        def back() -> None:
            for tensor, gradient, values in before:
                tensor.grad = gradient
                if gradient is not None:
                    gradient.copy_(values)
            for module, training in modes:
                module.training = training

        return back

    walked = WALKED

    def remember(self, item: object) -> Undo | None:
        return remember_object(item)

    def flags(self) -> Callable[[], None]:
        return global_flags()

    def copy(self, variable: Variable) -> Tensor:
        return variable.value.detach().clone()

    def change(self, variables: Sequence[Variable]) -> Callable[[], bool]:
        before = contents(variables)
        return lambda: contents(variables) != before

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        # Twenty times quicker than by operations of Keras, and each step does it.
        wide = getattr(torch, wide_type(tensors))
        return torch.cat([tensor.detach().reshape(-1).to(wide) for tensor in tensors])

    def stacked(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(tensors))  # Keras would move each to its default device

    def loose(self, holder: Any, key: Any) -> Variable | None:
        value = holder[key]
        plain = isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter)
        return _PlainTensor(holder, key) if plain else None

    def buffers(self, layer: Any) -> Iterator[tuple[Any, str, str, Variable]]:
        for key in buffers_by_name(layer):
            yield layer, "", key, _PlainTensor(buffers_by_name(layer), key)
        for name, child in layer.named_children():
            if isinstance(child, (keras.Layer, torch.nn.ParameterDict)):
                continue
            for path, module in child.named_modules():
                wrapped = isinstance(layer, keras.layers.TorchModuleWrapper)
                inside = path if wrapped else ".".join(filter(None, (name, path)))
                for holder in (buffers_by_name(module), vars(module)):
                    for key in holder:
                        if self.loose(holder, key) is not None:
                            yield module, inside.replace(".", "/"), key, self.loose(holder, key)

    def untracked_seeds(self, value: object) -> list[Variable]:
        if not isinstance(value, torch.Generator):
            return []
        # Each holds its generator, so that no other object can get the same id.
        return [self._generators.setdefault(id(value), _Generator(value))]

    def gradients(
        self, losses: Losses, variables: Sequence[Variable]
    ) -> tuple[Any, list[Tensor | None]]:
        __tracebackhide__ = True
        with torch.enable_grad():
            first, total = losses()
        first = keras.tree.map_structure(lambda tensor: tensor.detach(), first)
        if not total.requires_grad:
            return first, [None] * len(variables)
        # Not backward(): the gradients that the user's parameters hold stay theirs.
        tensors = [v.value for v in variables]
        return first, list(torch.autograd.grad(total, tensors, allow_unused=True))

    def apply(
        self, optimizer: Any, gradients: Sequence[Tensor | None], variables: Sequence[Variable]
    ) -> None:
        with torch.no_grad():
            super().apply(optimizer, gradients, variables)

    def rehearsed(self, function: Callable[[Any], Any], inputs: Any) -> bool:
        try:
            with keras.StatelessScope(), keras.device("meta"), torch.no_grad():
                function(keras.tree.map_structure(_shape_alone, inputs))
        except Exception:  # the user's code may need values, or keep tensors
            return False
        return True

    def models_step(self, model: Any, optimizer: Any, data: Any) -> Any:
        __tracebackhide__ = True
        with torch.enable_grad():
            return model.train_step(data)

    @contextlib.contextmanager
    def held_constant(self, variables: Sequence[Variable]) -> Iterator[None]:
        tensors = [v.value for v in variables if v.value.requires_grad]
        try:
            for tensor in tensors:
                tensor.requires_grad_(False)
            yield
        finally:
            for tensor in tensors:
                tensor.requires_grad_(True)

    def without_gradients(self) -> contextlib.AbstractContextManager[Any]:
        return torch.no_grad()

    def nothing_traced(self) -> contextlib.AbstractContextManager[Any]:
        return force_eager()

    def users_step(self) -> contextlib.AbstractContextManager[Any]:
        return torch.enable_grad()

    def noting_draws(self, note: Callable[[str], None]) -> contextlib.AbstractContextManager[Any]:
        def called(func: Any, args: Any, kwargs: Any, drew: bool) -> None:
            if drew:
                note(f"{function_name(func)}(...)")

        return Draws(called)


def _moved(
    variables: Sequence[Variable], place: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[], None]:
    """Move the values of variables; returns the way back, which keeps their new values."""
    homes = [(v.value, v.value.data) for v in variables]
    for tensor, data in homes:
        tensor.data = place(data)

    def back() -> None:
        for tensor, data in homes:
            if tensor.data is not data:
                data.copy_(tensor.data)
                tensor.data = data

    return back


def _as_convolved(kernel: torch.Tensor) -> torch.Tensor:
    """A kernel (*space, in, out) whose values are stored in the order out, space, in."""
    *space, inwards, outwards = range(kernel.ndim)
    lying = kernel.permute(outwards, *space, inwards).contiguous()
    return lying.permute(*(dim + 1 for dim in space), kernel.ndim - 1, 0)


def _shape_alone(value: Any) -> Any:
    return value.to("meta") if isinstance(value, torch.Tensor) else value


class _PlainTensor(Loose):
    """A tensor of the user, which keeps its memory."""

    def __init__(self, holder: Any, key: Any) -> None:
        super().__init__(holder, key)
        self._data = self._first.data

    def _put(self, value: torch.Tensor) -> None:
        first: torch.Tensor = self._first
        if value.shape == self.shape:
            if first.shape != self.shape:  # it was given other memory
                first.data = self._data
            first.data.copy_(value)
            value = first
        super()._put(value)


class _Generator:
    """The state of a generator of the user, with the same members."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    @property
    def value(self) -> torch.Tensor:
        return self._generator.get_state()

    def assign(self, value: torch.Tensor) -> None:
        self._generator.set_state(value)
