"""Normalisation by hand in Keras: what does the check say of it?

    KERAS_BACKEND=jax python benchmarks/own_norms_keras.py [--only TEXT] [--smoke]

The twin of `own_norms.py`: each design is a home-made layer, or a way in which it is called or
trained, in two nets, once with so long a memory that the initial value is left and once settled.
The user's own ``fit`` and a plain call in both modes decide which of them are broken or healthy,
with room; what lies between is left out. The rates are those with which the layers were made, the
weights (1-α)^updates. The exit code is 1 where one is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from own_norms_table import Row, Truth, judge, table

from keras_nets import NORMS, fast, net
from keras_nets import data as plain
from keras_own_layers import CONVENTIONS, PLACES, RULES, OwnNorm, Twice
from keras_steps import Inside, Told
from pytest_bncheck import check

SLOW = ((0.005, 30), (0.01, 24), (0.003, 36))
SETTLED = 0.2, 60
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
BODY = layers.Dense, layers.Conv2D
FEWEST = 40


@dataclass(frozen=True)
class Design:
    """A layer by hand, and how it is called and trained.

    Attributes
    ----------
    choices
        Of the layer; see `OwnNorm`.
    calls
        How often a step calls each layer.
    wrap
        What is put around each layer, by its name.
    around
        What is put around the model.
    cumulative
        The average is over all updates, and the initial value counts as many as the memory says.
    """

    name: str
    choices: dict[str, Any] = field(default_factory=dict)
    calls: int = 1
    wrap: Callable[[Any, str], Any] | None = None
    around: Callable[[Any], Any] | None = None
    cumulative: bool = False


def _designs() -> list[Design]:
    places, conventions, rules = list(PLACES), list(CONVENTIONS), list(RULES)
    found = [
        Design(
            f"kept: {place}",
            {"place": place, "convention": conventions[k % len(conventions)], "spelling": k},
        )
        for k, place in enumerate(places)
    ]
    found += [
        Design(f"rule: {rule}", {"rule": rule, "place": places[k % len(places)], "spelling": k})
        for k, rule in enumerate(rules)
    ]
    found += [
        Design(
            f"rate: {each}",
            {"convention": each, "rule": rules[(k + 1) % len(rules)], "place": places[(k + 3) % 6]},
        )
        for k, each in enumerate(conventions)
    ]
    found += [
        Design("calls: every 3rd", {"every": 3, "place": "untracked"}),
        Design("calls: every 4th", {"every": 4, "rule": "deviation", "convention": "decay"}),
        Design("calls: twice a step", {"place": "added to"}, calls=2, wrap=_twice),
        Design("inside: Sequential", {"spelling": 1}, wrap=_in_sequence),
        Design("cumulative", cumulative=True),
        Design("cumulative, untracked", {"place": "untracked", "rule": "range"}, cumulative=True),
        Design("step: mode inside only", {"spelling": 2}, around=Inside),
        Design("step: the user's own", {"place": "dict", "rule": "power"}, around=Told),
    ]
    return found


def _twice(norm: Any, name: str) -> Any:
    return Twice(norm, name=name)


def _in_sequence(norm: Any, name: str) -> Any:
    return keras.Sequential([norm, layers.Activation("linear")], name=name)


@dataclass
class Case:
    """One design in one net, with one memory."""

    design: Design
    memory: str
    kind: str
    rate: float
    steps: int

    def __str__(self) -> str:
        return f"{self.design.name}, {self.memory}, {self.kind}"

    def build(self) -> Any:
        choices: dict[str, Any] = dict(self.design.choices, rate=self.rate)
        if self.design.cumulative:
            prior = 0.0 if self.memory == "settled" else 10.0 * self.steps
            choices.update(rate=None, prior=prior)

        def norm(name: str) -> Any:
            if self.design.wrap is None:
                return OwnNorm(name=name, **choices)
            return self.design.wrap(OwnNorm(**choices), name)

        model = net(self.kind, 0, norm)
        inputs = data(self.kind)[0]
        model(inputs[:2])
        if self.design.around is not None:
            model = self.design.around(model)
            model(inputs[:2])
        if self.design.cumulative:  # the average over all updates settles where the body rests
            for layer in model._flatten_layers():
                layer.trainable = not isinstance(layer, BODY) or layer.name == "head"
        model.compile(fast(), LOSS)
        return model

    def weight(self) -> float:
        """What is left of the initial value after the steps."""
        updates = self.steps * self.design.calls // self.design.choices.get("every", 1)
        if self.design.cumulative:
            return 10.0 * self.steps / (10.0 * self.steps + updates)
        return float((1.0 - self.rate) ** updates)


def data(kind: str) -> Any:
    """Inputs that are not centred, so that the initial value fits badly."""
    inputs, labels = plain(kind)
    return 2.0 * inputs + 3.0, labels


def _cases(design: Design, number: int) -> Iterator[Case]:
    every = design.choices.get("every", 1)
    for memory in ("slow", "settled"):
        rate, steps = SLOW[number % len(SLOW)] if memory == "slow" else SETTLED
        rate, steps = (rate, steps * every) if memory == "slow" else (rate * every, steps)
        for kind in ("functional", "subclassed"):
            yield Case(design, memory, kind, rate, steps)


def truth(case: Case) -> Truth:
    """By the user's own ``fit``, and by a call in each mode."""
    model, (inputs, labels) = case.build(), data(case.kind)
    before = _loss(_called(model, inputs, True), labels)
    model = case.build()
    repeated = [np.concatenate([each] * case.steps) for each in (inputs, labels)]
    model.fit(*repeated, batch_size=len(labels), shuffle=False, verbose=0)
    evaluated = _called(model, inputs, False)
    trained = _called(model, inputs, True)
    losses = [_loss(outputs, labels) for outputs in (trained, evaluated)]
    drop = float(np.mean(trained.argmax(-1) == labels) - np.mean(evaluated.argmax(-1) == labels))
    kept = (before - losses[1]) / (before - losses[0])
    gap = np.linalg.norm(trained - evaluated) / np.linalg.norm(trained - trained.mean(0))
    state = ""
    if losses[0] > 0.7 * before:
        pass
    elif gap > 0.4 and (drop >= 0.2 or kept < 0.3):
        state = "broken"
    elif gap < 0.08 and drop <= 0.0:
        state = "healthy"
    if state != "broken":
        return Truth(state, {}, {})
    names = NORMS[case.kind]
    rate = None if case.design.cumulative else case.rate
    return Truth(state, dict.fromkeys(names, rate), dict.fromkeys(names, case.weight()))


