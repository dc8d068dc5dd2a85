"""Outputs of many forms: masked, of another layout than the batch, of no classes."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn
from torch.nn import functional

from pytest_bncheck import check

SEEDS = (0, 1)


def adam(rate: float = 5e-3) -> Any:
    return lambda parameters: torch.optim.Adam(parameters, rate)


def codes(report: Any) -> list[str]:
    return [finding.code for finding in report.findings]


def mlp(outputs: int, momentum: float = 0.1) -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 32), nn.BatchNorm1d(32, momentum=momentum), nn.ReLU(), nn.Linear(32, outputs)
    )


def cnn(outputs: int, momentum: float = 0.1) -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8)),
        nn.Conv1d(1, 16, 3, padding=1),
        nn.BatchNorm1d(16, momentum=momentum),
        nn.ReLU(),
        nn.Conv1d(16, 16, 3, padding=1),
        nn.BatchNorm1d(16, momentum=momentum),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, outputs),
    )


# entries that are not finite ----------------------------------------------------------------------


class Masked(nn.Module):
    """Sample k has n values; the others are `hole`, in eval mode possibly one more."""

    def __init__(self, body: nn.Module, hole: float, one_more: bool = False) -> None:
        super().__init__()
        self.body, self.hole, self.one_more = body, hole, one_more

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        kept = n - int(self.one_more and not self.training)
        return self.body(x).masked_fill(torch.arange(4) >= kept[:, None], self.hole)


def ragged_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    known = ~torch.isnan(targets)
    return ((outputs - targets)[known] ** 2).mean() if known.any() else 0 * outputs.sum()


def ragged(body: nn.Module, seed: int, **options: Any) -> Any:
    torch.manual_seed(seed)
    x, n = torch.randn(48, 8) + 1, torch.arange(48) % 4 + 1
    targets = (x[:, :4] * 2).masked_fill(torch.arange(4) >= n[:, None], math.nan)
    model = Masked(body, math.nan, **options)
    return check(model, ((x, n), targets), steps=150, loss=ragged_loss, optimizer=adam())


def actions(body: nn.Module, seed: int) -> Any:
    torch.manual_seed(seed)
    x, n = torch.randn(48, 8) + 1, torch.arange(48) % 3 + 2
    y = torch.where(x[:, 0] > 1, n - 1, 0)
    return check(Masked(body, -math.inf), ((x, n), y), steps=150, optimizer=adam())


@pytest.mark.parametrize("net", [mlp, cnn])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", [ragged, actions])
def test_masks_of_nan_and_infinity_are_no_difference(kind: Any, net: Any, seed: int) -> None:
    report = kind(net(4), seed)
    assert report.verdict == "pass", str(report)
    assert report.predictions.gap < 0.1


@pytest.mark.parametrize("net", [mlp, cnn])
@pytest.mark.parametrize("kind", [ragged, actions])
def test_behind_masks_slow_statistics_are_seen(kind: Any, net: Any) -> None:
    report = kind(net(4, momentum=0.001), 0)
    assert "BN101" in codes(report), str(report)
    assert math.isfinite(report.predictions.gap)


@pytest.mark.parametrize("net", [mlp, cnn])
def test_a_hole_that_only_eval_mode_has_never_passes(net: Any) -> None:
    report = ragged(net(4), 0, one_more=True)
    assert report.verdict == "fail", str(report)
    assert "BN201" in codes(report)


# accuracy of classifications only -----------------------------------------------------------------


def classes_of(seed: int, shift: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    y = torch.arange(32) % 4
    return torch.randn(4, 8)[y] * 2 + 2 + 0.5 * torch.randn(32, 8), y + shift


def triplet(e: Tensor, y: Tensor) -> Tensor:
    apart, same = torch.cdist(e, e), y[:, None] == y[None]
    return functional.relu((apart * same).amax(1) - (apart + 9 * same).amin(1) + 0.5).mean()


def supervised_contrast(e: Tensor, y: Tensor) -> Tensor:
    e = functional.normalize(e, dim=1)
    others = ~torch.eye(len(e), dtype=torch.bool)
    scores = (e @ e.T / 0.2).masked_fill(~others, -1e9).log_softmax(1)
    return -scores[(y[:, None] == y[None]) & others].mean()


class Cosine(nn.Module):
    """The head of a margin loss over embeddings, which the model itself does not have."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(classes, width))

    def forward(self, e: Tensor) -> Tensor:
        return 8 * functional.normalize(e, dim=1) @ functional.normalize(self.centres, dim=1).T


