"""PyTorch: a finished program, traced, scripted or exported.

Its modules can neither be watched nor trained. The checks that remain: it predicts the same a
second time and for half the batch, and leaves its buffers alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch

from pytest_bncheck.adapters.base import NO_CALLS, NO_STATISTICS, Adapter, Mode, Pass, Sampling
from pytest_bncheck.adapters.devices import rounding
from pytest_bncheck.adapters.random_state import fingerprint
from pytest_bncheck.adapters.torch.batch import batch_length, targets_of, understand
from pytest_bncheck.adapters.torch.buffers import Buffers, places
from pytest_bncheck.adapters.torch.data import (
    describe,
    dtype_name,
    first_half,
    float_outputs,
    sizes_of,
    to_tensors,
    without_rows,
)
from pytest_bncheck.adapters.torch.dialect import DIALECT
from pytest_bncheck.adapters.torch.internals import is_exported, require_internals
from pytest_bncheck.adapters.torch.state import Snapshot
from pytest_bncheck.types import Calls, InputError, Layer, Prediction, Recipe, Statistics


class TorchProgramAdapter(Adapter, Sampling):
    """A `torch.jit.ScriptModule` or what `torch.export` makes; see `Adapter`."""

    framework = "torch"
    backend = "torch"
    dialect = DIALECT

    @classmethod
    def accepts(cls, model: Any) -> bool:
        """Whether this adapter can take the model."""
        if isinstance(model, (torch.jit.ScriptModule, torch.export.ExportedProgram)):
            return True
        return is_exported(model)

    def __init__(
        self, model: Any, batches: Sequence[Any], recipe: Recipe, device: str | None
    ) -> None:
        require_internals()
        kind = "torch.jit.ScriptModule"
        if not isinstance(model, torch.jit.ScriptModule):
            kind = "program of torch.export"
        self.program = f"a {kind}"
        if isinstance(model, torch.export.ExportedProgram):
            model = model.module()
        if device is not None:
            raise InputError(f"device: {self.program} stays where it is; leave device out")
        self._model, self._forward = model, recipe.forward
        tensors = [*model.parameters(), *model.buffers()]
        home = next((tensor.device for tensor in tensors), torch.device("cpu"))
        dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
        self.device = str(home)
        self.noise = rounding(dtype_name(dtype), self.device)
        self._batches = [to_tensors(batch, home, dtype) for batch in batches]
        self._sizes = [batch_length(batch) for batch in self._batches]
        self.batch_size = self._sizes[0]

    # before -----------------------------------------------------------------------------------

    def save(self) -> None:
        self._snapshot = Snapshot(self._model, self._forward, self._batches)
        self._modes = {module: module.training for module in self._model.modules()}

    def restore(self, *, keep_weights: bool = False) -> None:
        for module, training in self._modes.items():
            module.training = training
        self._snapshot.restore()

    # training ---------------------------------------------------------------------------------

    def begin(self) -> None:
        with contextlib.suppress(NotImplementedError):  # what was exported has one mode
            self._model.eval()

    def step(self, index: int) -> None:
        raise InputError(
            f"model: it is {self.program}, which cannot be watched while it trains; pass the "
            "Python model that it was made from, or steps=0 to judge it as it is"
        )

    @property
    def calls(self) -> Calls:
        return NO_CALLS

    # looking ----------------------------------------------------------------------------------

    def layers(self) -> list[Layer]:
        return []

    def read(self, *, exact: bool = False) -> Statistics:
        return NO_STATISTICS

    def write(self, statistics: Statistics, *, exact: bool = False) -> None:
        return

    # passes -----------------------------------------------------------------------------------

    def run(self, index: int, mode: Mode, *, observe: bool = True) -> Pass:
        __tracebackhide__ = True
        if mode in (Mode.TRAINING, Mode.TRAINING_PATH):
            return Pass(None)
        return Pass(self._pass(self._batches[index], self._sizes[index]))

    def predict_half(self, index: int) -> Prediction | None:
        size = self._sizes[index]
        half = first_half(self._batches[index], size)
        if half is None or size is None:
            return None
        try:
            return self._pass(half, size // 2)
        except Exception:  # a program for one batch size only
            return None

    def _pass(self, batch: Any, size: int | None) -> Prediction:
        __tracebackhide__ = True
        buffers = Buffers(places(self._model))
        random = fingerprint()
        with torch.no_grad():
            outputs = self._call(batch)
        sizes = sizes_of(size, targets_of(self._model, batch))
        return Prediction(
            outputs=float_outputs(outputs, sizes),
            without_rows=without_rows(outputs, sizes),
            structure=describe(outputs),
            random=random != fingerprint(),
            mutated=tuple(buffers.moved()),
        )

    def _call(self, batch: Any) -> Any:
        __tracebackhide__ = True
        if self._forward is not None:
            return self._forward(self._model, batch)
        call = understand(self._model, batch)
        return self._model(*call.args, **call.kwargs)
