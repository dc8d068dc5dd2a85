"""PyTorch: any `torch.nn.Module`, with all that rules can ask of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pytest_bncheck.adapters.base import (
    Mode,
    Rehearsing,
    Replicated,
    Sampling,
    Sloping,
    Stateful,
    Streaming,
    Watching,
)
from pytest_bncheck.adapters.invented import Invented, Shapes
from pytest_bncheck.adapters.states import Adopted
from pytest_bncheck.adapters.torch.batch import targets_of
from pytest_bncheck.adapters.torch.buffers import is_among
from pytest_bncheck.adapters.torch.core import TorchCore
from pytest_bncheck.adapters.torch.data import (
    by_sample,
    first_half,
    float_outputs,
    leaves,
    remixed,
    sizes_of,
)
from pytest_bncheck.adapters.torch.dialect import DIALECT, RECALIBRATE
from pytest_bncheck.adapters.torch.invented import invent
from pytest_bncheck.adapters.torch.modes import asleep
from pytest_bncheck.adapters.torch.parting import part
from pytest_bncheck.adapters.torch.slopes import slopes
from pytest_bncheck.adapters.torch.streams import streams_of
from pytest_bncheck.adapters.torch.tracing import Tracer
from pytest_bncheck.types import (
    Moved,
    Parting,
    Prediction,
    Rehearsal,
    RunningState,
    State,
    Statistics,
    Streams,
    Trace,
)

if TYPE_CHECKING:
    from pytest_bncheck.types import Array, Slope


class TorchAdapter(
    TorchCore, Watching, Sampling, Streaming, Replicated, Sloping, Stateful, Rehearsing
):
    """See `Adapter`: the required members are in `TorchCore`, the capabilities here."""

    @classmethod
    def invent(cls, model: Any, shapes: Shapes | None) -> Invented:
        return invent(model, shapes)

    @property
    def idle(self) -> list[str]:
        idle = self._record.idle()
        return [self._snapshot.paths[m] for m in idle if self._passes.modes.get(m, False)]

    @property
    def asleep(self) -> list[str]:
        modules = asleep(self.model, self._passes.modes) if self._passes.mixed else []
        return [self._snapshot.paths[m] for m in modules if self._record.rested(m)]

    @property
    def unsaved(self) -> list[str]:
        try:
            state = self.model.state_dict(keep_vars=True)
        except Exception:  # a `state_dict` that the user wrote
            return []
        saved = {id(leaf): leaf for _, leaf in leaves(state) if isinstance(leaf, Tensor)}
        return [
            name
            for name, module in self._layers.modules.items()
            if not all(is_among(t, saved) for t in (module.running_mean, module.running_var))
        ]

    def trace(self, index: int) -> list[Trace]:
        self._passes.enter_eval()
        with torch.no_grad(), self._left_alone():
            return Tracer(self._snapshot.paths).run(
                lambda: self._passes.forward(self._batches[index])
            )

    def draws(self, index: int) -> list[Trace]:
        found = Tracer(self._snapshot.paths).run(lambda: self.run(index, Mode.TRAINING))
        return [trace for trace in found if trace.kind == "random"]

    def part(self, index: int) -> Parting | None:
        return part(
            lambda: self.run(index, Mode.TRAINING_PATH),
            lambda: self.run(index, Mode.BATCH_STATISTICS),
            self._snapshot.paths,
        )

    def sticky(self, index: int) -> list[str]:
        attributes = self._passes.attributes
        if attributes is None:
            return []
        batch, sizes = self._batches[index], self._numbers(index)

        def outputs() -> dict[str, Array]:
            with self._layers.emptied(self._active()), torch.no_grad():
                return float_outputs(self._passes.forward(batch), sizes)

        self._passes.enter_training()
        return attributes.sticky(lambda: self._passes.in_training(outputs), self.noise)

    def predict_half(self, index: int) -> Prediction | None:
        half = first_half(self._batches[index], self._sizes[index])
        if half is None:
            return None
        self._passes.enter_eval()
        try:
            with self._left_alone():
                return self._passes.run(half, (self._sizes[index] or 0) // 2)
        except Exception:  # the model takes one batch size only
            return None

    def predict_remixed(self, batches: int) -> list[Prediction]:
        __tracebackhide__ = True
        sizes = [size for size in self._sizes[:batches] if size is not None]
        mixed = remixed(self._batches[:batches], sizes) if len(sizes) == batches else []
        with self._layers.calls.keeping_values():
            if self._adopted.names:  # which need the model's own code in training mode
                return [self._trained_prediction(batch, size) for batch, size in mixed]
            passes = [self._with_batch_statistics(batch, size) for batch, size in mixed]
        return [found.prediction for found in passes if found.prediction is not None]

    def _trained_prediction(self, batch: Any, size: int) -> Prediction:
        __tracebackhide__ = True
        self._enter_training_path(self._active())
        with self._states.kept():
            return self._scored_run(batch, size)

    @property
    def streams(self) -> Mapping[str, Streams]:
        return streams_of(self._layers, *self._log[-2:]) if self._losses else {}

    def gather(self) -> list[Statistics]:
        self._replicas.stop_broadcasts()
        each = self._replicas.gather(self._layers.raw())
        return [self._layers.biased(raw) for raw in each]

    def agree(self, value: bool) -> bool:
        return self._replicas.agree(value, torch.device(self.device))

    def slopes(self, index: int, direction: Mapping[str, Array]) -> list[Slope | None] | None:
        __tracebackhide__ = True
        self._passes.enter_eval()
        nn.Module.zero_grad(self.model)  # training is over, and a backward pass needs the memory
        with self._left_alone():
            return slopes(
                self._layers.modules,
                lambda: by_sample(self._passes.forward(self._batches[index]), self._numbers(index)),
                direction,
            )

    def _numbers(self, index: int) -> tuple[int, ...]:
        """Numbers of samples; see `sizes_of`."""
        return sizes_of(self._sizes[index], targets_of(self.model, self._batches[index]))

    def states(self) -> list[State]:
        return self._states.found()

    def adopt(self, found: Sequence[RunningState]) -> None:
        self._adopted = Adopted(found, self._states.found() if found else ())
        own = bool(found) or not self._layers.are_reset_by_update_bn
        self.dialect = dataclasses.replace(DIALECT, recalibrate=RECALIBRATE) if own else DIALECT

    def train_from(
        self,
        index: int,
        states: Mapping[str, Array] | None = None,
        *,
        passes: int = 1,
        draw: int | None = None,
    ) -> Moved:
        __tracebackhide__ = True
        try:
            with self._passes.as_trained():  # once: what one pass counts, the next goes on from
                return self._states.run(
                    lambda: self._train_again(index, draw), states, passes, draw or 0
                )
        finally:
            self._passes.leave_as_step()  # the next may be a training step

    def _train_again(self, index: int, draw: int | None) -> Prediction | None:
        """A pass in training mode that leaves its traces in the model."""
        __tracebackhide__ = True
        batch, size = self._batches[index], self._sizes[index]
        if draw is None:
            self._enter_training_path(self._active())
            return self._passes.run(batch, size, observe=False)
        with torch.no_grad():
            self._passes.in_training(lambda: self._passes.forward(batch))
        return None

    def rehearse(self, index: int) -> None:
        """Only of a step that is the user's code: another is the pass itself, with a gradient."""
        __tracebackhide__ = True
        if not self._custom_step:
            return
        batch = self._batches[index]

        def run() -> float | None:
            return self._passes.loss(self._passes.forward(batch), targets_of(self.model, batch))

        self._rehearsals.rehearse(lambda: self._passes.in_training(run))

    @property
    def rehearsal(self) -> Rehearsal | None:
        return self._rehearsals.last
