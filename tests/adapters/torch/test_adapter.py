"""The PyTorch adapter: what it reads, what it infers, and that it leaves everything as found."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn

from passes import in_training, on_training_path, with_batch_statistics
from pytest_bncheck import InputError, check
from pytest_bncheck.adapters.torch.adapter import TorchAdapter
from pytest_bncheck.adapters.torch.loss import infer, last_operation
from pytest_bncheck.maths.running import bessel
from pytest_bncheck.types import Recipe, Statistics


def conv(momentum: float | None = 0.1, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6, momentum=momentum, **options),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3),
        nn.BatchNorm2d(5, momentum=momentum, **options),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 4),
    )


def images(n: int = 8) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 10, 10, generator=generator) * 2 + 3, torch.arange(n) % 4


OPEN: list[TorchAdapter] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().restore()


def opened(model: nn.Module, batch: Any = None, steps: int = 0, **recipe: Any) -> TorchAdapter:
    lab = TorchAdapter(model, [batch or images()], Recipe(**recipe), None)
    lab.save()
    OPEN.append(lab)
    lab.begin()
    for _ in range(steps):
        lab.train_step(0)
    return lab


# statistics -------------------------------------------------------------------------------------


@pytest.mark.device
@pytest.mark.parametrize("momentum", [0.1, 0.01, 0.001, 0.0, None, 1.0])
def test_batch_statistics_are_the_batch_s(momentum: float | None) -> None:
    model = conv(momentum)
    lab = opened(model)
    _, batch, calls = with_batch_statistics(lab)
    x, _ = images()
    hidden = model[0](x.to(model[0].weight.device)).detach().cpu().double().numpy()
    np.testing.assert_allclose(batch.mean[0], hidden.mean(axis=(0, 2, 3)), rtol=2e-5)
    np.testing.assert_allclose(batch.var[0], hidden.var(axis=(0, 2, 3)), rtol=2e-5)
    assert calls.values == (8 * 8 * 8, 8 * 6 * 6)
    assert calls.training == (1, 1)


class Gated(nn.Module):
    """Doubles the input of a normalisation in training mode; may drop half of it out."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(6, 4)

    def forward(self, x: Any) -> Any:
        x = self.dropout(self.stem(x))
        return self.head(self.norm(2 * x if self.training else x).mean((2, 3)))


