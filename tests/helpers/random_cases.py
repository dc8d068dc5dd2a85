"""Checks of random networks of which it is known by construction what is wrong with them.

`draw(seed)` gives a net with its batch, the options of its check and the truth: healthy, or one
planted fault; `judge` compares it with what the check says. The same seed gives the same net.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from own_layers import CONVENTIONS, PLACES, READS, RULES, OwnNorm, own_norm
from own_steps import Distilled, Steps
from pytest_bncheck import check
from pytest_bncheck.types import Finding
from random_nets import (
    AlwaysDropout,
    Builder,
    Checkpointed,
    Counts,
    Hidden,
    LosesUpdates,
    Merges,
    OtherPath,
    Poisoned,
    Shifts,
    TimeFirst,
    norms,
)

ASIDES = {"BN101", "BN102", "BN106", "BN202"}
"""Warnings that can be true of any net: a lag of a few percent, few values, a flat loss."""


@dataclass
class Case:
    """A net, how to check it, and what the check has to say.

    Attributes
    ----------
    plan
        The design of a healthy net, or the fault that was planted.
    code
        The rule that has to fire; empty for a healthy net.
    gravity
        ``"error"`` or ``"warning"``; ``"either"`` where it depends on what the fault costs.
    layers
        Names of the layers that are at fault, where the finding has to name them exactly.
    """

    model: nn.Module
    batch: tuple[Tensor, Tensor]
    task: str
    code: str = ""
    gravity: str = "error"
    layers: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    plan: str = ""
    seed: int = 0


def train(model: nn.Module, batch: tuple[Tensor, Tensor], steps: int, task: str) -> None:
    """A plain training loop."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        LOSSES[task](model(batch[0]), batch[1]).backward()
        optimizer.step()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "classes": functional.cross_entropy,
    "one column": functional.binary_cross_entropy_with_logits,
    "regression": functional.mse_loss,
    "time first": lambda y, t: functional.cross_entropy(y.flatten(0, 1), t.T.flatten()),
}


# healthy ----------------------------------------------------------------------------------------


def default(b: Builder) -> Case:
    return _case(b, b.net(b.blocks()))


def long_training(b: Builder) -> Case:
    return _case(b, b.net(b.blocks()), steps=b.rng.randint(100, 150))


def cumulative(b: Builder) -> Case:
    """An average over all steps, of a net of which only the last layer moves."""
    b.momentum = None
    model = b.net(b.blocks())
    head = list(model[-1].parameters())
    return _case(b, model, steps=60, optimizer=lambda _: torch.optim.Adam(head, 1e-2))


def dropout_in_the_head(b: Builder) -> Case:
    return _case(b, b.net(b.blocks(), dropout=0.3))


def no_batchnorm(b: Builder) -> Case:
    stem = nn.Sequential(b.conv(3 if b.dims else 10, b.channels), nn.GroupNorm(4, b.channels))
    return _case(b, b.net([stem, b.grouped(b.channels)]), steps=30)


def checkpointed(b: Builder) -> Case:
    stem, *rest = b.blocks()
    return _case(b, b.net([stem, *(Checkpointed(block) for block in rest)]))


def spectral(b: Builder) -> Case:
    blocks: list[Any] = b.blocks()
    nn.utils.parametrizations.spectral_norm(blocks[0][0])
    return _case(b, b.net(blocks))


def frozen(b: Builder) -> Case:
    """A trained net of which the first blocks stay as they are."""
    blocks = b.blocks()
    model, batch = b.net(blocks), b.batch()
    train(model, batch, 60, b.task)
    for block in blocks[: b.rng.randint(1, len(blocks))]:
        block.eval().requires_grad_(False)
    return _case(b, model, batch)


def planned(b: Builder) -> Case:
    b.momentum = 0.01
    return _case(b, b.net(b.blocks()), steps=40, planned_updates=3000)


def loaded(b: Builder) -> Case:
    model, batch = b.net(b.blocks()), b.batch()
    train(model, batch, 150, b.task)
    return _case(b, model, batch, steps=0)


