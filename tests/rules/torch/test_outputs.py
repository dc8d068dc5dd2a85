"""Outputs of many forms: masked, of another layout than the batch, of no classes."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn
from torch.nn import functional

from common_nets import SEED
from pytest_bncheck import check


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
@SEED
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
@SEED
@pytest.mark.parametrize("loss", [triplet, supervised_contrast])
def test_embeddings_are_no_decisions(net: Any, seed: int, loss: Any) -> None:
    batch = classes_of(seed)
    for options in ({"loss": loss}, {"train_step": step_with(loss), "forward": of_first}):
        assert accuracies(check(net(16), batch, steps=20, **options)) == (None, None)
    assert accuracies(check(net(16), batch, steps=0, loss=loss)) == (None, None)


def of_first(model: nn.Module, batch: Any) -> Tensor:
    return model(batch[0])


@pytest.mark.parametrize("net", [mlp, cnn])
@SEED
def test_embeddings_below_the_head_of_a_step_are_no_decisions(net: Any, seed: int) -> None:
    batch, head = classes_of(seed), Cosine(16, 4)
    step = step_with(lambda e, y: functional.cross_entropy(head(e), y), head)
    report = check(net(16), batch, steps=20, train_step=step)
    assert accuracies(report) == (None, None)
    assert report.predictions.eval.loss > 0.0  # of the step itself


@pytest.mark.parametrize("net", [mlp, cnn])
@SEED
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
    """As many numbers for each sample as it likes."""
    return [row[: 1 + k % 3] for k, row in enumerate(logits)]


def decoded(logits: Tensor) -> list[str]:
    return [str(int(k)) for k in logits.argmax(1)]


FORMS = [lambda z: z.argmax(1), lambda z: z.topk(2).indices, above_zero, decoded]


@pytest.mark.parametrize("net", [mlp, cnn])
@SEED
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


# outputs of another layout than the batch ---------------------------------------------------------


class TimeMajor(nn.Module):
    """Log-probabilities of shape (T, N, C), as CTC wants them."""

    def __init__(self, recurrent: bool, momentum: float, bad: bool) -> None:
        super().__init__()
        self.first = nn.Conv1d(6, 24, 3, padding=1)
        self.norm = nn.BatchNorm1d(24, momentum=momentum)
        self.rnn = nn.GRU(24, 24, bidirectional=True) if recurrent else None
        self.last = nn.Linear(48 if recurrent else 24, 5)
        self.bad = bad

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(self.first(x)).relu().permute(2, 0, 1)
        z = self.last(z if self.rnn is None else self.rnn(z)[0]).log_softmax(-1)
        return z.flip(-1) if self.bad and not self.training else z


def ctc(x: Tensor, y: Tensor, length: int) -> Any:
    n = len(x)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        lengths = torch.full((n,), length), torch.full((n,), 4)
        return functional.ctc_loss(outputs, targets, *lengths)

    return (x, y), loss


def speech(recurrent: bool, seed: int, momentum: float = 0.3, bad: bool = False) -> Any:
    torch.manual_seed(seed)
    length = 10 if recurrent else 16  # as long as half a batch, and not
    batch, loss = ctc(torch.randn(20, 6, length) * 3 + 4, torch.randint(1, 5, (20, 4)), length)
    model = TimeMajor(recurrent, momentum, bad)
    return check(model, batch, steps=100, loss=loss, optimizer=adam(2e-3))


class Graphs(nn.Module):
    """Logits for 24 graphs of 10 nodes each."""

    def __init__(self, deep: bool, momentum: float, bad: bool) -> None:
        super().__init__()
        self.nodes = nn.Linear(6, 32)
        self.norm = nn.BatchNorm1d(32, momentum=momentum)
        more = [nn.Linear(32, 32), nn.ReLU()] if deep else []
        self.last = nn.Sequential(*more, nn.Linear(32, 3))
        self.bad = bad

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        z = self.norm(self.nodes(x)).relu()
        logits = self.last(torch.zeros(24, 32).index_add_(0, graph, z) / 10)
        return logits.flip(1) if self.bad and not self.training else logits


def graphs(deep: bool, seed: int, momentum: float = 0.3, bad: bool = False) -> Any:
    torch.manual_seed(seed)
    graph, y = torch.arange(24).repeat_interleave(10), torch.arange(24) % 3
    x = torch.randn(240, 6) + torch.eye(3, 6)[y[graph]] * 2 + 3
    return check(Graphs(deep, momentum, bad), ((x, graph), y), steps=80, optimizer=adam())


class Packed(nn.Module):
    """One row for each element of sequences that are as long as `lengths`."""

    def __init__(self, deep: bool, momentum: float, bad: bool) -> None:
        super().__init__()
        widths = (4, 32, 32) if deep else (4, 32)
        self.body = nn.Sequential()
        for width in widths[:-1]:
            norm = nn.BatchNorm1d(32, momentum=momentum)
            self.body.extend([nn.Linear(width, 32), norm, nn.ReLU()])
        self.body.append(nn.Linear(32, 2))
        self.bad = bad

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        rows = torch.cat([one[:n] for one, n in zip(x, lengths.tolist(), strict=True)])
        return self.body(rows) * (-1 if self.bad and not self.training else 1)


def packed(deep: bool, seed: int, momentum: float = 0.3, bad: bool = False) -> Any:
    torch.manual_seed(seed)
    x, lengths = torch.randn(16, 9, 4) * 2 + 3, torch.arange(16) % 8 + 2
    y = [one[:n, :2] - one[:n, 2:] for one, n in zip(x, lengths.tolist(), strict=True)]

    def loss(outputs: Tensor, targets: Any) -> Tensor:
        return functional.mse_loss(outputs, torch.cat(targets))

    model = Packed(deep, momentum, bad)
    return check(model, ((x, lengths), y), steps=150, loss=loss, optimizer=adam())


LAYOUTS = pytest.mark.parametrize("kind", [speech, graphs, packed])
VARIANT = pytest.mark.parametrize("variant", [False, True])


@LAYOUTS
@VARIANT
@SEED
def test_healthy_outputs_of_any_layout_pass(kind: Any, variant: bool, seed: int) -> None:
    report = kind(variant, seed)
    assert report.verdict == "pass", str(report)
    assert report.predictions.gap is not None


@LAYOUTS
@VARIANT
@SEED
def test_slow_statistics_show_in_any_layout(kind: Any, variant: bool, seed: int) -> None:
    report = kind(variant, seed, momentum=0.001)
    assert [*report.findings, *report.notes][0].code == "BN101", str(report)
    assert report.predictions.gap > 0.1


@LAYOUTS
@VARIANT
def test_another_path_shows_in_any_layout(kind: Any, variant: bool) -> None:
    report = kind(variant, 0, bad=True)
    assert report.verdict == "fail"
    assert codes(report) == ["BN201"], str(report)


class Auxiliary(nn.Module):
    """Several outputs in training mode, and in eval mode the first of them."""

    def __init__(self, body: nn.Module, bad: bool = False) -> None:
        super().__init__()
        self.body, self.side, self.bad = body, nn.Linear(4, 4), bad

    def forward(self, x: Tensor) -> Any:
        logits = self.body(x)
        if self.training:
            return logits, self.side(logits)
        return logits.flip(1) if self.bad else logits


@pytest.mark.parametrize("net", [mlp, cnn])
@SEED
def test_a_tuple_in_one_mode_and_a_tensor_in_the_other(net: Any, seed: int) -> None:
    assert check(Auxiliary(net(4)), classes_of(seed), steps=80, optimizer=adam()).verdict == "pass"
    report = check(Auxiliary(net(4), bad=True), classes_of(seed), steps=80, optimizer=adam())
    assert codes(report) == ["BN201"], str(report)


class Usage(nn.Module):
    """Beside its outputs one vector for the whole batch, which half a batch changes."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.body(x)
        return logits, logits.softmax(1).mean(0)


