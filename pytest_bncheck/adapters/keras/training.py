"""The training steps of one check, and what was seen in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras

from pytest_bncheck.adapters.keras import step
from pytest_bncheck.adapters.keras.backends.base import Tensor
from pytest_bncheck.adapters.keras.batch import Batch, has_custom_step
from pytest_bncheck.adapters.keras.calls import Replacement
from pytest_bncheck.adapters.keras.compilation import CompiledSteps
from pytest_bncheck.adapters.keras.layers import Layers
from pytest_bncheck.adapters.keras.loss import Criterion
from pytest_bncheck.adapters.keras.modes import Ran
from pytest_bncheck.adapters.keras.records import Record, TrainingModes, Watch, all_counted
from pytest_bncheck.adapters.keras.rehearsal import Rehearsed, compared
from pytest_bncheck.adapters.keras.state import Snapshot, fingerprint
from pytest_bncheck.adapters.keras.subject import Subject
from pytest_bncheck.adapters.random_state import RandomState
from pytest_bncheck.types import Rehearsal, State, Statistics

if TYPE_CHECKING:
    from pytest_bncheck.types import Array


@dataclass(frozen=True)
class Seen:
    """In which modes training steps ran the layers.

    Attributes
    ----------
    records
        The calls of each layer with running statistics.
    watch
        The modes of the model and its other layers.
    follows
        Whether the layers got their mode from the model, which was told that it trains.
    ran
        What the last step ran.
    """

    records: list[Record]
    watch: Watch
    follows: bool
    ran: Ran

    @property
    def has_unset(self) -> bool:
        """Whether layers ran that nobody gave a mode."""
        unset = any(record.without_mode for record in self.records)
        return unset or bool(self.watch.layers.unset)


class Training:
    """The training of one check.

    Attributes
    ----------
    losses
        Loss of every step, on the device.
    records
        The calls of each layer with running statistics, over all steps.
    watch
        The modes in which the model and its other layers were called.
    ran
        What the steps ran, with the modes of the last one.
    stochastic
        Whether the first step drew random numbers.
    execution
        How the last step ran: ``eager``, or the backend's name for a compiled step.
    programs
        Compiled steps; None before `begin`, and where steps only run eagerly.
    """

    def __init__(self, subject: Subject, layers: Layers, criterion: Criterion) -> None:
        self._subject, self._layers, self._criterion = subject, layers, criterion
        self._step: step.FitStep | step.UsersStep | step.ModelsStep | None = None
        self._optimizer: Any = None
        self._calls: list[Replacement] = []
        self._log: list[Tensor] = []
        self._states: list[list[Array]] = []
        self._rehearsed: Rehearsed | None = None
        self._compared: tuple[Rehearsed, Tensor, Ran] | None = None
        self._history: list[Statistics] = []
        self.losses: list[Tensor] = []
        self.records = [Record() for _ in layers.tracking]
        self._shown: Seen | None = None
        self._assumed = False
        self.watch, self.ran = Watch(subject, layers), Ran()
        self.stochastic = False
        self.execution = "eager"
        self.programs: CompiledSteps | None = None

    def begin(self, expected: int) -> None:
        """Make the optimizer and the step.

        Parameters
        ----------
        expected
            Steps that will be made with each batch.
        """
        __tracebackhide__ = True
        subject, layers = self._subject, self._layers
        optimizer = step.make_optimizer(subject.recipe.optimizer, subject.model)
        if getattr(subject.model, "optimizer", None) is not None:
            # The user's step may ask the model for its optimizer, and must not change that one.
            subject.model.__dict__["optimizer"] = optimizer
        self._optimizer = optimizer
        self._step = step.make(subject, layers, self._criterion, optimizer)
        if isinstance(self._step, step.FitStep):
            self.programs = CompiledSteps(subject, layers, self._step, self.watch, expected)
        layers.states.begin()
        self._log = [layers.packed()]

    def observe(self, batch: Batch) -> None:
        """See the modes of a step, of which nothing is kept: no step will be made.

        The step of a model that is not compiled is unknown, and some steps raise. Layers that a
        forward in training mode gives no mode are then assumed to train.
        """
        __tracebackhide__ = True
        subject = self._subject
        known = subject.recipe.train_step is not None or bool(subject.model.compiled)
        random = RandomState.capture()
        before = Snapshot(subject.model, subject.backend, vars(subject.recipe).values())
        self._shown = self._modes_in(self._step_to_observe(), batch, before) if known else None
        if self._shown is None:
            self._shown = shown = self._modes_in(None, batch, before)
            self._assumed = shown is None or shown.has_unset
        random.restore()

    def _step_to_observe(self) -> step.UsersStep | step.ModelsStep | None:
        """The step; None for that of ``fit``, which is a forward in training mode."""
        subject, made = self._subject, self._step
        if isinstance(made, step.FitStep):
            # A loss that only scores does not make the model's own step another one.
            own = has_custom_step(subject.model) and subject.recipe.train_step is None
            return step.ModelsStep(subject, self._layers, made.optimizer) if own else None
        return made

    def _modes_in(
        self, own: step.UsersStep | step.ModelsStep | None, batch: Batch, before: Snapshot
    ) -> Seen | None:
        """What a step, or a forward in training mode, shows; None if it raises."""
        subject, records = self._subject, [Record() for _ in self._layers.tracking]
        watch, ran = Watch(subject, self._layers), Ran()
        seen = Seen(records, watch, follows=own is None, ran=ran)

        def forward(inputs: Any) -> None:
            subject.forward(batch.with_inputs(inputs), training=True)

        try:
            calls = all_counted(self._layers.tracking, records, subject.backend)
            with watch.during(calls) as ran_now:
                if own is not None:
                    own.show(batch, records)
                elif subject.recipe.forward is not None or not subject.backend.rehearsed(
                    forward, batch.inputs
                ):
                    forward(batch.inputs)
            ran.add(ran_now)
        except Exception:  # no step is made, so the user has to hear nothing of it
            return None
        finally:
            before.restore()
        return seen

    @property
    def seen(self) -> Seen:
        """The modes in the steps; before the first, in the one that `observe` watched."""
        if self._shown is not None and not self.losses:
            return self._shown
        return Seen(self.records, self.watch, self._subject.trains_as_fit, self.ran)

    @property
    def assumed(self) -> bool:
        """Whether nothing shows in which modes some layers train, so that they are told to."""
        return self._assumed and not self.losses

    def make_step(self, batch: Batch) -> None:
        """Make one step."""
        __tracebackhide__ = True
        program = None if self.programs is None else self.programs.get(batch)
        first, seeds = not self.losses, self._layers.seeds
        before = fingerprint(seeds) if first else ()
        if program is None:
            self.execution = "eager"
            loss, packed = self._eagerly(batch)
        else:
            self.execution = str(self._subject.backend.compilation)
            loss, packed = program(batch.inputs, self.records)
            self.ran.add(program.ran)
        self.losses.append(loss)
        self._log.append(packed)
        if first:
            self.stochastic = before != fingerprint(seeds)

    def _eagerly(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss and packed running statistics of one step."""
        __tracebackhide__ = True
        assert self._step is not None, "begin comes first"
        layers, backend = self._layers, self._subject.backend
        self._calls = self._calls or all_counted(layers.tracking, self.records, backend)
        for record in self.records:
            record.begin_step()
        with self.watch.during(self._calls) as ran:
            loss, _ = self._step.run(batch, self.records)
        self.ran.add(ran)
        if self._rehearsed is not None:
            self._compared = self._rehearsed, layers.packed(), ran
            self._rehearsed = None
        for record in self.records:
            between: Any = keras.tree.map_structure(backend.concrete, record.between)
            # Where the user's step compiled the call, there are no values.
            whole = all(value is not None for value in keras.tree.flatten(between))
            record.between = between if whole else []
        return loss, layers.packed()

    @property
    def ends(self) -> str | None:
        """What ``fit`` does to the weights at its end, and the last step did not; None if nothing.

        Some optimizers also do it in every so many steps.
        """
        if not self.losses or isinstance(self._step, step.UsersStep):
            return None
        optimizer = getattr(self._optimizer, "inner_optimizer", self._optimizer)
        every = optimizer.ema_overwrite_frequency
        due = optimizer.use_ema and (every is None or len(self.losses) % every)
        return "replaced the weights by their average (use_ema)" if due else None

    def finish(self) -> None:
        """Do it."""
        self._optimizer.finalize_variable_values(self._subject.model.trainable_variables)

    @property
    def history(self) -> list[Statistics]:
        """Running statistics before the first step and after each."""
        self._read_log()
        return list(self._history)

    def states(self) -> list[State]:
        """The states that the steps moved; all of them where none was made."""
        self._read_log()
        return self._layers.states.found(self._states, self.ran)

    def _read_log(self) -> None:
        unread = self._log[len(self._history) :]
        for packed in unread if self._log[0] is None else self._subject.backend.fetch(unread):
            self._history.append(self._layers.unpacked(packed))
            self._states.append(self._layers.states.unpacked(packed))

    @property
    def is_users(self) -> bool:
        """Whether the step is code of the user's, and not a pass in training mode by design."""
        return not isinstance(self._step, step.FitStep)

    def rehearsed(self, after: Tensor | None, ran: Ran) -> None:
        """Note a pass that was made just before a step; see `Rehearsed`."""
        self._rehearsed = Rehearsed(self._log[-1], after, ran)

    @property
    def rehearsal(self) -> Rehearsal | None:
        """The last such pass beside the step after it; None if there was none."""
        return None if self._compared is None else compared(self._layers, *self._compared)

    def only_infers(self, k: int, *, with_mode: bool | None = None) -> bool:
        """Whether the layer at this position ran in inference mode only.

        Parameters
        ----------
        with_mode
            Count only layers that were given a mode, or only those that were not.
        """
        record = self.seen.records[k]
        only = record.inference > 0 and not record.training and not self.assumed
        return only and with_mode in (None, not record.without_mode)

    def modes(self) -> TrainingModes:
        """The layers that a step runs in training mode; before any was seen, all of them."""
        layers, seen, assumed = self._layers, self.seen, self.assumed
        everything = not self.losses and self._shown is None
        modes = {} if everything else dict(seen.ran.modes)
        if assumed:
            for key in seen.watch.layers.unset:
                modes[key] = True
        normalising = []
        for layer, record in zip(layers.tracking, seen.records, strict=True):
            unset = assumed and record.without_mode
            if unset:
                modes[id(layer)] = True
            if layer.trainable and (everything or record.training or unset):
                normalising.append(layer)
        return TrainingModes(normalising, modes, follow=seen.follows and not assumed)