# faults -----------------------------------------------------------------------------------------


def slow(b: Builder) -> Case:
    """Most of the initial value is left in every statistic."""
    b.momentum, steps = b.rng.choice(((0.01, 30), (0.01, 50), (0.003, 60), (0.001, 100)))
    return _case(b, b.net(b.blocks()), code="BN101", gravity="either", steps=steps)


def never_updated(b: Builder) -> Case:
    model = b.net(b.blocks())
    name, norm = b.rng.choice(list(norms(model)))
    norm.momentum = 0.0
    return _case(b, model, code="BN103", layers=[name])


def updates_lost(b: Builder) -> Case:
    model = b.net(b.blocks())
    return _case(b, model, code="BN103", layers=[b.replace(model, LosesUpdates) + ".norm"])


def statistics_not_loaded(b: Builder) -> Case:
    b.affine = 1.0
    model, batch = b.net(b.blocks()), b.batch()
    train(model, batch, 100, b.task)
    for _, norm in norms(model):
        norm.reset_running_stats()
    names = [name for name, _ in norms(model)]
    return _case(b, model, batch, code="BN401", gravity="either", layers=names, steps=0)


def poisoned(b: Builder) -> Case:
    value = b.rng.choice((float("nan"), float("inf"), -1.0))
    model = b.net(b.blocks())
    name = b.replace(model, lambda norm: Poisoned(norm, value))
    return _case(b, model, code="BN105", layers=[f"{name}.norm"])


def single_value(b: Builder) -> Case:
    b.dims, b.task = 0, "classes"
    return _case(b, b.net(b.blocks()), b.batch(samples=1), code="BN106")


def swapped_convention(b: Builder) -> Case:
    b.momentum = b.rng.choice((0.9, 0.99))
    model = b.net(b.blocks())
    return _case(b, model, code="BN104", gravity="warning", layers=[n for n, _ in norms(model)])


def frozen_drifts(b: Builder) -> Case:
    """A trained stem whose weights are frozen; its statistics follow the new data."""
    b.affine = 1.0
    blocks = b.blocks()
    model, (inputs, targets) = b.net(blocks), b.batch()
    train(model, (inputs, targets), 60, b.task)
    blocks[0].requires_grad_(False)
    new = (1.5 * inputs + 1.0, targets)
    return _case(b, model, new, code="BN107", gravity="warning", layers=["0.1"])


def other_path(b: Builder) -> Case:
    return _case(b, b.insert(OtherPath()), code="BN201", gravity="either")


def shifted(b: Builder) -> Case:
    """A shift ahead of a normalisation layer."""
    blocks = b.blocks(kinds=("plain", "residual", "depthwise"))
    model = b.net([blocks[0], Shifts(b.rng.choice((0.0, 0.3))), *blocks[1:]])
    return _case(b, model, code="BN201", gravity="either")


def hidden(b: Builder) -> Case:
    model = b.net(b.blocks())
    return _case(b, model, code="BN301", layers=[b.replace(model, Hidden) + ".parts[0]"])


def always_dropout(b: Builder) -> Case:
    return _case(b, b.insert(AlwaysDropout()), code="BN302")


def batch_statistics(b: Builder) -> Case:
    model = b.net(b.blocks())
    b.replace(model, lambda norm: type(norm)(norm.num_features, track_running_stats=False))
    return _case(b, model, code="BN303")


def eval_mutates(b: Builder) -> Case:
    """Behind all blocks; before a normalisation the scale would not matter."""
    return _case(b, b.net([*b.blocks(), Counts()]), code="BN304")


def trained_in_eval(b: Builder) -> Case:
    model, optimizers = b.net(b.blocks()), []

    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        model.eval()
        optimizers[:] = optimizers or [torch.optim.Adam(model.parameters(), 3e-3)]
        optimizers[0].zero_grad()
        loss = LOSSES[b.task](model(batch[0]), batch[1])
        loss.backward()
        optimizers[0].step()
        return loss

    return _case(b, model, code="BN305", steps=60, train_step=step)


