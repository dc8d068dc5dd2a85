"""For authors of adapters: whether an adapter keeps the contract of `adapters.base`.

`check_adapter` asks what every check relies on, of small models of the framework, and needs no
other tool. An adapter's test suite calls it once for each kind of model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_bncheck import adapters
from pytest_bncheck.adapters.base import CAPABILITIES, Adapter
from pytest_bncheck.rules import RULES
from pytest_bncheck.testing.bench import Bench
from pytest_bncheck.testing.checks import CHECKS
from pytest_bncheck.testing.state import reachable
from pytest_bncheck.types import Capability, Recipe

__all__ = ["Conformance", "check_adapter", "reachable"]


@dataclass(frozen=True)
class Conformance:
    """What `check_adapter` says of an adapter that keeps the contract; print it.

    Attributes
    ----------
    adapter
        Name of the class.
    passed
        The checks that it passed.
    skipped
        The checks that these models cannot make, each with the reason.
    offers
        The capabilities that the adapter has.
    silent
        The rules that stay silent, by code, each with the capabilities that it lacks.
    """

    adapter: str
    passed: tuple[str, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    offers: frozenset[Capability] = frozenset()
    silent: Mapping[str, tuple[Capability, ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.adapter} keeps the contract:"]
        lines += [f"  passed: {name}" for name in self.passed]
        lines += [f"  skipped: {name} ({reason})" for name, reason in self.skipped.items()]
        missing = [name for name in CAPABILITIES if name not in self.offers]
        if not missing:
            return "\n".join([*lines, "It offers all capabilities, so no rule stays silent."])
        lines += [f"It does not offer: {', '.join(missing)}."]
        if self.silent:
            lines += ["These rules stay silent:"]
        for code, lacks in self.silent.items():
            lines += [f"  {code} {RULES[code].name} needs {', '.join(lacks)}"]
        return "\n".join(lines)


def check_adapter(
    make_model: Callable[[], Any],
    make_batch: Callable[[], Any],
    *,
    adapter: type[Adapter] | None = None,
    steps: int = 3,
    loss: Callable[[Any, Any], Any] | None = None,
    optimizer: Any = None,
    train_step: Callable[[Any, Any], Any] | None = None,
    forward: Callable[[Any, Any], Any] | None = None,
    state: Callable[[Any], Mapping[str, Any]] = reachable,
) -> Conformance:
    """Check that an adapter keeps the contract of `adapters.base.Adapter`.

    Each check trains a fresh model for a few steps. Models of one, several and no layers with
    running statistics are welcome, with and without dropout.

    Parameters
    ----------
    make_model
        Makes a new model; called with the random generators seeded.
    make_batch
        Makes a batch of several samples: ``(inputs, targets)``, or what `train_step` and `forward`
        understand. Called twice in each experiment, with the random generators seeded.
    adapter
        The adapter's class, or None to look for it as `check` does.
    steps
        Training steps, >= 2.
    loss, optimizer, train_step, forward
        As for `check`, but for many models one after the other, so `optimizer` is a function. One
        of them raises an error in the second step, to see what `restore` makes of it; without any
        the adapter is given a loss that raises in the first.
    state
        ``state(model)``: everything that a restore has to put back, by name, as arrays and plain
        values: weights, statistics, modes. By default what attributes, lists and dicts lead to.

    Returns
    -------
    Conformance
        The checks made, and the rules that stay silent without the capabilities that the adapter
        does not offer.

    Raises
    ------
    AssertionError
        For the first breach: what it is, the member at fault, and what the contract says.
    InputError
        If there is no adapter for the model.

    Examples
    --------
    >>> print(check_adapter(make_model, make_batch, adapter=NNXAdapter))  # doctest: +SKIP
    """
    __tracebackhide__ = True
    if steps < 2:
        raise ValueError(f"steps must be >= 2, got {steps}")
    model = make_model()
    kind = adapters.find(model) if adapter is None else adapters.require(adapter, model)
    recipe = Recipe(loss=loss, optimizer=optimizer, train_step=train_step, forward=forward)
    bench = Bench(make_model, make_batch, kind, steps, recipe, state)
    passed, skipped = [], {}
    for name, check in CHECKS.items():
        reason = bench.make(name, check)
        if reason is None:
            passed.append(name)
        else:
            skipped[name] = reason
    offers = frozenset(name for name, mixin in CAPABILITIES.items() if issubclass(kind, mixin))
    silent = {
        code: tuple(sorted(rule.needs - offers))
        for code, rule in RULES.items()
        if not rule.needs <= offers
    }
    return Conformance(kind.__name__, tuple(passed), skipped, offers, silent)
