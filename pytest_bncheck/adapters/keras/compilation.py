"""Programs that give the same as eager passes and steps, and are quicker: compile time is saved.

Nothing here changes a result; without this file everything would run eagerly.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from pytest_bncheck.adapters.base import Mode
from pytest_bncheck.adapters.keras import internals
from pytest_bncheck.adapters.keras.backends.base import Backend, Tensor, Variable
from pytest_bncheck.adapters.keras.batch import Batch
from pytest_bncheck.adapters.keras.data import form_of
from pytest_bncheck.adapters.keras.layers import Layers, statistics_of
from pytest_bncheck.adapters.keras.modes import Ran
from pytest_bncheck.adapters.keras.records import Outcome, Record, Watch, all_counted
from pytest_bncheck.adapters.keras.state import Attributes, fingerprint, value_of
from pytest_bncheck.adapters.keras.step import FitStep
from pytest_bncheck.adapters.keras.subject import Subject
from pytest_bncheck.adapters.random_state import RandomState
from pytest_bncheck.maths.running import from_zero
from pytest_bncheck.types import Statistics

Function: TypeAlias = Callable[[Any], Any]


def compiled(
    function: Function,
    variables: Sequence[Variable],
    inputs: Any,
    layers: Layers,
    backend: Backend,
    *,
    few_runs: bool = False,
) -> Function | None:
    """`function` of the inputs as a program, or None where that would not give the same.

    Python code runs once, while `function` is traced with `inputs`. So a function is not compiled
    if it draws random numbers of Python or numpy, changes an attribute of a layer, or cannot be
    traced. What the trace left on layers is removed.

    Parameters
    ----------
    few_runs
        Whether the program runs too rarely to be worth every optimisation.
    """
    kept = [Attributes(layer) for layer, _ in layers.named]
    random, before = RandomState.capture(), fingerprint(())
    try:
        run = backend.compiled(function, variables, inputs, few_runs=few_runs)
        changed = set[str]().union(*(attributes.changed() for attributes in kept)) - internals.NOTES
        return run if not changed and before == fingerprint(()) else None
    except Exception:  # what is wrong, if anything is, shows when it is run
        return None
    finally:
        for attributes in kept:
            attributes.restore()
        random.restore()


# passes -------------------------------------------------------------------------------------------


@dataclass
class PassProgram:
    """A compiled forward pass.

    Attributes
    ----------
    run
        From inputs to outputs and, for each layer, its batch statistics and masked value counts.
    traced, ran
        The calls of each layer in the trace, and all that ran in it.
    """

    run: Function
    traced: list[Record]
    ran: Ran

    def __call__(self, inputs: Any, records: Sequence[Record]) -> Any:
        """Run the pass, note its calls in the records, and return its outputs."""
        outputs, seen = self.run(inputs)
        for record, traced, (batches, masked) in zip(records, self.traced, seen, strict=True):
            traced.note_masked(masked)
            if record is not traced:
                record.add(traced)
            record.batches = batches
        return outputs


class CompiledPasses:
    """Forward passes as programs, one for each mode and form of inputs."""

    def __init__(self, subject: Subject, layers: Layers) -> None:
        self._subject, self._layers = subject, layers
        self._programs: dict[object, PassProgram | None] = {}
        self._away = False

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Passes run eagerly for a while, layer by layer."""
        self._away = True
        try:
            yield
        finally:
            self._away = False

    @property
    def pays(self) -> bool:
        """Whether even a single pass is quicker compiled."""
        subject = self._subject
        known = subject.model.built and subject.recipe.forward is None
        return bool(subject.backend.compiles_passes and known)

    def get(
        self, batch: Batch, mode: Mode, records: list[Record], ran: Ran, told: Hashable
    ) -> PassProgram | None:
        """The program for a pass, None where the pass has to run eagerly.

        Parameters
        ----------
        records
            Where the calls of the layers are counted during this pass.
        ran
            Where all that runs is noted.
        told
            The modes that layers are told, which a program keeps.
        """
        if self._away or not self.pays:
            return None
        key = form_of(batch.inputs), mode, told
        if key not in self._programs:
            self._programs[key] = self._compile(batch, mode, records, ran)
        return self._programs[key]

    def _compile(
        self, batch: Batch, mode: Mode, records: list[Record], ran: Ran
    ) -> PassProgram | None:
        training = mode in (Mode.TRAINING, Mode.TRAINING_PATH)

        def forward(inputs: Any) -> tuple[Any, list[Any]]:
            outputs = self._subject.forward(batch.with_inputs(inputs), training=training)
            return outputs, [(record.batches, record.masked) for record in records]

        run = compiled(
            forward,
            self._layers.kept_by_programs,
            batch.inputs,
            self._layers,
            self._subject.backend,
            few_runs=mode is not Mode.EVAL,  # eval mode runs many times, with other statistics
        )
        if run is None:
            for record in records:
                record.clear()
            ran.clear()
            return None
        return PassProgram(run, records, ran)