def _called(model: Any, inputs: Any, training: bool) -> Any:
    """The net's output; of the net inside where only the step passes the mode."""
    return keras.ops.convert_to_numpy(getattr(model, "inner", model)(inputs, training=training))


def _loss(outputs: Any, labels: Any) -> float:
    return float(LOSS(labels, outputs))


def judged(case: Case, row: Row) -> str:
    """What is wrong with the check's answer; empty if nothing is, or if the case is left out."""
    measured = truth(case)
    if not measured.state or (case.memory == "settled" and measured.state == "broken"):
        row.out += 1
        return ""
    return judge(check(case.build(), data(case.kind), steps=case.steps), measured, row)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="designs with this in their name")
    parser.add_argument("--smoke", action="store_true", help="three cases: does it work?")
    options = parser.parse_args()
    designs = [(k, each) for k, each in enumerate(_designs()) if options.only in each.name]
    rows: dict[tuple[str, str], Row] = {}
    for number, design in designs[3::9] if options.smoke else designs:
        for case in _cases(design, number):
            if options.smoke and (case.kind, case.memory) != ("functional", "slow"):
                continue
            row = rows.setdefault((design.name, case.memory), Row())
            if wrong := judged(case, row):
                print(f"  {case}: {wrong}", flush=True)
    print(f"Keras on {keras.backend.backend()}")
    return table(rows, fewest=0 if options.smoke or options.only else FEWEST)


if __name__ == "__main__":
    sys.exit(main())
