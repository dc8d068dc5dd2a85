"""PyTorch: whatever happens in a check, model, optimizer, generators and switches are as before.

`CLAUSES` says what that is, `clauses.endings` what may happen; `random_nets` gives a property test
its models, and draws where and when what happens to them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as some

torch = pytest.importorskip("torch")

from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer

from clauses import (
    INTERRUPTIONS,
    PROCESS,
    REACHED,
    Clause,
    Ending,
    Helper,
    Mistake,
    after,
    around,
    changed,
    endings,
    helpers_kept,
    in_time,
    is_seen,
    nothing,
    process_kept,
    readings,
    staged,
    throw,
)
from pytest_bncheck import InputError, check
from random_cases import LOSSES, train
from random_nets import Builder
from second_device import DEVICE, generator_on
from torch_clauses import SWITCHES, switches_kept

STEPS = 4
HOOKS = [name for name in vars(nn.Module()) if name.endswith("_hooks")]
INSIDE = ("_parameters", "_buffers", "_modules", "training", *HOOKS)


@dataclass
class World:
    """A model and what the user holds beside it."""

    model: nn.Module
    batch: Any
    optimizer: Any
    generator: Any = None

    @property
    def first(self) -> nn.Parameter:
        return next(self.model.parameters())


# what must not change ---------------------------------------------------------------------------


def exact(value: Any) -> Any:
    """A value with the bytes, type, place and identity of every tensor in it."""
    if isinstance(value, Tensor):
        bits = value.detach().cpu().numpy().tobytes()
        return id(value), bits, value.dtype, value.device, value.requires_grad, value.data_ptr()
    if isinstance(value, np.ndarray):
        return value.dtype, value.tobytes()
    if isinstance(value, nn.Module):
        return id(value)
    if isinstance(value, torch.Generator):
        return id(value), exact(value.get_state())[1]
    if isinstance(value, dict):
        return [(exact(key), exact(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [exact(item) for item in value]
    return value


def of_modules(read: Callable[[nn.Module], Any]) -> Callable[[World], dict[str, Any]]:
    """A reading of every module, under its name."""
    return lambda world: {
        name: read(module) for name, module in world.model.named_modules(remove_duplicate=False)
    }


def hooks(world: World) -> dict[str, Any]:
    found = of_modules(lambda m: {key: dict(vars(m)[key]) for key in HOOKS})(world)
    for name, parameter in world.model.named_parameters():
        kinds = (parameter._backward_hooks, parameter._post_accumulate_grad_hooks)
        found[f"parameter {name}"] = [dict(kind or {}) for kind in kinds]
    for home in (torch_module, torch_optimizer):
        found |= {key: dict(v) for key, v in vars(home).items() if key.startswith("_global_")
                  and isinstance(v, dict)}  # fmt: skip
    own = vars(world.optimizer).items()
    return {**found, "optimizer": {key: dict(v) for key, v in own if key.endswith("_hooks")}}


def gradients(world: World) -> dict[str, Any]:
    return {name: exact(p.grad) for name, p in world.model.named_parameters()}


def change_data(tensor: Tensor) -> None:
    with torch.no_grad():
        tensor.view(-1)[0] += 1.0


MODEL = {
    "parameters": Clause(
        of_modules(lambda m: exact(m._parameters)), lambda w: change_data(w.first)
    ),
    "requires_grad": Clause(
        lambda w: {name: p.requires_grad for name, p in w.model.named_parameters()},
        lambda w: w.first.requires_grad_(False),
    ),
    "buffers": Clause(
        of_modules(lambda m: (exact(m._buffers), sorted(m._non_persistent_buffers_set))),
        lambda w: change_data(next(w.model.buffers())),
    ),
    "every module's mode": Clause(
        of_modules(lambda m: m.training),
        lambda w: [m.train(not m.training) for m in w.model.modules()],
    ),
    "modules": Clause(
        of_modules(lambda m: (id(m), type(m), list(m._modules))),
        lambda w: w.model.add_module("another", nn.Identity()),
    ),
    "attributes": Clause(
        of_modules(lambda m: exact({k: v for k, v in vars(m).items() if k not in INSIDE})),
        lambda w: setattr(w.model, "counter", 1),
    ),
    "gradients": Clause(gradients, lambda w: setattr(w.first, "grad", torch.ones_like(w.first))),
    "hooks": Clause(hooks, lambda w: w.model.register_forward_hook(lambda *_: None)),
    "state of the optimizer": Clause(
        lambda w: exact(w.optimizer.state), lambda w: w.optimizer.state.clear()
    ),
    "parameter groups of the optimizer": Clause(
        lambda w: [(id(group), exact(group)) for group in w.optimizer.param_groups],
        lambda w: w.optimizer.param_groups[0].update(lr=7.0),
    ),
    "batch": Clause(lambda w: exact(w.batch), lambda w: change_data(w.batch[0])),
    "generators of the model": Clause(
        lambda w: exact(w.generator), lambda w: torch.rand(1, generator=w.generator)
    ),
}

CLAUSES = {**MODEL, **REACHED, **PROCESS, **SWITCHES}
ON_DEVICE = {
    **CLAUSES,
    "random state of the device": Clause(
        lambda world: (
            torch.get_device_module(world.first.device)
            .get_rng_state(world.first.device)
            .numpy()
            .tobytes()
        ),
        lambda world: torch.get_device_module(world.first.device).manual_seed_all(5),
    ),
}


@pytest.fixture(autouse=True)
def _keep() -> Iterator[None]:
    with process_kept(), helpers_kept(), switches_kept():
        yield


# every clause after every ending ----------------------------------------------------------------

ENDINGS = endings(torch.OutOfMemoryError("CUDA out of memory (simulated)"), STEPS)


class Noise(nn.Module):
    """Draws from a generator of its own, counts in plain attributes, has all kinds of buffers."""

    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.generator = generator
        self.seen = [torch.zeros(3)]
        self.register_buffer("unsaved", torch.ones(2), persistent=False)
        self.register_buffer("later", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen[0] += 1
            x = x + 0.01 * torch.randn(x.shape, generator=self.generator, device=x.device)
        return x


def world(momentum: float = 0.4, device: str = "cpu") -> World:
    """A net that was trained before, with a layer in eval mode, hooks, and gradients to come."""
    torch.manual_seed(0)
    generator = generator_on(device)
    model = nn.Sequential(
        nn.Linear(6, 8),
        nn.BatchNorm1d(8, momentum=momentum),
        nn.ReLU(),
        Noise(generator),
        nn.Dropout(0.1),
        nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5).eval()),
        nn.Linear(8, 3),
    ).to(device)
    rng = np.random.default_rng(0)
    targets = torch.arange(30) % 3
    inputs = torch.tensor(rng.normal(5.0, 1.0, (30, 6)), dtype=torch.float32)
    inputs[range(30), targets] += 4.0
    batch = inputs.to(device), targets.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()
    model[1].reset_running_stats()
    model.helper = Helper()
    model[0].register_forward_pre_hook(lambda *_: None)
    model[0].weight.register_hook(lambda gradient: None)
    return World(model, batch, optimizer, generator)


def run_to(ending: Ending, held: World, happen: Callable[[], Any] = nothing) -> None:
    """A check that ends so; in its third training step `happen` happens."""
    in_forward, in_loss = staged(ending, happen)
    place = held.model[5].register_forward_hook(in_forward)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        in_loss()
        factor = torch.nan if ending.verdict == "warn" else 1.0
        return factor * nn.functional.cross_entropy(outputs, targets)

    try:
        steps = 80 if ending.verdict else STEPS
        report = check(held.model, held.batch, steps=steps, loss=loss, optimizer=held.optimizer)
    finally:
        place.remove()
    assert report.verdict == ending.verdict, report


def before_and_after(clauses: dict[str, Clause], name: str, device: str = "cpu") -> Any:
    held = world(0.001 if name == "fail" else 0.4, device)
    return around(clauses, held, ENDINGS[name], run_to)


@pytest.mark.parametrize("ending", ENDINGS)
def test_left_as_found(ending):
    assert changed(*before_and_after(CLAUSES, ending)) == []


@pytest.mark.device("only")
@pytest.mark.parametrize("ending", ["exception in forward at a step", "exception after training"])
def test_left_as_found_on_a_device(ending):
    assert changed(*before_and_after(ON_DEVICE, ending, DEVICE)) == []


@pytest.mark.parametrize("clause", CLAUSES)
def test_a_change_is_seen(clause):
    assert is_seen(CLAUSES[clause], world())


@pytest.mark.parametrize("clause", [name for name, each in CLAUSES.items() if each.undone])
def test_a_change_is_undone(clause):
    """What the user's loss does in the third training step, at one more step and an error."""
    held = world()
    before = readings(CLAUSES, held)
    with pytest.raises((Mistake, RuntimeError, InputError)):  # some changes end it before
        run_to(Ending(error=Mistake(), calls=3), held, lambda: CLAUSES[clause].change(held))
    assert changed(before, readings(CLAUSES, held)) == []