def mode_sticks(b: Builder) -> Case:
    return _case(b, b.insert(Merges()), code="BN306", gravity="warning")


# by hand ----------------------------------------------------------------------------------------


def _draws_norm(b: Builder, rate: float, *, reads: bool = False, **choices: Any) -> None:
    """The net is to be normalised by hand, in some way."""
    rules = [rule for rule in RULES if reads or rule not in READS]
    rule = b.rng.choice(rules)
    b.alike = rule in OF_MOMENTS
    place = b.rng.choice(PLACES)
    if rule == "whitening" and place == "stacked":
        place = "in place"  # mean and covariance have different shapes
    b.by_hand = own_norm(
        "OwnNorm",
        rule=rule,
        place=place,
        convention=b.rng.choice(list(CONVENTIONS)),
        spelling=b.rng.randrange(5),
        rate=rate,
        **choices,
    )


def own_settled(b: Builder) -> Case:
    _draws_norm(b, b.rng.choice((0.1, 0.2, 0.3)), reads=True)
    return _case(b, b.net(b.blocks()), steps=b.rng.randint(80, 120))


def own_seldom(b: Builder) -> Case:
    """Statistics that move at every n-th call."""
    every = b.rng.choice((2, 3, 4))
    _draws_norm(b, 0.1 * every, every=every)
    return _case(b, b.net(b.blocks(kinds=("plain", "before", "residual"))), steps=120)


def _any_norm(b: Builder) -> None:
    if b.rng.random() < 0.5:
        _draws_norm(b, 0.2)


def teacher(b: Builder) -> Case:
    """A teacher in training mode that follows its student."""
    _any_norm(b)
    model = Distilled(b.net(b.blocks()))
    return _case(b, model, steps=100, train_step=_steps(b).distilling)


def frozen_teacher(b: Builder) -> Case:
    """A teacher in eval mode, trained before."""
    _any_norm(b)
    student, batch = b.net(b.blocks()), b.batch()
    train(student, batch, 60, b.task)
    model, steps = Distilled(student), _steps(b)
    model.teacher.requires_grad_(b.rng.random() < 0.5)

    def step(model: Any, batch: Any) -> Tensor:
        model.train()
        model.teacher.eval()
        steps.start(model.student)
        with torch.no_grad():
            taught = model.teacher(batch[0])
        outputs = model(batch[0])
        loss = steps.loss(outputs, batch[1]) + 0.1 * (outputs - taught).square().mean()
        loss.backward()
        steps.optimizer.step()
        return loss

    return _case(b, model, batch, steps=80, train_step=step)


def scheduled(b: Builder) -> Case:
    """A momentum that falls while the net trains."""
    model, steps = b.net(b.blocks()), _steps(b)
    first, fall = b.rng.choice((0.3, 0.5)), b.rng.choice((0.97, 0.985))

    def step(model: nn.Module, batch: Any) -> Tensor:
        for _, norm in norms(model):
            norm.momentum = max(0.05, first * fall**steps.made)
        return steps.plain(model, batch)

    return _case(b, model, steps=120, train_step=step)


def sharpness_aware(b: Builder) -> Case:
    """Two forwards in a step, of which the second does not record."""
    model, steps = b.net(b.blocks()), _steps(b)
    momentum = b.momentum

    def step(model: nn.Module, batch: Any) -> Tensor:
        for _, norm in norms(model):
            norm.momentum = momentum
        loss = steps.plain(model, batch)
        for _, norm in norms(model):
            norm.momentum = 0.0
        steps.start(model)
        steps.loss(model(batch[0]), batch[1]).backward()
        steps.optimizer.step()
        return loss

    return _case(b, model, steps=100, train_step=step)


def frozen_late(b: Builder) -> Case:
    """Constant statistics in the last steps."""
    _any_norm(b)
    model, steps = b.net(b.blocks()), _steps(b)

    def step(model: nn.Module, batch: Any) -> Tensor:
        model.train()
        if steps.made >= 60:
            for module in model.modules():
                if isinstance(module, OwnNorm) or hasattr(module, "running_mean"):
                    module.eval()
        return steps.plain(model, batch)

    return _case(b, model, steps=90, train_step=step)


