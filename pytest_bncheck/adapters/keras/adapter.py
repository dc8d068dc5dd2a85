"""The Keras adapter: what every check asks of it, and what only some rules ask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pytest_bncheck.adapters.base import Mode, Pass, Rehearsing, Stateful
from pytest_bncheck.adapters.invented import Invented, Shapes
from pytest_bncheck.adapters.keras.batch import Batch, remixed
from pytest_bncheck.adapters.keras.core import KerasCore
from pytest_bncheck.adapters.keras.invented import invent
from pytest_bncheck.adapters.keras.modes import draws_for_keras
from pytest_bncheck.adapters.keras.parting import part
from pytest_bncheck.adapters.keras.replicas import Replicas, after_shares
from pytest_bncheck.adapters.keras.state import put_back, shift_seeds
from pytest_bncheck.adapters.random_state import RandomState, seed_everything
from pytest_bncheck.adapters.states import Adopted
from pytest_bncheck.adapters.undo import run_all
from pytest_bncheck.types import (
    Moved,
    Parting,
    Prediction,
    Rehearsal,
    RunningState,
    State,
    Statistics,
)

if TYPE_CHECKING:
    from pytest_bncheck.types import Array


class KerasAdapter(KerasCore, Stateful, Rehearsing):
    """A Keras model under test; see `Adapter`."""

    _rehearsed: tuple[int, Any] | None = None
    _from_first: Callable[[bool], None] | None = None

    @classmethod
    def invent(cls, model: Any, shapes: Shapes | None) -> Invented:
        return invent(model, shapes)

    def save(self) -> None:
        __tracebackhide__ = True
        self._replicas = Replicas(self._subject.model, self._subject.backend)
        self._from_first = self._replicas.first_alone()
        super().save()

    def restore(self, *, keep_weights: bool = False) -> None:
        back, self._from_first = self._from_first, None
        undo = [] if back is None else [partial(back, keep_weights)]
        run_all([partial(super().restore, keep_weights=keep_weights), *undo])

    def gather(self) -> list[Statistics]:
        replicas, layers, steps = self._replicas, self._layers, len(self._training.losses)
        if not steps:
            return replicas.statistics(layers.running)
        batch = self._batches[0]
        if replicas.count == 1 or (batch.size or 0) < 2 * replicas.count:
            return []
        modes = self._training.modes()
        with self._without_gradients():
            each = [
                self._batch_statistics(self._passes.run(share, Mode.BATCH_STATISTICS, modes))
                for share in batch.shares(replicas.count)
            ]
        return after_shares(layers.read(), each, layers.tracking, steps)

    def states(self) -> list[State]:
        return self._training.states()

    def train_from(
        self,
        index: int,
        states: Mapping[str, Array] | None = None,
        *,
        passes: int = 1,
        draw: int | None = None,
    ) -> Moved:
        __tracebackhide__ = True
        layers, batch, modes = self._layers, self._batches[index], self._training.modes()
        mode = Mode.TRAINING_PATH if draw is None else Mode.TRAINING
        random, prediction = RandomState.capture(), None
        try:
            with (
                self._without_gradients(),
                put_back(layers.seeds, self._subject.backend),
                self._passes.kept(),
            ):
                layers.states.write(states or {})
                seed_everything(draw or 0)
                shift_seeds(layers.seeds, draw or 0)
                for _ in range(passes):
                    outcome = self._passes.go_on(batch, mode, modes, observe=False)
                ends = layers.states.read()
                if draw is None:
                    prediction = self._prediction(batch, outcome)
        finally:
            random.restore()
        return Moved(prediction, ends, layers.states.calls(outcome.ran))

    def adopt(self, found: Sequence[RunningState]) -> None:
        self._adopted = Adopted(found, self.states() if found else ())

    def predict_remixed(self, batches: int) -> list[Prediction]:
        __tracebackhide__ = True
        # States that a pass found need the model's own code in training mode.
        run = self._trained if self._adopted.names else self._normalised
        with self._without_gradients():
            passes = map(run, remixed(self._batches[:batches]))
            return [each.prediction for each in passes if each.prediction is not None]

    def _trained(self, batch: Batch) -> Pass:
        modes = self._training.modes()
        outcome = self._passes.run(batch, Mode.TRAINING_PATH, modes, observe=False)
        return Pass(self._prediction(batch, outcome))

    def part(self, index: int) -> Parting | None:
        batch, modes = self._batches[index], self._training.modes()

        def run(mode: Mode) -> None:
            self._passes.run(batch, mode, modes, observe=False)

        with self._without_gradients(), self._passes.programs.away():
            return part(
                lambda: run(Mode.TRAINING_PATH),
                lambda: run(Mode.BATCH_STATISTICS),
                self._layers.named,
                self._subject.backend,
            )

    def rehearse(self, index: int) -> None:
        """Only of a step that is the user's code: that of ``fit`` is the pass, with a gradient.

        Where passes are programs, the one without random numbers serves.
        """
        __tracebackhide__ = True
        training, layers = self._training, self._layers
        if not training.is_users:
            return
        compiled = self._passes.programs.pays
        mode = Mode.TRAINING_PATH if compiled else Mode.TRAINING
        random = RandomState.capture()
        try:
            with (
                self._without_gradients(),
                put_back(layers.seeds, self._subject.backend),
                self._passes.kept(),
            ):
                outcome = self._passes.go_on(
                    self._batches[index], mode, training.modes(), observe=False, collect=compiled
                )
                after = layers.packed()
        finally:
            random.restore()
        drew = compiled and any(draws_for_keras(layer) for layer, _ in layers.named)
        training.rehearsed(None if drew else after, outcome.ran)
        self._rehearsed = None if drew else (index, outcome.outputs)

    def step(self, index: int) -> Any:
        __tracebackhide__ = True
        loss = super().step(index)
        rehearsed, self._rehearsed = self._rehearsed, None
        if rehearsed is not None and rehearsed[0] == index:
            targets = self._batches[index].targets
            self._criterion.decide_by(float(loss), rehearsed[1], targets)
        return loss

    @property
    def rehearsal(self) -> Rehearsal | None:
        return self._training.rehearsal