@pytest.mark.parametrize("error", INTERRUPTIONS)
@pytest.mark.parametrize("seconds", [0.002, 0.01, 0.03, 0.1])
def test_interrupted_anywhere(seconds, error):
    held = world()
    before = readings(CLAUSES, held)
    with pytest.raises(type(INTERRUPTIONS[error])), in_time(seconds, INTERRUPTIONS[error]):
        check(held.model, held.batch, steps=100_000)
    assert changed(before, readings(CLAUSES, held)) == []


# random models, random events -------------------------------------------------------------------


def meddle() -> None:
    """User code that changes every switch, and every generator, and puts nothing back."""
    for name, clause in SWITCHES.items():
        if clause.undone and name != "autocast":  # convolutions in bfloat16 take their time
            clause.change(None)
    np.random.seed(5)
    random.seed(5)


EVENTS: dict[str, Callable[[], Any]] = {
    "nothing": nothing,
    "an error": throw(Mistake()),
    "Ctrl-C": throw(KeyboardInterrupt()),
    "an exit": throw(SystemExit(3)),
    "no memory": throw(torch.OutOfMemoryError("CUDA out of memory (simulated)")),
    "no host memory": throw(MemoryError()),
    "meddling": meddle,
}


@settings(max_examples=100, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    seed=some.integers(0, 10_000),
    event=some.sampled_from(sorted(EVENTS)),
    place=some.sampled_from(["forward", "loss", "optimizer", "backward"]),
    calls=some.integers(0, 3 * STEPS),
    used=some.booleans(),
    mixed=some.booleans(),
    options=some.sampled_from([{}, {"planned_updates": 9}, {"strict": True}, {"device": "cpu"}]),
)
def test_any_net_any_event(seed, event, place, calls, used, mixed, options):
    builder = Builder(seed)
    model, batch = builder.net(builder.blocks(), dropout=0.2), builder.batch()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    if used:
        train(model, batch, 2, builder.task)
        LOSSES[builder.task](model(batch[0]), batch[1]).backward()
        optimizer.step()
    if mixed:
        next(model.children()).eval()
    happen = after(calls, EVENTS[event])
    if place == "forward":
        model[1].register_forward_hook(happen)
    if place == "backward":
        model[1].register_full_backward_hook(happen)
    if place == "optimizer":
        optimizer.register_step_post_hook(happen)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if place == "loss":
            happen()
        return LOSSES[builder.task](outputs, targets)

    model.helper = Helper()
    held = World(model, batch, optimizer)
    before = readings(CLAUSES, held)
    try:
        check(model, batch, steps=STEPS, loss=loss, optimizer=optimizer, seed=seed, **options)
    except (Mistake, KeyboardInterrupt, SystemExit, MemoryError, torch.OutOfMemoryError):
        assert event not in ("nothing", "meddling")
    except (InputError, RuntimeError):  # no step without gradients, or on the meta device
        assert event == "meddling"
    assert changed(before, readings(CLAUSES, held)) == []