def time_first(b: Builder) -> Case:
    """Outputs of shape (T, N, C)."""
    return _time_first(b, steps=100)


def _time_first(b: Builder, **more: Any) -> Case:
    b.dims, b.task = 1, "time first"
    if "code" not in more:
        _any_norm(b)
    body = b.blocks()
    model = nn.Sequential(*body, nn.Conv1d(b.channels, b.classes, 1), TimeFirst())
    generator = torch.Generator().manual_seed(b.rng.randrange(1000))
    labels = torch.randint(b.classes, (b.samples, b.size), generator=generator)
    centres = 2.0 * torch.randn(b.classes, 3, generator=generator)
    noise = torch.randn(b.samples, 3, b.size, generator=generator)
    inputs = centres[labels].transpose(1, 2) + noise + b.rng.choice((-4.0, 3.0, 8.0))
    return _case(b, model, (inputs, labels), loss=LOSSES["time first"], **more)


def own_slow(b: Builder) -> Case:
    rate, steps = b.rng.choice(((0.01, 30), (0.01, 50), (0.003, 60), (0.001, 100)))
    _draws_norm(b, rate)
    return _case(b, b.net(b.blocks()), code="BN101", gravity="either", steps=steps)


def own_other_path(b: Builder) -> Case:
    _draws_norm(b, 0.2)
    return _case(b, b.insert(OtherPath()), code="BN201", gravity="either", steps=100)


def scheduled_slow(b: Builder) -> Case:
    """The training takes the momentum away that the layers were built with."""
    model, steps = b.net(b.blocks()), _steps(b)
    rate = b.rng.choice((0.002, 0.005))

    def step(model: nn.Module, batch: Any) -> Tensor:
        for _, norm in norms(model):
            norm.momentum = rate * 0.99**steps.made
        return steps.plain(model, batch)

    return _case(b, model, code="BN101", gravity="either", steps=40, train_step=step)


def taught_slow(b: Builder) -> Case:
    """A student with slow statistics beside a teacher that follows it."""
    b.momentum = 0.005
    model = Distilled(b.net(b.blocks()))
    step = _steps(b).distilling
    return _case(b, model, code="BN101", gravity="either", steps=40, train_step=step)


def time_first_slow(b: Builder) -> Case:
    b.momentum, steps = b.rng.choice(((0.01, 30), (0.003, 60)))
    return _time_first(b, code="BN101", gravity="either", steps=steps)


def _steps(b: Builder) -> Steps:
    return Steps(LOSSES[b.task], 3e-3)


HEALTHY = (default, default, default, long_training, cumulative, dropout_in_the_head,
           no_batchnorm, checkpointed, spectral, frozen, planned, loaded)  # fmt: skip
FAULTS = (slow, slow, slow, never_updated, updates_lost, statistics_not_loaded, poisoned,
          single_value, swapped_convention, frozen_drifts, other_path, shifted, hidden,
          always_dropout, batch_statistics, eval_mutates, trained_in_eval, mode_sticks)  # fmt: skip
HEALTHY_BY_HAND = (own_settled, own_settled, own_settled, own_seldom, teacher, frozen_teacher,
                   scheduled, sharpness_aware, frozen_late, time_first)  # fmt: skip
FAULTS_BY_HAND = (own_slow, own_slow, own_slow, own_other_path, scheduled_slow, taught_slow,
                  time_first_slow)  # fmt: skip
OF_MOMENTS = ("moments", "unbiased", "deviation", "second moment", "power", "mean only",
              "log variance", "coupled", "renorm", "observer")  # fmt: skip
"""What two views of a batch have in common; ranges, medians and covariances they have not."""
BY_HAND = 100_000
"""The first seed of nets that may be by hand; those before stay as they were."""