# training steps -----------------------------------------------------------------------------------


@dataclass
class StepProgram:
    """A compiled training step with one batch.

    Attributes
    ----------
    run
        From inputs to loss, packed running statistics, those between the calls of each layer with
        the value counts of its masked calls, and outputs where `pass_from_step` needs them.
    traced, ran
        The calls of each layer with running statistics in the trace, and all that ran in it.
    """

    run: Callable[[Any], tuple[Tensor, Tensor, list[Any], Any]]
    traced: list[Record]
    ran: Ran

    def __call__(self, inputs: Any, records: Sequence[Record]) -> tuple[Tensor, Tensor]:
        """Make the step, note its calls, and return loss and packed running statistics."""
        loss, packed, seen, _ = self.run(inputs)
        for record, traced, (between, masked) in zip(records, self.traced, seen, strict=True):
            traced.note_masked(masked)
            record.add(traced)
            record.samples, record.between = traced.samples, between
        return loss, packed


class CompiledSteps:
    """Training steps as programs, one for each batch.

    Parameters
    ----------
    step
        The eager step.
    watch
        Watches the modes of calls, also in a trace.
    expected
        Steps that will be made with each batch: a few do not pay for a compilation.
    """

    def __init__(
        self, subject: Subject, layers: Layers, step: FitStep, watch: Watch, expected: int
    ) -> None:
        self._subject, self._layers = subject, layers
        self._step, self._watch, self._expected = step, watch, expected
        self._programs: dict[int, StepProgram | None] = {}

    def get(self, batch: Batch) -> StepProgram | None:
        """The program for a step with this batch, None where the step has to run eagerly."""
        if id(batch) not in self._programs:
            self._programs[id(batch)] = self._compile(batch) if self._pays else None
        return self._programs[id(batch)]

    @property
    def _pays(self) -> bool:
        backend = self._subject.backend
        possible = self._subject.recipe.forward is None and backend.compilation is not None
        return possible and self._expected >= backend.steps_to_pay

    def _compile(self, batch: Batch) -> StepProgram | None:
        layers, backend = self._layers, self._subject.backend
        records = [Record() for _ in layers.tracking]

        def step(inputs: Any) -> tuple[Tensor, Tensor, list[Any], Any]:
            loss, outputs = self._step.run(batch.with_inputs(inputs), records)
            between = [(record.between, record.masked) for record in records]
            return loss, layers.packed(), between, outputs

        self._step.build()
        variables = [*layers.kept_by_programs, *self._step.optimizer.variables]
        with self._watch.during(all_counted(layers.tracking, records, backend)) as ran:
            run = compiled(step, variables, batch.inputs, layers, backend)
        return None if run is None else StepProgram(run, records, ran)

    def pass_from_step(self, batch: Batch) -> tuple[Outcome, Statistics] | None:
        """A pass with batch statistics, by the forward of one more step, which changes nothing.

        It needs no program besides that of the step.

        Returns
        -------
        pair
            The pass and the batch statistics; None where the step's forward is another pass.
        """
        program = self._programs.get(id(batch))
        if program is None or not self._step.keeps_outputs:
            return None
        pairs = list(zip(self._layers.tracking, program.traced, strict=True))
        used = [layer for layer, record in pairs if record.training]
        running = [variable for layer in used for variable in statistics_of(layer)]
        if (
            any(record.training and record.inference for record in program.traced)
            or any(layer.momentum >= 1 for layer in used)
            or any(variable.dtype != "float32" for variable in running)
        ):
            return None
        # The values are not copied: a step replaces these arrays and does not change them.
        variables = [*self._layers.variables, *self._step.optimizer.variables]
        kept = [(variable, value_of(variable)) for variable in variables]
        zeros = self._subject.backend.from_host([np.zeros(v.shape, "float32") for v in running])
        try:
            # From 0, running statistics end at a known share of the batch's.
            for variable, zero in zip(running, zeros, strict=True):
                variable.assign(zero)
            _, packed, _, outputs = program.run(batch.inputs)
        finally:
            for variable, value in kept:
                variable.assign(value)
        statistics = self._from_zero(self._layers.unpacked(packed), program.traced)
        return Outcome(outputs, program.traced), statistics

    def _from_zero(self, after: Statistics, records: Sequence[Record]) -> Statistics:
        """Batch statistics from running ones that started at 0; else the running ones now."""
        now = self._layers.read()
        mean, var = list(now.mean), list(now.var)
        for k, (layer, record) in enumerate(zip(self._layers.tracking, records, strict=True)):
            if record.training:
                rate, count = 1.0 - float(layer.momentum), record.training
                mean[k] = from_zero(after.mean[k], rate, count)
                var[k] = from_zero(after.var[k], rate, count)
        return Statistics(tuple(mean), tuple(var))