def step_with(loss: Any, head: nn.Module | None = None) -> Any:
    made: list[Any] = []

    def step(model: nn.Module, batch: Any) -> Tensor:
        if not made:
            parameters = [*model.parameters(), *(head.parameters() if head else ())]
            made.append(torch.optim.Adam(parameters, 1e-3))
        value = loss(model(batch[0]), batch[1])
        made[0].zero_grad()
        value.backward()
        made[0].step()
        return value

    return step


def accuracies(report: Any) -> tuple[float | None, float | None]:
    return report.predictions.train.accuracy, report.predictions.eval.accuracy


@pytest.mark.parametrize("net", [mlp, cnn])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("loss", [triplet, supervised_contrast])
def test_embeddings_are_no_decisions(net: Any, seed: int, loss: Any) -> None:
    batch = classes_of(seed)
    for options in ({"loss": loss}, {"train_step": step_with(loss), "forward": of_first}):
        assert accuracies(check(net(16), batch, steps=20, **options)) == (None, None)
    assert accuracies(check(net(16), batch, steps=0, loss=loss)) == (None, None)


def of_first(model: nn.Module, batch: Any) -> Tensor:
    return model(batch[0])


@pytest.mark.parametrize("net", [mlp, cnn])
@pytest.mark.parametrize("seed", SEEDS)
def test_embeddings_below_the_head_of_a_step_are_no_decisions(net: Any, seed: int) -> None:
    batch, head = classes_of(seed), Cosine(16, 4)
    step = step_with(lambda e, y: functional.cross_entropy(head(e), y), head)
    report = check(net(16), batch, steps=20, train_step=step)
    assert accuracies(report) == (None, None)
    assert report.predictions.eval.loss is None


@pytest.mark.parametrize("net", [mlp, cnn])
@pytest.mark.parametrize("seed", SEEDS)
def test_what_agrees_with_cross_entropy_is_a_classification(net: Any, seed: int) -> None:
    batch = classes_of(seed)
    smooth = nn.CrossEntropyLoss(label_smoothing=0.1)
    given = [
        {},
        {"loss": smooth},
        {"loss": lambda o, y: functional.nll_loss(o.log_softmax(1), y) + 1e-4 * (o**2).mean()},
        {"train_step": step_with(functional.cross_entropy)},
    ]
    for options in given:
        report = check(net(4), batch, steps=60, **(options or {"optimizer": adam()}))
        assert None not in accuracies(report), options
    report = check(net(4), batch, steps=0, loss=given[2]["loss"])
    assert None not in accuracies(report)


@pytest.mark.parametrize("net", [mlp, cnn])
def test_labels_out_of_range_have_no_accuracy(net: Any) -> None:
    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, labels - 100)

    assert accuracies(check(net(4), classes_of(0, 100), steps=20, loss=loss)) == (None, None)


# eval mode returns something else -----------------------------------------------------------------


class Decides(nn.Module):
    """Logits in training mode, and in eval mode what becomes of them."""

    def __init__(self, body: nn.Module, decide: Any) -> None:
        super().__init__()
        self.body, self.decide = body, decide

    def forward(self, x: Tensor) -> Any:
        logits = self.body(x)
        return logits if self.training else self.decide(logits)


def above_zero(logits: Tensor) -> list[Tensor]:
    return [row[row > 0] for row in logits]


def decoded(logits: Tensor) -> list[str]:
    return [str(int(k)) for k in logits.argmax(1)]


FORMS = [lambda z: z.argmax(1), lambda z: z.topk(2).indices, above_zero, decoded]


@pytest.mark.parametrize("net", [mlp, cnn])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("decide", FORMS)
def test_what_no_loss_takes_has_none(net: Any, seed: int, decide: Any) -> None:
    for steps in (0, 60):
        report = check(Decides(net(4), decide), classes_of(seed), steps=steps)
        assert report.predictions.eval.loss is None
        assert report.predictions.gap is None
        assert "BN201" not in codes(report)
    assert report.verdict == "pass", str(report)


@pytest.mark.parametrize("net", [mlp, cnn])
def test_an_inferred_regression_is_not_broadcast(net: Any) -> None:
    x, _ = classes_of(0)
    model = Decides(net(2), lambda z: z[:, :1])
    report = check(model, (x, x[:, :2] * 2), steps=60)
    assert report.predictions.eval.loss is None


@pytest.mark.parametrize("net", [mlp, cnn])
def test_a_given_loss_says_itself_what_it_cannot_take(net: Any) -> None:
    model = Decides(net(4), lambda z: z.argmax(1))
    with pytest.raises(RuntimeError):
        check(model, classes_of(0), steps=20, loss=functional.cross_entropy)
