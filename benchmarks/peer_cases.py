"""The cases of `peers.py`: models with and without a fault, each with all that a tool can ask for.

Three suites. *rules*: the bad and the good model of every rule, in `fixtures/rules`. *own norms*: a
part of the suite of `own_norms.py`, slow and settled. *theirs*: faults that the documentation of
the other tools shows, restated, beside their nearest healthy neighbours; most of them are none of
ours.

    python peer_cases.py    # prints the names as JSON; a plain loop decides the own norms' state
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).parents[1]
RULES = ROOT / "fixtures" / "rules"
STEPS = 150
"""Of a training whose example leaves their number to the check."""


@dataclass
class Case:
    """A model to be judged, and its training.

    Attributes
    ----------
    model, batches
        The model, and its batches as tensors.
    steps
        Of the training; 0 for a model that was trained before.
    optimizer
        Makes the optimizer from parameters.
    train_step
        A step by hand, which knows an optimizer that nobody else does.
    frozen
        Names of parameters that are meant to be frozen.
    own_backward
        Whether the model has a backward pass written by hand.
    options
        Of our own check.
    """

    model: nn.Module
    batches: list[tuple[Tensor, Tensor]]
    steps: int = STEPS
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy
    optimizer: Callable[[Any], torch.optim.Optimizer] = torch.optim.Adam
    train_step: Callable[[nn.Module, Any], Any] | None = None
    frozen: tuple[str, ...] = ()
    own_backward: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> Tensor:
        """Of the first batch."""
        return self.batches[0][0]

    @property
    def targets(self) -> Tensor:
        """Of the first batch."""
        return self.batches[0][1]


def train(case: Case, optimizer: torch.optim.Optimizer | None = None) -> nn.Module:
    """A plain loop."""
    model = case.model
    if optimizer is None and case.steps and not case.train_step:
        optimizer = case.optimizer(model.parameters())
    for number in range(case.steps):
        inputs, targets = case.batches[number % len(case.batches)]
        model.train()
        if case.train_step:
            case.train_step(model, (inputs, targets))
            continue
        assert optimizer is not None
        optimizer.zero_grad()
        case.loss(model(inputs), targets).backward()
        optimizer.step()
    return model


def build(suite: str, name: str, which: str) -> Case:
    """A case anew; `which` is ``"bad"`` or ``"good"``."""
    torch.manual_seed(0)
    maker = {"rules": _of_a_rule, "own norms": _of_an_own_norm, "theirs": _of_theirs}[suite]
    return maker(name, which)


def names() -> Iterator[tuple[str, str, str]]:
    """Suite, name, and which of the two."""
    for path in sorted((RULES / "torch").glob("bn*.py")):
        text = path.read_text(encoding="utf-8")
        # a training loop and several processes: no tool but ours is made for them
        if "WATCHED" not in text and "ELSEWHERE" not in text:
            yield from (("rules", path.stem.upper(), which) for which in ("bad", "good"))
    yield from _own_norms()
    yield from (("theirs", name, which) for name in THEIRS for which in ("bad", "good"))


# rules ------------------------------------------------------------------------------------------


def _of_a_rule(code: str, which: str) -> Case:
    for folder in (RULES, RULES / "torch"):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    example = getattr(importlib.import_module(code.lower()), which)()
    options = dict(example.options)
    pairs = options.get("batches") or [example.batch]
    steps = options.get("steps", STEPS)
    return Case(
        example.model,
        [(torch.as_tensor(inputs), torch.as_tensor(targets)) for inputs, targets in pairs],
        steps,
        optimizer=options.get("optimizer", torch.optim.Adam),
        train_step=options.get("train_step"),
        frozen=tuple(n for n, p in example.model.named_parameters() if not p.requires_grad),
        options={key: value for key, value in options.items() if key != "batches"},
    )


# own norms --------------------------------------------------------------------------------------

MEMORIES = {"slow": "bad", "settled": "good"}


def _designs() -> Iterator[tuple[str, Any]]:
    """The designs of a layer, where a plain loop trains it, in the net of linear layers."""
    import own_norms

    for number, design in enumerate(own_norms._designs()):
        if design.step or design.time_major or design.cumulative:
            continue
        for case in own_norms._cases(design, number):
            if (case.kind, case.seed) == ("mlp", 0) and _is_saved(case):
                yield MEMORIES[case.memory], case


def _is_saved(case: Any) -> bool:
    """Whether `state_dict` holds the statistics; those that it does not have another fault, too."""
    from own_steps import own_norms

    moved, other = case.build(), case.build()
    for layer in own_norms(moved).values():
        layer.move(tuple(part + 1 for part in layer.state()))
    other.load_state_dict(moved.state_dict(), strict=False)
    pairs = zip(own_norms(moved).values(), own_norms(other).values(), strict=True)
    return all(
        torch.equal(a, b)
        for one, two in pairs
        for a, b in zip(one.state(), two.state(), strict=True)
    )


def _own_norms() -> Iterator[tuple[str, str, str]]:
    import own_norms

    for which, case in _designs():
        wanted = "broken" if which == "bad" else "healthy"
        if own_norms.truth(case).state == wanted:
            yield "own norms", case.design.name, which


def _of_an_own_norm(name: str, which: str) -> Case:
    (found,) = (case for each, case in _designs() if (case.design.name, each) == (name, which))
    return Case(
        found.build(),
        [found.batch],
        found.steps,
        found.loss,
        found._optimizer,
        options={"steps": found.steps, "optimizer": found._optimizer},
    )


# theirs -----------------------------------------------------------------------------------------


def _blobs() -> tuple[Tensor, Tensor]:
    labels = torch.arange(32) % 4
    centres = torch.randn(4, 20)
    return centres[labels] * 2 + torch.randn(32, 20), labels


class _Net(nn.Module):
    """Two layers, and one fault of those that the documentation of others shows."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault = fault
        self.body, self.head = nn.Linear(20, 32), nn.Linear(32, 4)
        if fault == "unused layer":
            self.norm = nn.LayerNorm(32)
        if fault == "over-confident start":
            nn.init.normal_(self.head.weight, std=1.0)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x).relu()
        if self.fault == "graph is cut":
            hidden = hidden.data
        if self.fault == "dropout in eval mode":
            hidden = F.dropout(hidden, 0.2)
        logits: Tensor = self.head(hidden)
        return logits