def plan_of(builder: Builder) -> Callable[[Builder], Case]:
    """What will become of a net; healthy ones and faults are equally likely."""
    plans = builder.rng.choice((HEALTHY, FAULTS))
    if builder.seed >= BY_HAND and builder.rng.random() < 0.5:
        plans = HEALTHY_BY_HAND if plans is HEALTHY else FAULTS_BY_HAND
    return builder.rng.choice(plans)


def draw(seed: int) -> Case:
    """A random case."""
    builder = Builder(seed)
    plan = plan_of(builder)
    case = plan(builder)
    case.plan, case.seed = plan.__name__, seed
    return case


def _case(b: Builder, model: nn.Module, batch: Any = None, code: str = "", **more: Any) -> Case:
    """The net as a case; what is no field of it is an option of the check."""
    fields = {key: more.pop(key) for key in ("gravity", "layers") if key in more}
    return Case(model, batch or b.batch(), b.task, code, options=more, **fields)


# truth ------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What a check said of a case.

    Attributes
    ----------
    wrong
        Why that is not the truth; empty if it is.
    asides
        Warnings beside it.
    """

    wrong: str
    asides: list[str]
    text: str


def judge(case: Case) -> Outcome:
    """Check a case and compare the verdict with the truth."""
    measured = case.gravity == "either"
    untrained = copy.deepcopy(case.model) if measured else None
    report = check(case.model, case.batch, **case.options, restore=not measured)
    found = {finding.code: finding for finding in report.findings}
    own = found.pop(case.code, None)
    others = [f"{f.code} ({f.severity})" for f in found.values()]
    strange = [f for f in found.values() if not _is_true(f, case)]
    wrong = f"{', '.join(others)} beside the truth" if strange else ""
    if case.code and own is None:
        inconclusive = "BN202" in found and not _learns(case)
        harmless = measured and "none" in _gravities(case, untrained)
        wrong = "" if inconclusive or harmless else f"{case.code} is missing"
    elif own is not None and case.layers and sorted(own.layers) != sorted(case.layers):
        wrong = f"{own.layers} are blamed, not {case.layers}"
    elif own is not None:
        allowed = _gravities(case, untrained) if untrained is not None else {case.gravity}
        if case.options.get("train_step") and _gap(case) <= 0.5:
            allowed |= {"warning"}  # the limit for a step that goes through the batch in parts
        if measured and own.code == "BN201":  # it speaks of settled statistics
            _settle(case.model, case.batch[0])
            allowed |= _gravities(case, untrained)
        wrong = wrong if own.severity in allowed else f"{own.code} as {own.severity}"
    return Outcome(wrong, others, str(report))


def _is_true(finding: Finding, case: Case) -> bool:
    """Whether a finding beside the truth is true all the same.

    Any net may lag by itself. An error has to show with plain code, in eval mode of the blamed
    layers alone, or in eval mode of all but these.
    """
    if finding.code == "BN107" and case.plan == "cumulative":
        return True  # its optimizer has the last layer alone, and the others' statistics move
    if finding.code == "BN401" and case.options.get("steps"):
        saved = case.model.state_dict()
        return not any(f"{name}.running_mean" in saved for name in finding.layers)
    if finding.code == "BN108":
        return _differs_when_settled(case)  # views of few values differ by chance
    if finding.code not in ASIDES or finding.severity == "warning":
        return finding.code in ASIDES
    again = draw(case.seed)
    report = check(again.model, again.batch, **again.options, restore=False)
    blamed = finding.layers or [layer.name for layer in report.layers]

    def outputs(training: bool, other: Sequence[str] = ()) -> Tensor:
        """In one mode, and some layers in the other."""
        model = copy.deepcopy(again.model).train(training)  # a pass moves statistics
        for name in other:
            _layer(model, name).train(not training)
        with torch.no_grad():
            return model(again.batch[0])

    def costs(worse: Tensor, better: Tensor) -> bool:
        if again.task == "regression":
            with torch.no_grad():
                first = draw(case.seed).model.train()(again.batch[0])
            return _kept(case, first, better, worse) < 0.9
        return _accuracy(again, better) - _accuracy(again, worse) >= 0.05

    # A layer after a blamed one may normalise its fault away: then what helps it tells.
    alone = costs(outputs(True, blamed), outputs(True))
    return alone or costs(outputs(False), outputs(False, blamed))


def _differs_when_settled(case: Case) -> bool:
    """Whether eval mode predicts something else once the running statistics have settled."""
    again = draw(case.seed)
    check(again.model, again.batch, **again.options, restore=False)
    inputs = again.batch[0]
    _settle(again.model, inputs)
    return _gap(again) > 0.2


def _settle(model: nn.Module, inputs: Tensor) -> None:
    """Re-estimate the statistics of batch normalisation by forward passes."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.1
    model.train()
    with torch.no_grad():
        for _ in range(100):
            model(inputs)