@pytest.mark.device
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_training_path_gives_its_batch_statistics_where_no_layer_draws(dropout: float) -> None:
    torch.manual_seed(0)
    model, forwards = Gated(dropout), []
    model.register_forward_hook(lambda *_: forwards.append(1))
    lab = opened(model)
    own = in_training(lab)
    assert on_training_path(lab) is not None
    before = len(forwards)
    again = in_training(lab)
    assert len(forwards) == before + (dropout > 0)
    if dropout:
        assert again.var[0] == pytest.approx(own.var[0], rel=0.5)
        assert (again.var[0] != own.var[0]).all()
    else:
        for one, other in zip((*again.mean, *again.var), (*own.mean, *own.var), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.device
def test_replaced_statistics_repeat_the_training_prediction() -> None:
    lab = opened(conv(0.01), steps=3)
    train, batch, _ = with_batch_statistics(lab)
    lab.write(batch, exact=True)
    replaced = lab.predict(0)
    np.testing.assert_allclose(replaced.outputs["output"], train.outputs["output"], atol=1e-5)


@pytest.mark.device
def test_stored_statistics_are_unbiased() -> None:
    model = conv()
    lab = opened(model, steps=1)
    statistics = Statistics((np.zeros(6), np.zeros(5)), (np.full(6, 2.0), np.full(5, 3.0)))
    lab.write(statistics)
    assert model[1].running_var[0].item() == pytest.approx(2.0 * bessel(8 * 8 * 8))
    np.testing.assert_allclose(lab.read().var[0], 2.0)
    lab.write(statistics, exact=True)
    assert model[1].running_var[0].item() == pytest.approx(2.0)


@pytest.mark.device
def test_history_obeys_the_recursion_and_counts_calls() -> None:
    lab = opened(conv(0.1), steps=4)
    history = lab.history
    assert len(history) == 5
    assert lab.calls.training == (4, 4)
    before, after = history[-2:]
    implied = (after.mean[0] - 0.9 * before.mean[0]) / 0.1
    assert np.isfinite(implied).all()
    np.testing.assert_array_equal(after.mean[0], lab.read().mean[0])


def test_a_layer_called_twice_converges_to_what_two_calls_a_step_lead_to() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(4, momentum=0.3), nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            return self.head(self.norm(x) + self.norm(3 * x + 1))

    x = torch.randn(16, 4)
    model = Shared()
    lab = opened(model, (x, torch.arange(16) % 4))
    _, batch, calls = with_batch_statistics(lab)
    assert calls.training == (2,)
    with torch.no_grad():
        for _ in range(200):
            model.train()
            model(x)
    np.testing.assert_allclose(batch.mean[0], model.norm.running_mean.numpy(), rtol=1e-4)


@pytest.mark.device
def test_a_layer_of_the_user_s_without_momentum_is_measured() -> None:
    class Norm(nn.Module):
        """Keeps 0.8 of its statistics and has no momentum to read."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(4))
            self.register_buffer("running_var", torch.ones(4))

        def forward(self, x: Any) -> Any:
            if self.training:
                mean, var = x.mean(0), x.var(0, unbiased=False)
                with torch.no_grad():
                    self.running_mean.mul_(0.8).add_(0.2 * mean)
                    self.running_var.mul_(0.8).add_(0.2 * var)
            else:
                mean, var = self.running_mean, self.running_var
            return (x - mean) / (var + 1e-5).sqrt()

    model = nn.Sequential(Norm(), nn.Linear(4, 4))
    lab = opened(model, (torch.randn(16, 4), torch.arange(16) % 4))
    (layer,) = lab.layers()
    assert layer.update_rate == pytest.approx(0.2, rel=1e-4)
    assert not layer.frozen
    assert not layer.stock


@pytest.mark.device
def test_layers_come_in_the_order_of_their_first_call() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second, self.first = nn.BatchNorm1d(4), nn.BatchNorm1d(3)
            self.map, self.head = nn.Linear(3, 4), nn.Linear(4, 4)
            self.unused = nn.BatchNorm1d(9)

        def forward(self, x: Any) -> Any:
            return self.head(self.second(self.map(self.first(x))))

    lab = opened(Reversed(), (torch.randn(8, 3), torch.arange(8) % 4), steps=2)
    assert [layer.name for layer in lab.layers()] == ["first", "second", "unused"]
    assert [len(mean) for mean in lab.history[0].mean] == [3, 4, 9]
    assert lab.calls.training == (2, 2, 0)


# loss -------------------------------------------------------------------------------------------


LABELS = torch.tensor([0, 1, 2, 0])
LOG3, LOG2 = np.log(3), np.log(2)


@pytest.mark.parametrize(
    ("operation", "shape", "targets", "expected"),
    [
        ("logits", (4, 3), LABELS, LOG3),
        ("logits", (4, 3), LABELS.int(), LOG3),
        ("logits", (4, 3), torch.eye(3)[LABELS], LOG3),
        ("log_softmax", (4, 3), LABELS, LOG3),
        ("softmax", (4, 3), LABELS, LOG3),
        ("softmax", (4, 3), torch.eye(3)[LABELS], LOG3),
        ("logits", (4, 3), torch.eye(3, dtype=torch.long)[LABELS], LOG3),
        ("logits", (4, 1), torch.tensor([0.0, 1, 1, 0]), LOG2),
        ("logits", (4,), torch.tensor([0, 1, 1, 0]), LOG2),
        ("sigmoid", (4, 1), torch.tensor([0.0, 1, 1, 0]), LOG2),
        ("logits", (4, 2), torch.ones(4, 2), 1.0),
        ("logits", (4, 1), torch.full((4, 1), 2.0), 4.0),
        ("logits", (2, 3, 5, 5), torch.zeros(2, 5, 5, dtype=torch.long), LOG3),
    ],
)
def test_inferred_loss(operation: str, shape: Any, targets: Any, expected: float) -> None:
    """Zero logits are uniform probabilities, whatever the last operation."""
    zeros = torch.zeros(shape, requires_grad=True)
    outputs = {
        "logits": lambda: zeros * 1.0,
        "softmax": lambda: zeros.softmax(1),
        "log_softmax": lambda: zeros.log_softmax(1),
        "sigmoid": lambda: zeros.sigmoid(),
    }[operation]()
    assert last_operation(outputs) == operation
    loss = infer(outputs, targets)(outputs, targets)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("last", [nn.Sigmoid(), nn.Identity()], ids=["sigmoid", "logits"])
def test_one_column_in_any_dtype(dtype: Any, last: nn.Module) -> None:
    """Binary cross-entropy takes targets of the outputs' dtype only."""
    x, y = images()
    model = nn.Sequential(nn.Flatten(), nn.Linear(300, 1), last).to(dtype)
    report = check(
        model, (x.to(dtype), y % 2), steps=30, optimizer=lambda p: torch.optim.SGD(p, 1e-2)
    )
    assert report.predictions.train.accuracy == 1.0
    assert report.verdict == "pass", str(report)


def test_one_column_in_the_unit_interval_is_no_probability() -> None:
    logits = (torch.rand(4, 1, requires_grad=True) * 1.0).reshape(4)
    assert last_operation(logits) == "logits"
    assert last_operation(torch.sigmoid(logits).reshape(4, 1)) == "sigmoid"


def test_unclear_targets_ask_for_a_loss() -> None:
    with pytest.raises(InputError, match=r"loss: none was given.*bncheck_loss"):
        check(conv(), (images()[0], torch.zeros(8, 7)), steps=1)


def test_a_label_out_of_range_is_named() -> None:
    x, y = images()
    with pytest.raises(InputError, match=r"label 9, but the model has 4 outputs.*0 to 3"):
        check(conv(), (x, torch.where(y == 3, 9, y)), steps=1)


# input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((torch.zeros(0, 3, 10, 10), torch.zeros(0)), "holds no sample"),
        (torch.zeros(4, 3, 10, 10), r"expected \(inputs, targets\)"),
        ((np.array(["a"]), np.array([0])), "dtype"),
    ],
)
def test_bad_batches(batch: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(conv(), batch, steps=1)


def test_bad_devices_optimizers_and_frozen_models() -> None:
    with pytest.raises(InputError, match="device: 'cuda:7' is not there; this machine has cpu"):
        check(conv(), images(), device="cuda:7")
    with pytest.raises(InputError, match=r"optimizer: expected a torch.optim.Optimizer.*int"):
        check(conv(), images(), optimizer=lambda params: 3)
    with pytest.raises(InputError, match="train_step returned None"):
        check(conv(), images(), train_step=lambda model, batch: None)
    frozen = conv()
    frozen.requires_grad_(False)
    with pytest.raises(InputError, match="it has no trainable parameter"):
        check(frozen, images(), steps=2)
    assert check(frozen, images(), steps=0).steps == 0


def test_numpy_batches_and_several_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 4)

        def forward(self, a: Any, b: Any) -> Any:
            return self.head(self.norm(torch.cat([a, b], 1)))

    rng = np.random.default_rng(0)
    a, b, y = rng.normal(size=(16, 3)), rng.normal(size=(16, 3)), np.arange(16) % 4
    for inputs in ((a, b), {"a": a, "b": b}):
        assert check(Two(), (inputs, y), steps=150, seed=1).predictions.gap is not None


