"""The bench that an adapter is tested on: fresh models, experiments, and how a breach is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from pytest_bncheck.adapters.base import Adapter, Mode
from pytest_bncheck.adapters.random_state import seeded
from pytest_bncheck.maths.predictions import gap
from pytest_bncheck.testing.state import State
from pytest_bncheck.types import Recipe, Statistics

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
    """The numbers of one experiment."""

    losses: list[float]
    history: list[Statistics]
    training: Outputs
    eval: Outputs
    noise: float


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
        """A fresh model that was built, if it was not, by `save`."""
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
        self.train(lab)
        return Run(
            losses=lab.losses,
            history=lab.history,
            training=self.outputs(lab),
            eval=lab.predict(0).outputs,
            noise=lab.noise,
        )

    def outputs(self, lab: Adapter) -> Outputs:
        """What the first batch gives with batch statistics."""
        prediction = lab.run(0, Mode.BATCH_STATISTICS).prediction
        assert prediction is not None  # the first check asks for it
        return prediction.outputs

    def demand_same(self, one: Run, other: Run, member: str, breach: str, contract: str) -> None:
        """Demand that two experiments gave the same numbers, up to rounding."""
        __tracebackhide__ = True
        other_than = {
            "losses": not close(one.losses, other.losses, one.noise),
            "running statistics": not all(
                close(left, right, one.noise)
                for pair in zip(one.history, other.history, strict=True)
                for left, right in zip(*map(parts, pair), strict=True)
            ),
            "predictions with batch statistics": not same(one.training, other.training, one.noise),
            "predictions in eval mode": not same(one.eval, other.eval, one.noise),
        }
        found = [name for name, differs in other_than.items() if differs]
        self.demand(not found, member, f"{breach} gave other {', '.join(found)}", contract)


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
