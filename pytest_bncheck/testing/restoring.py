"""Whether `restore` puts back what `save` saw: after success, and after an error of the user's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_bncheck.adapters.base import Adapter, Mode
from pytest_bncheck.testing.bench import Bench
from pytest_bncheck.testing.state import State, changed, modes, numbers
from pytest_bncheck.types import Recipe

CONTRACT = (
    "`restore` puts back everything that `save` saw, bit for bit, whatever happened in between"
)


def restored_after_success(bench: Bench) -> None:
    """After training and passes the model is as before."""
    __tracebackhide__ = True
    model = bench.model()
    fresh = bench.state(model)
    with bench.open(model):
        pass
    before = bench.state(model)
    if numbers(before).keys() == numbers(fresh).keys():  # it was built already
        _demand_restored(bench, fresh, model, "though nothing was done")
    with bench.open(model) as lab:
        bench.experiment(lab)
        during = bench.state(model)
    _demand_restored(bench, before, model, "after training and passes")
    bench.demand(
        changed(numbers(before), during) is not None,
        "step",
        "trained, and no array of the model's state changed",
        "a step moves weights. If it did, pass state=lambda model: ... with the weights, "
        "statistics and modes by name, so that `restore` can be checked",
    )
    with bench.open(model) as lab:
        run = bench.experiment(lab)
    bench.demand_same(run, "restore", "a second check of the same model", CONTRACT)


def restored_but_for_weights(bench: Bench) -> None:
    """With `keep_weights` weights and statistics stay as trained, and modes go back."""
    __tracebackhide__ = True
    model = bench.settled()
    before = bench.state(model)
    with bench.open(model, keep_weights=True) as lab:
        bench.train(lab)
        trained = numbers(bench.state(model))
        lab.run(0, Mode.EVAL)
    after = bench.state(model)
    for found, what in (
        (changed(trained, after), "lost what was trained"),
        (changed(modes(before), after), "left a mode"),
    ):
        bench.demand(
            found is None,
            "restore(keep_weights=True)",
            f"{what}: {found}",
            "parameters and running statistics stay as the experiment left them; modes go back",
        )


def restored_after_error_in_step(bench: Bench) -> str | None:
    """The user's code raises in the middle of a training step."""
    __tracebackhide__ = True

    def act(lab: Adapter, fuse: Fuse) -> None:
        bench.train(lab, fuse.harmless_steps)
        fuse.armed = True
        lab.train_step(0)

    return _interrupted(bench, "after an error in a training step", [act])


def restored_after_error_in_pass(bench: Bench) -> str | None:
    """The user's code raises in the middle of a pass."""
    __tracebackhide__ = True

    def acting(mode: Mode) -> Callable[[Adapter, Fuse], None]:
        def act(lab: Adapter, fuse: Fuse) -> None:
            bench.train(lab, fuse.harmless_steps)
            fuse.armed = True
            lab.run(0, mode)

        return act

    return _interrupted(
        bench, "after an error in a pass", [acting(Mode.EVAL), acting(Mode.BATCH_STATISTICS)]
    )


def _interrupted(
    bench: Bench, when: str, acts: list[Callable[[Adapter, Fuse], None]]
) -> str | None:
    __tracebackhide__ = True
    blown, model = False, bench.settled()
    before = bench.state(model)
    for act in acts:
        fuse = Fuse(bench.recipe)
        try:
            with bench.open(model, fuse.recipe) as lab:
                act(lab, fuse)
        except Exception:
            if not fuse.blown:
                raise
        blown |= fuse.blown
        _demand_restored(bench, before, model, when)
    return None if blown else "no code of the user's runs there"


def _demand_restored(bench: Bench, before: State, model: Any, when: str) -> None:
    __tracebackhide__ = True
    found = changed(before, bench.state(model))
    bench.demand(found is None, "restore", f"left the model changed {when}: {found}", CONTRACT)


class Interruption(Exception):
    """What the user's code raises in these checks."""


class Fuse:
    """A recipe whose functions raise, after they have done their work, once it is armed.

    Parameters
    ----------
    recipe
        The user's recipe. Without a function of the user's the loss raises, from the first step on.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.armed = self.blown = False
        own = {"loss": recipe.loss, "train_step": recipe.train_step, "forward": recipe.forward}
        given = {name: function for name, function in own.items() if function is not None}
        self.harmless_steps = 1 if given else 0
        fused = {name: self._fused(function) for name, function in given.items()}
        fused = fused or {"loss": self._fused(lambda outputs, targets: None)}
        self.recipe = Recipe(**{"optimizer": recipe.optimizer, **fused})

    def _fused(self, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def raises(first: Any, second: Any) -> Any:
            found = function(first, second)
            if self.armed:
                self.blown = True
                raise Interruption
            return found

        return raises