# as found ---------------------------------------------------------------------------------------


class Everything(nn.Module):
    """A model with every kind of state that a check could leave changed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = conv()
        self.hidden = [nn.BatchNorm1d(4)]  # reached by the walk alone
        self.register_buffer("later", None)
        self.register_buffer("temporary", torch.zeros(2), persistent=False)
        self.counter, self.log = 0, []
        self.cache: dict[str, Any] = {"state": torch.zeros(2)}
        self.generator = torch.Generator().manual_seed(5)

    def forward(self, x: Any) -> Any:
        self.counter += 1
        self.log.append(self.counter)
        self.cache["state"] += 1
        self.later = torch.ones(1)
        self.temporary += 1
        torch.rand(1, generator=self.generator)
        random.random()
        np.random.rand()
        return self.hidden[0](self.body(x + 0 * torch.rand(1)))


def state_of(model: Any) -> list[Any]:
    """Everything that is to be as found, as bytes and plain values."""
    tensors = [*model.parameters(), *model.buffers(), *model.hidden[0].buffers()]
    tensors += [model.cache["state"]]
    return [
        [t.detach().numpy().tobytes() for t in tensors],
        [t.data_ptr() for t in tensors],
        [None if t.grad is None else t.grad.numpy().tobytes() for t in tensors],
        [m.training for m in [*model.modules(), model.hidden[0]]],
        [len(m._forward_pre_hooks) for m in model.modules()],
        (model.later is None, model.counter, list(model.log)),
        model.generator.get_state().numpy().tobytes(),
        torch.get_rng_state().numpy().tobytes(),
        random.getstate(),
        np.random.get_state()[1].tobytes(),
        (torch.is_grad_enabled(), torch.get_default_dtype()),
    ]


class Fault(Exception):
    """What a user's code raises."""


def failing_loss(step: int) -> Any:
    calls = []

    def loss(outputs: Any, targets: Any) -> Any:
        calls.append(1)
        if len(calls) > step:
            torch.set_grad_enabled(False)
            raise Fault
        return nn.functional.cross_entropy(outputs, targets)

    return loss


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("end", ["pass", "loss raises", "interrupt", "late"])
def test_everything_is_as_found(mode: str, end: str) -> None:
    model = Everything()
    getattr(model, mode)()
    x, y = images()
    model.body[0].weight.grad = torch.ones_like(model.body[0].weight)
    before = state_of(model)
    options: dict[str, Any] = {"steps": 3}
    if end == "loss raises":
        with pytest.raises(Fault):
            check(model, (x, y), loss=failing_loss(1), **options)
    elif end == "late":
        with pytest.raises(Fault):
            check(model, (x, y), loss=failing_loss(4), **options)
    elif end == "interrupt":

        def interrupt(outputs: Any, targets: Any) -> Any:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            check(model, (x, y), loss=interrupt, **options)
    else:
        check(model, (x, y), **options)
    assert state_of(model) == before