class _TwoTowers(nn.Module):
    """Half of the features for each tower."""

    def __init__(self, mixed_up: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(10, 16), nn.Linear(10, 16)
        self.head, self.mixed_up = nn.Linear(16, 4), mixed_up

    def forward(self, x: Tensor) -> Tensor:
        one, other = x[:, :10], x[:, 10:]
        both = self.first(one) * self.second(one if self.mixed_up else other)
        logits: Tensor = self.head(both)
        return logits


class _Attention(nn.Module):
    """Features as tokens; without `batch_first` the batch is taken for the sequence."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first)
        self.head = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.view(len(x), 5, 4)
        mixed, _ = self.attention(tokens, tokens, tokens)
        logits: Tensor = self.head((tokens + mixed).flatten(1))
        return logits


class _Noisy(nn.Module):
    """Noise of a variance that is learned; its root has no gradient at 0."""

    def __init__(self, safe: bool) -> None:
        super().__init__()
        self.net, self.safe = _Net(), safe
        self.var = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        if self.training:
            root = (self.var + 0.01).clamp(1e-4).sqrt() if self.safe else self.var.sqrt()
            logits = logits + root * torch.randn_like(logits)
        return logits


class _Square(torch.autograd.Function):
    """Squares; its gradient is right for a factor of 2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Any:
        ctx.save_for_backward(x)
        ctx.factor = factor
        return x**2

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        (x,) = ctx.saved_tensors
        return ctx.factor * x * gradient, None


class _Centred(nn.Module):
    """Subtracts a running mean, which is a buffer or a mere attribute."""

    def __init__(self, saved: bool) -> None:
        super().__init__()
        self.net = _Net()
        if saved:
            self.register_buffer("mean", torch.zeros(20))
        else:
            self.mean = torch.zeros(20)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.5 * (self.mean + x.detach().mean(0))
        logits: Tensor = self.net(x - self.mean)
        return logits


class _Squared(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.net, self.factor = _Net(), factor

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(_Square.apply(x, self.factor))
        return logits


def _head_frozen_late(frozen: bool) -> nn.Module:
    net = _Net()
    for parameter in net.body.parameters():
        parameter.requires_grad = not frozen
    return net


def _fast(params: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=1e-2)


def _tiny_rate(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=1e-6)


_OF_A_NET = ("unused layer", "graph is cut", "over-confident start", "dropout in eval mode")
_MODELS: dict[str, Callable[[bool], nn.Module]] = {
    **{name: (lambda bad, name=name: _Net(name if bad else "")) for name in _OF_A_NET},
    "half of the input ignored": _TwoTowers,
    "batch taken for the sequence": lambda bad: _Attention(batch_first=not bad),
    "gradient that is no number": lambda bad: _Noisy(safe=not bad),
    "state that no checkpoint holds": lambda bad: _Centred(saved=not bad),
    "wrong backward pass": lambda bad: _Squared(1.0 if bad else 2.0),
    "frozen part that trains": lambda bad: _head_frozen_late(frozen=not bad),
    "learning rate far too small": lambda bad: _Net(),
}
THEIRS = tuple(_MODELS)


def _of_theirs(name: str, which: str) -> Case:
    bad = which == "bad"
    batch = _blobs()
    optimizer = _tiny_rate if bad and name == "learning rate far too small" else _fast
    return Case(
        _MODELS[name](bad),
        [batch],
        optimizer=optimizer,
        frozen=("body.weight", "body.bias") if name == "frozen part that trains" else (),
        own_backward=name == "wrong backward pass",
        options={"optimizer": optimizer},
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(list(names())))