@pytest.mark.parametrize("net", [mlp, cnn])
@SEED
def test_what_belongs_to_the_whole_batch_is_no_dependence(net: Any, seed: int) -> None:
    report = check(Usage(net(4)), classes_of(seed), steps=80, optimizer=adam())
    assert report.verdict == "pass", str(report)


@pytest.mark.parametrize("net", [mlp, cnn])
@SEED
def test_without_a_gap_the_decisions_speak(net: Any, seed: int) -> None:
    """Class indices in eval mode, which are right or wrong like others."""
    torch.manual_seed(seed)
    x = torch.randn(64, 8) * 2 + 3
    report = check(
        Decides(net(4, momentum=0.001), lambda z: z.argmax(1)),
        (x, x[:, :4].argmax(1)),
        steps=80,
        optimizer=adam(),
    )
    assert report.predictions.gap is None
    assert report.predictions.eval.accuracy < report.predictions.train.accuracy - 0.1
    assert "BN101" in codes(report), str(report)
    assert "cannot be aligned" in str(report)


@pytest.mark.parametrize("inner", [nn.ReLU, partial(nn.LayerNorm, 16), partial(nn.Dropout, 0.2)])
def test_a_loss_that_is_not_finite_never_passes(inner: Any) -> None:
    """Also where no layer has running statistics: both modes are equally broken then."""
    model = nn.Sequential(nn.Linear(8, 16), inner(), nn.Linear(16, 3))
    batch = torch.randn(12, 8), torch.arange(12) % 3
    report = check(model, batch, loss=lambda y, t: functional.cross_entropy(y, t) * math.nan)
    assert codes(report) == ["BN202"], str(report)
    assert "The loss is not finite." in str(report)
