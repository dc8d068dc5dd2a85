"""The bench that an adapter is tested on: fresh models, experiments, and how a breach is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from pytest_bncheck.adapters.base import Adapter, Mode, Pass
from pytest_bncheck.adapters.random_state import seeded
from pytest_bncheck.maths.predictions import gap
from pytest_bncheck.testing.state import State
from pytest_bncheck.types import Calls, Layer, Recipe, Statistics

if TYPE_CHECKING:
    from pytest_bncheck.types import Array

    Outputs: TypeAlias = Mapping[str, Array]

SEED = 0
BATCHES = 2
"""Mini-batches of each experiment."""


def index_of(step: int) -> int:
    """The mini-batch of a training step; not the first, which passes are on."""
    return (step + 1) % BATCHES


@dataclass(frozen=True)
class Run:
    """One experiment.

    Attributes
    ----------
    before, layers
        The layers before training and after it.
    stop
        Running statistics after training.
    found
        The pass with batch statistics.
    eval
        The outputs in eval mode.
    """

    before: list[Layer]
    layers: list[Layer]
    losses: list[float]
    history: list[Statistics]
    calls: Calls
    stop: Statistics
    found: Pass
    eval: Outputs
    noise: float
    stochastic: bool


@dataclass(frozen=True)
class Bench:
    """An adapter with what it needs; see `testing.check_adapter`."""

    make_model: Callable[[], Any]
    make_batch: Callable[[], Any]
    adapter: type[Adapter]
    steps: int
    recipe: Recipe
    state: Callable[[Any], State]

    def make(self, name: str, check: Callable[[Bench], str | None]) -> str | None:
        """Make a check; an error in it says which one."""
        __tracebackhide__ = True
        try:
            return check(self)
        except AssertionError:
            raise
        except Exception as error:
            error.add_note(f"pytest-bncheck: raised in the check of {name!r}.")
            raise

    def demand(self, holds: bool, member: str, breach: str, contract: str) -> None:
        """Raise an AssertionError if the contract does not hold.

        Parameters
        ----------
        member
            The member at fault.
        breach
            What happened.
        contract
            What should have.
        """
        __tracebackhide__ = True
        if not holds:
            name = f"{self.adapter.__name__}.{member}"
            raise AssertionError(f"{name}: {breach}.\nThe contract: {contract}.")

    def model(self) -> Any:
        """A fresh model, the same each time."""
        with seeded(SEED):
            return self.make_model()

    def settled(self) -> Any:
        """A fresh model that `save` built, if it was not; that may have drawn random numbers."""
        model = self.model()
        with self.open(model):
            pass
        return model

    @contextmanager
    def open(
        self, model: Any = None, recipe: Recipe | None = None, *, keep_weights: bool = False
    ) -> Iterator[Adapter]:
        """An adapter between `save` and `restore`, of a fresh model if none is given."""
        __tracebackhide__ = True
        model = self.model() if model is None else model
        with seeded(SEED):
            batches = [self.make_batch() for _ in range(BATCHES)]
            lab = self.adapter(model, batches, recipe or self.recipe, None)
            lab.expected_steps = self.steps
            lab.save()
            try:
                yield lab
            finally:
                lab.restore(keep_weights=keep_weights)

    def train(self, lab: Adapter, steps: int | None = None) -> None:
        """Enter training mode and make some steps."""
        lab.begin()
        for step in range(self.steps if steps is None else steps):
            lab.train_step(index_of(step))

    def experiment(self, lab: Adapter) -> Run:
        """Train and predict in both modes."""
        self.train(lab, 0)
        before = lab.layers()
        for step in range(self.steps):
            lab.train_step(index_of(step))
        return Run(
            before=before,
            layers=lab.layers(),
            losses=lab.losses,
            history=lab.history,
            calls=lab.calls,
            stop=lab.read(),
            found=lab.run(0, Mode.BATCH_STATISTICS),
            eval=lab.predict(0).outputs,
            noise=lab.noise,
            stochastic=lab.stochastic,
        )

    @cached_property
    def first(self) -> Run:
        """An experiment with a fresh model, to compare others with."""
        with self.open(self.settled()) as lab:
            return self.experiment(lab)

    def demand_same(self, run: Run, member: str, breach: str, contract: str) -> None:
        """Demand that an experiment gave the same numbers as the first, up to rounding."""
        __tracebackhide__ = True
        first, noise = self.first, self.first.noise
        differs = {
            "losses": not close(run.losses, first.losses, noise),
            "running statistics": not all(
                close(left, right, noise)
                for pair in zip(run.history, first.history, strict=True)
                for left, right in zip(*map(parts, pair), strict=True)
            ),
            "predictions with batch statistics": not same(
                outputs(run.found), outputs(first.found), noise
            ),
            "predictions in eval mode": not same(run.eval, first.eval, noise),
        }
        found = ", ".join(name for name, wrong in differs.items() if wrong)
        self.demand(not found, member, f"{breach} gave other {found}", contract)


def outputs(found: Pass) -> Outputs:
    """The outputs of a pass that predicted."""
    return {} if found.prediction is None else found.prediction.outputs


def parts(statistics: Statistics) -> tuple[Array, ...]:
    """All means, then all variances."""
    return (*statistics.mean, *statistics.var)


def close(one: Any, other: Any, noise: float) -> bool:
    """Whether numbers agree up to a relative difference; NaN equals NaN."""
    return bool(np.allclose(one, other, rtol=noise, atol=noise, equal_nan=True))


def same(one: Outputs, other: Outputs, noise: float) -> bool:
    """Whether two predictions agree up to a relative difference."""
    apart = gap(one, other)
    return apart is not None and apart <= noise
