"""Normalisation and training steps by hand: what does the check say of them?

    python benchmarks/own_norms.py [--only TEXT] [--smoke]

Each design is a home-made layer (what it averages, where it keeps that, how it says its rate, when
it updates) or a home-made training step, in two nets and with two seeds, once with so long a memory
that the initial value is left and once settled. A plain loop with a plain prediction in both modes
decides which of them are broken or healthy, with room; what lies between is left out.

A broken one has to fail by BN101 alone, which names the layers, each with its update rate within
2 % and the weight of its initial value within 0.02. Both are measured by plain code, too: from
what is left of a change of the state, after the training and after one more update. A healthy one
has to have neither error nor warning. Prints a row for each design; the exit code is 1 where one
is wrong, or where fewer than 60 designs and memories are left.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from own_norms_table import Row, Truth, judge, table

from own_layers import CONVENTIONS, PLACES, READS, RULES, own_norm
from own_steps import Distilled, Steps, own_norms
from pytest_bncheck import check
from random_nets import Checkpointed, Twins
from torch_nets import WIDTH, Net, data

SLOW = ((0.01, 20), (0.005, 30), (0.02, 16), (0.003, 40))
SETTLED = 0.2, 60
FEWEST = 60


# designs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Design:
    """A layer by hand, or a training step.

    Attributes
    ----------
    choices
        Of the layer; see `OwnNorm`.
    wrap
        What is put around the second block of the net.
    step
        Method of `Steps`; empty for the step that the check makes itself.
    memories
        Of ``"slow"`` and ``"settled"``, those that exist.
    """

    name: str
    choices: dict[str, Any] = field(default_factory=dict)
    wrap: Callable[[nn.Module], nn.Module] | None = None
    step: str = ""
    memories: tuple[str, ...] = ("slow", "settled")
    time_major: bool = False
    cumulative: bool = False


def _designs() -> list[Design]:
    places, conventions = list(PLACES), list(CONVENTIONS)
    usual = ("in place", "reassigned", "data", "attribute", "dict", "helper", "stacked")
    found = [
        Design(
            f"kept: {place}",
            {"place": place, "convention": conventions[k % len(conventions)], "spelling": k},
        )
        for k, place in enumerate(places)
    ]
    found += [
        Design(
            f"rule: {rule}",
            {
                "rule": rule,
                "place": usual[(2 * k + 1) % len(usual)],
                "convention": conventions[(3 * k) % len(conventions)],
                "spelling": k,
            },
        )
        for k, rule in enumerate(list(RULES)[1:])
    ]
    found += [
        Design(
            f"rate: {convention}",
            {"convention": convention, "place": usual[k % len(usual)], "spelling": k + 1},
        )
        for k, convention in enumerate(conventions)
    ]
    found += [
        Design("calls: every 4th", {"every": 4}),
        Design("calls: every 3rd, list", {"every": 3, "place": "list", "convention": "decay"}),
        Design("calls: twice a step", {"place": "reassigned", "spelling": 2}, wrap=Twins),
        Design("calls: recomputed", {"convention": "decay"}, wrap=Checkpointed),
        Design("cumulative", {"place": "attribute", "spelling": 2}, cumulative=True),
        Design("cumulative, buffer", {"rule": "deviation"}, cumulative=True),
    ]
    steps = {
        "plain": {},
        "sharpness_aware": {"place": "reassigned"},
        "two_views": {"place": "dict"},
        "accumulated": {"spelling": 3},
        "decaying": {"convention": "momentum of the past"},
        "validating": {"place": "helper"},
        "distilling": {"spelling": 1},
    }
    found += [
        Design(f"step: {step.replace('_', ' ')}", choices, step=step)
        for step, choices in steps.items()
    ]
    found += [
        Design("step: freezing", {"spelling": 4}, step="freezing", memories=("settled",)),
        Design("outputs: time first", {"place": "data"}, time_major=True),
        Design("outputs: time first, power", {"rule": "power"}, time_major=True),
    ]
    return found


# cases ------------------------------------------------------------------------------------------


@dataclass
class Case:
    """One design in one net, with one memory and one seed."""

    design: Design
    memory: str
    kind: str
    seed: int
    rate: float | None
    steps: int
    batch: tuple[Tensor, Tensor]
    loss: Callable[[Any, Any], Tensor]
    regression: bool

    def __str__(self) -> str:
        return f"{self.design.name}, {self.memory}, {self.kind}, seed {self.seed}"

    def build(self) -> nn.Module:
        choices = dict(self.design.choices, rate=self.rate)
        if self.design.cumulative:
            choices["prior"] = 0 if self.memory == "settled" else 10 * self.steps
        title = "".join(word.capitalize() for word in self.design.name.split() if word.isalpha())
        norm = own_norm(f"{title}Norm", **choices)
        model: Any = _Sequences(self.kind, self.seed, norm) if self.design.time_major else None
        if model is None:
            model = Net(self.kind, self.seed, norm=norm)
            if self.regression:
                model.head = nn.Linear(WIDTH, 1)
            if self.design.wrap:
                model.blocks[1] = self.design.wrap(model.blocks[1])
        return Distilled(model) if self.design.step == "distilling" else model

    def options(self, model: nn.Module) -> dict[str, Any]:
        """Of the check."""
        if self.design.step:
            return {"train_step": getattr(Steps(self.loss), self.design.step)}
        loss = {"loss": self.loss} if self.design.time_major else {}
        return {"optimizer": self._optimizer, **loss}

    def _optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        *body, weight, bias = parameters
        rate = 1e-2
        if self.design.cumulative and self.memory == "settled":
            rate = 1e-5  # what lies below the head hardly moves
        groups = [{"params": body, "lr": rate}, {"params": [weight, bias]}]
        return torch.optim.Adam(groups, 1e-2)

    def train(self, change: float = 0.0) -> tuple[nn.Module, float]:
        """A plain loop, from a state that was changed; the model and its first loss."""
        model = self.build().train()
        for layer in own_norms(model).values():
            layer.move((*layer.state()[:-1], layer.state()[-1] + change))
        steps = Steps(self.loss)
        if not self.design.step:
            steps.optimizer = self._optimizer(model.parameters())
        step = getattr(steps, self.design.step or "plain")
        losses = [float(step(model, self.batch).detach()) for _ in range(self.steps)]
        return model, losses[0]


class _Sequences(nn.Module):
    """A label for every moment; the outputs have the time first."""

    def __init__(self, kind: str, seed: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(seed)
        size = 1 if kind == "mlp" else 3
        self.layers = nn.Sequential(
            nn.Conv1d(20, WIDTH, size, padding=size // 2),
            norm(WIDTH),
            nn.ReLU(),
            nn.Conv1d(WIDTH, WIDTH, size, padding=size // 2),
            norm(WIDTH),
            nn.ReLU(),
            nn.Conv1d(WIDTH, 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x).permute(2, 0, 1)
        return logits


def _time_first(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), labels.T.flatten())


def _cases(design: Design, number: int) -> Iterator[Case]:
    for memory in design.memories:
        rate, steps = SLOW[number % len(SLOW)] if memory == "slow" else SETTLED
        every = design.choices.get("every", 1)
        rate, steps = (rate, steps * every) if memory == "slow" else (rate * every, steps)
        for kind in ("mlp", "residual"):
            for seed in range(2):
                regression = kind == "residual" and (seed + number) % 2 == 1
                inputs, labels = map(torch.as_tensor, data(kind, seed))
                targets: Tensor = labels
                loss: Callable[[Any, Any], Tensor] = F.cross_entropy
                if design.time_major:
                    regression = False
                    inputs, targets = _sequences(seed)
                    loss = _time_first
                elif regression:
                    loss = F.mse_loss
                    targets = (labels.float() - 1.5)[:, None]
                yield Case(
                    design,
                    memory,
                    kind,
                    seed,
                    None if design.cumulative else rate,
                    steps,
                    (inputs, targets),
                    loss,
                    regression,
                )


def _sequences(seed: int) -> tuple[Tensor, Tensor]:
    """Six moments of blobs in 24 sequences."""
    inputs, labels = map(torch.as_tensor, data("mlp", seed, 144))
    order = torch.randperm(144, generator=torch.Generator().manual_seed(seed))
    inputs, labels = inputs[order], labels[order]
    return inputs.reshape(24, 6, 20).transpose(1, 2).contiguous(), labels.reshape(24, 6)


# truth ------------------------------------------------------------------------------------------


def truth(case: Case) -> Truth:
    model, first = case.train()
    inputs, targets = case.batch
    with torch.no_grad():
        trained = copy.deepcopy(model)(inputs)
        evaluated = copy.deepcopy(model).eval()(inputs)
    losses = [float(case.loss(outputs, targets)) for outputs in (trained, evaluated)]
    drop = 0.0 if case.regression else _accuracy(case, trained) - _accuracy(case, evaluated)
    kept = (first - losses[1]) / (first - losses[0])
    samples = 1 if case.design.time_major else 0
    spread = (trained - trained.mean(samples, keepdim=True)).norm()
    gap = float((trained - evaluated).norm() / spread)
    state = ""
    worse = kept < 0.7 if case.regression else drop >= 0.2 or kept < 0.3
    if losses[0] > 0.7 * first:
        pass
    elif gap > 0.4 and worse and losses[1] > losses[0]:
        state = "broken"
    elif gap < 0.08 and kept > 0.98 and drop <= 0.0:
        state = "healthy"
    if state != "broken":
        return Truth(state, {}, {})
    rates = {name: _rate(case, model, name) for name in own_norms(model)}
    return Truth(state, rates, _weights(case, model))


def _accuracy(case: Case, outputs: Tensor) -> float:
    targets = case.batch[1].T if case.design.time_major else case.batch[1]
    return float((outputs.argmax(-1) == targets).float().mean())


def _rate(case: Case, model: nn.Module, name: str) -> float | None:
    """What one more update takes off a change of the state."""
    if case.design.cumulative or case.design.step in ("decaying", "freezing"):
        return None
    ends, updates = [], 0
    for change in (0.0, 3.0):
        layer = own_norms(again := copy.deepcopy(model))[name]
        layer.move((*layer.state()[:-1], layer.state()[-1] + change))
        before = layer.called
        with torch.no_grad():
            for _ in range(layer.every):
                again(case.batch[0])
        updates = layer.called // layer.every - before // layer.every
        ends.append(layer.state()[-1])
    left = float((ends[1] - ends[0]).mean()) / 3.0
    return float(1 - left ** (1 / updates))


def _weights(case: Case, model: nn.Module) -> dict[str, float]:
    """What training left of a change of the initial state; by the formula where it reads it."""
    if case.design.choices.get("rule") in READS:
        return dict.fromkeys(own_norms(model), (1 - (case.rate or 1.0)) ** case.steps)
    others = own_norms(case.train(change=1.0)[0])
    return {
        name: float((others[name].state()[-1] - layer.state()[-1]).mean())
        for name, layer in own_norms(model).items()
    }


# judging ----------------------------------------------------------------------------------------


def judged(case: Case, row: Row) -> str:
    """What is wrong with the check's answer; empty if nothing is, or if the case is left out."""
    measured = truth(case)
    if not measured.state or (case.memory == "settled" and measured.state == "broken"):
        row.out += 1
        return ""
    model = case.build()
    report = check(model, case.batch, steps=case.steps, **case.options(model))
    return judge(report, measured, row)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="designs with this in their name")
    parser.add_argument("--smoke", action="store_true", help="a dozen cases: does it work?")
    options = parser.parse_args()
    torch.set_num_threads(1)
    designs = [(k, each) for k, each in enumerate(_designs()) if options.only in each.name]
    rows: dict[tuple[str, str], Row] = {}
    for number, design in designs[::8] if options.smoke else designs:
        for case in _cases(design, number):
            if options.smoke and (case.kind, case.seed) != ("mlp", 0):
                continue
            row = rows.setdefault((design.name, case.memory), Row())
            if wrong := judged(case, row):
                print(f"  {case}: {wrong}", flush=True)
    return table(rows, fewest=0 if options.smoke or options.only else FEWEST)


if __name__ == "__main__":
    sys.exit(main())