def _layer(model: nn.Module, name: str) -> nn.Module:
    """The layer of this name, or that by hand which holds it."""
    found = model.get_submodule(name)
    above = model.get_submodule(name.rpartition(".")[0])
    return above if isinstance(above, OwnNorm) else found


def _learns(case: Case) -> bool:
    """Whether a plain loop of the same steps takes a tenth off the loss; else nothing can be said.

    Near the border the check's own loop decides.
    """
    again = draw(case.seed)

    def loss() -> float:
        with torch.no_grad():
            return float(LOSSES[again.task](again.model.train()(again.batch[0]), again.batch[1]))

    first = loss()
    train(again.model, again.batch, again.options["steps"], again.task)
    last = loss()
    return first - last > 0.12 * abs(first)


def _gravities(case: Case, untrained: Any) -> set[str]:
    """How grave a fault is by what it costs, measured with plain code; several on a border.

    A loss that is no larger costs nothing, whatever the accuracy.
    """
    inputs, targets = case.batch
    with torch.no_grad():
        first = untrained.train()(inputs)
        evaluated, trained = case.model.eval()(inputs), case.model.train()(inputs)
    kept = _kept(case, first, trained, evaluated)
    if kept >= 1.0:
        return {"none"} if case.code == "BN101" else {"none", "warning"}
    scored = case.task not in ("regression", "time first")
    drop = _accuracy(case, trained) - _accuracy(case, evaluated) if scored else 0.0
    limit = 0.5 if scored else 0.9
    single = drop * len(targets) < 1.5  # a single sample decides nothing
    if (drop >= 0.1 and not single) or kept < limit - 0.1:
        return {"error"}
    mild = {"warning", "none"} if single and kept > 0.88 else {"warning"}
    return mild if drop <= 0.0 and kept > limit + 0.05 else {"error", *mild}


def _kept(case: Case, first: Tensor, trained: Tensor, evaluated: Tensor) -> float:
    """The share of the progress in loss that eval mode keeps."""
    samples = 1 if case.task == "time first" else 0
    constant = trained.mean(dim=samples, keepdim=True).expand_as(trained)
    start, even, last, evaluation = (
        float(LOSSES[case.task](y, case.batch[1])) for y in (first, constant, trained, evaluated)
    )
    if evaluation <= last:
        return 1.0
    if not case.options.get("steps", 1):
        start = even
    # A constant is where progress starts from, but for a net that is hardly better than one.
    base = min(start, even) if even - last >= 0.1 * (start - last) else start
    return (base - evaluation) / (base - last)


def _gap(case: Case) -> float:
    """How far eval mode's outputs are from those of training mode, in units of their spread."""
    with torch.no_grad():
        evaluated = copy.deepcopy(case.model).eval()(case.batch[0])
        trained = copy.deepcopy(case.model).train()(case.batch[0])
    spread = trained - trained.mean(dim=0, keepdim=True)
    return float((evaluated - trained).norm() / spread.norm())


def _accuracy(case: Case, outputs: Tensor) -> float:
    targets = case.batch[1]
    if case.task == "time first":
        return float((outputs.argmax(-1) == targets.T).float().mean())
    right = (
        outputs.argmax(1) == targets if case.task == "classes" else (outputs > 0) == (targets > 0)
    )
    return float(right.float().mean())