@pytest.mark.device
def test_an_optimizer_instance_is_as_found() -> None:
    model = conv()
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(1e-2))
    before = copy.deepcopy(optimizer.state_dict())
    rate = optimizer.param_groups[0]["lr"]
    check(model, images(), optimizer=optimizer, steps=3)
    assert optimizer.state_dict() == before
    assert optimizer.param_groups[0]["lr"] is rate
    assert len(optimizer.state) == 0


@pytest.mark.device
def test_a_graph_that_the_user_holds_stays_valid() -> None:
    model = conv()
    x, y = images()
    loss = nn.functional.cross_entropy(model(x), y)
    check(model, (x, y), steps=2)
    loss.backward()


def test_a_batch_changed_in_place_is_put_back() -> None:
    class Normalises(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = conv()

        def forward(self, x: Any) -> Any:
            return self.body(x.sub_(1.0))

    x, y = images()
    before = x.clone()
    check(Normalises(), (x, y), steps=2)
    assert torch.equal(x, before)


@pytest.mark.parametrize("restore", [True, False])
def test_tensors_that_share_memory_or_cannot_change_are_no_obstacle(restore: bool) -> None:
    """`expand` gives many elements one place; what inference mode makes is never written again."""
    with torch.inference_mode():
        scale = torch.full((1,), 2.0)

    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.places = conv(), torch.arange(3.0)[:, None]
            self.register_buffer("bias", torch.arange(4.0).expand(8, 4))
            self.scale = scale

        def forward(self, x: Any, weights: Any) -> Any:
            self.places.add_(1.0)
            with torch.no_grad():
                weighted = self.scale * weights
            return self.body(x) * weighted + self.bias

    model, (x, y) = Weighted(), images()
    check(model, ((x, torch.ones(8, 1).expand(8, 4)), y), steps=2, restore=restore)
    assert torch.equal(model.bias, torch.arange(4.0).expand(8, 4))
    assert model.bias.stride() == (0, 1)
    written = 0.0 if restore else 2.0  # by the training steps alone
    assert torch.equal(model.places, torch.arange(3.0)[:, None] + written)
    assert model.scale is scale


@pytest.mark.device
def test_slots_are_put_back() -> None:
    @dataclass(slots=True)
    class Memory:
        seen: Any
        count: int = 0

    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.memory = conv(), Memory(torch.zeros(2))

        def forward(self, x: Any) -> Any:
            self.memory.seen += 1.0
            self.memory.count += 1
            return self.body(x)

    model = Remembers()
    before = model.memory.seen
    check(model, images(), steps=2)
    assert model.memory.seen is before
    assert torch.equal(before, torch.zeros(2))
    assert model.memory.count == 0


def test_a_legacy_generator_of_numpy_is_put_back() -> None:
    class Draws(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.numbers = conv(), np.random.RandomState(3)

        def forward(self, x: Any) -> Any:
            return self.body(x + self.numbers.normal())

    model = Draws()
    check(model, images(), steps=2)
    assert model.numbers.rand() == np.random.RandomState(3).rand()


def test_trained_weights_can_be_kept() -> None:
    model = conv()
    before = [p.detach().clone() for p in model.parameters()]
    model.eval()
    report = check(model, images(), steps=5, restore=False)
    moved = [not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
    assert all(moved)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert model[1].num_batches_tracked == 5
    x, y = images()
    loss = nn.functional.cross_entropy(model(x), y)
    assert loss.item() == pytest.approx(report.predictions.eval.loss, rel=1e-6)


@pytest.mark.device
def test_lazy_modules_are_built_first() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(4))
    report = check(model, images(), steps=2)
    assert [layer.type for layer in report.layers] == ["BatchNorm2d"]
    assert torch.equal(model[1].running_mean, torch.zeros(4))


@pytest.mark.device
def test_the_same_seed_gives_the_same_numbers() -> None:
    model = nn.Sequential(conv(), nn.Dropout(0.5), nn.Linear(4, 4))
    one, two = (check(model, images(), steps=5, seed=7).to_dict() for _ in range(2))
    other = check(model, images(), steps=5, seed=8)
    for report in (one, two):
        del report["seconds"]
    assert one == two
    assert other.training.loss != one["training"]["loss"]


@pytest.mark.device
def test_a_user_s_exception_keeps_its_traceback_and_says_where() -> None:
    def forward(model: Any, batch: Any) -> Any:
        raise Fault("mine")

    with pytest.raises(Fault) as caught:
        check(conv(), images(), forward=forward, steps=3)
    assert caught.traceback[-1].name == "forward"
    assert "training step 1 of 3" in caught.value.__notes__[0]
