"""Outputs of every kind that PyTorch has, and those of eval mode that are of another kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pytest_bncheck import InputError, check

X = 3 + torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 3).long()


class Net(nn.Module):
    """Returns what `form` makes of its logits, in eval mode only if told so."""

    def __init__(self, form: Callable[[Tensor], Any], *, only_eval: bool, momentum: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16, momentum=momentum))
        self.head = nn.Linear(16, 2)
        self.form, self.only_eval = form, only_eval

    def forward(self, x: Tensor) -> Any:
        self.logits = self.head(self.body(x).relu())
        return self.logits if self.training and self.only_eval else self.form(self.logits)


class Pair(list):  # type: ignore[type-arg]
    def __init__(self, first: Any, second: Any) -> None:
        super().__init__([first, second])


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "sparse": lambda z: z.to_sparse(),
    "complex": lambda z: torch.complex(z, -z),
    "8 bits": lambda z: z.to(torch.float8_e4m3fn),
    "nested": lambda z: torch.nested.as_nested_tensor(z, layout=torch.jagged),
    "a list with a constructor of its own": lambda z: Pair(z, z),
    "a single number": lambda z: z.mean(),
}

DECIDED: dict[str, Callable[[Tensor], Any]] = {
    "class indices": lambda z: z.argmax(1),
    "rows of varying length": lambda z: [row[row > 0] for row in z],
    "the best": lambda z: z.topk(1),
    "text": lambda z: ["ab"[k] for k in z.argmax(1)],
    "boxes": lambda z: [{"boxes": row[None], "score": row.max()[None]} for row in z],
    "an array": lambda z: z.argmax(1).numpy(),
    "nothing": lambda z: None,
    "another number of columns": lambda z: z[:, :1],
}


def optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 0.05)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("form", FORMS)
def test_the_users_loss_takes_what_no_other_code_can(form: str) -> None:
    net = Net(FORMS[form], only_eval=False, momentum=0.01)
    loss = lambda outputs, targets: cross_entropy(net.logits, targets)  # noqa: E731
    report = check(net, (X, Y), loss=loss, optimizer=optimizer, steps=6)
    assert "BN101" in [finding.code for finding in report.findings], str(report)
    assert (report.predictions.gap is None) == (form in ("nested", "a single number"))


@pytest.mark.parametrize("form", DECIDED)
@pytest.mark.parametrize("steps", [0, 6])
def test_eval_mode_may_return_what_the_inferred_loss_cannot_take(form: str, steps: int) -> None:
    net = Net(DECIDED[form], only_eval=True, momentum=0.01)
    report = check(net, (X, Y), optimizer=optimizer, steps=steps)
    codes = [finding.code for finding in report.findings]
    expected = "BN101" if steps else "BN401"
    assert expected in codes or form in ("another number of columns", "the best"), str(report)
    if form == "class indices" and steps:
        assert report.predictions.train.accuracy is not None
        assert report.predictions.eval.accuracy < report.predictions.train.accuracy
    if report.predictions.gap is None and steps:
        assert "cannot be aligned" in str(report)


def test_a_healthy_model_that_returns_class_indices_passes() -> None:
    report = check(Net(DECIDED["class indices"], only_eval=True, momentum=0.1), (X, Y), steps=80)
    assert report.verdict == "pass", str(report)
    assert report.predictions.eval.accuracy == pytest.approx(
        report.predictions.train.accuracy, abs=0.07
    )


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("form", ["to_sparse", "to_sparse_csr"])
def test_a_buffer_may_be_sparse(form: str) -> None:
    class Neighbours(Net):
        def forward(self, x: Tensor) -> Any:
            return super().forward(torch.sparse.mm(self.edges, x.T).T)

    net = Neighbours(lambda z: z, only_eval=True, momentum=0.01)
    net.register_buffer("edges", getattr(torch.eye(8), form)())
    report = check(net, (X, Y), optimizer=optimizer, steps=6)
    assert [finding.code for finding in report.findings] == ["BN101"], str(report)


# the model's own loss beside its outputs ----------------------------------------------------------


class Language(nn.Module):
    """Returns its logits, and its loss where it gets the targets."""

    def __init__(self, reshaped: bool = True) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(10, 8), nn.Linear(8, 10)
        self.flat = "reshape" if reshaped else "view"

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Any:
        logits = self.out(self.words(idx))
        if targets is None:
            return logits, None
        return logits, cross_entropy(
            getattr(logits, self.flat)(-1, 10), getattr(targets, self.flat)(-1)
        )


TOKENS = torch.randint(10, (4, 9), generator=torch.Generator().manual_seed(0))
TEXT = {"idx": TOKENS[:, :-1], "targets": TOKENS[:, 1:]}


def test_the_number_beside_the_logits_is_the_loss_of_a_model_that_gets_the_targets() -> None:
    report = check(Language(), TEXT, optimizer=optimizer, steps=10)
    assert report.training.loss[-1] < 0.9 * report.training.loss[0]
    assert report.verdict == "pass", str(report)


def test_it_is_not_the_loss_of_a_model_that_does_not() -> None:
    """A penalty, perhaps: the cross-entropy of the logits is trained on."""

    class Penalised(Net):
        def forward(self, x: Tensor) -> Any:
            logits = super().forward(x)
            return logits, 100 + logits.pow(2).mean()

    report = check(Penalised(lambda z: z, only_eval=True, momentum=0.1), (X, Y), steps=1)
    assert report.training.loss[0] < 2


# notes --------------------------------------------------------------------------------------------


def notes(call: Callable[[], Any]) -> str:
    with pytest.raises(RuntimeError) as caught:
        call()
    return " ".join(caught.value.__notes__)


def test_the_note_on_types_looks_at_the_tensor_that_failed() -> None:
    assert "convert" not in notes(lambda: check(Language(reshaped=False), TEXT, steps=1))
    net = nn.Sequential(nn.Linear(8, 2))
    for given, name in ((X.double(), "float64"), (X.long(), "int64"), (X.half(), "float16")):
        note = notes(lambda given=given: check(net, (given, Y), steps=1))
        assert f"batch[0] is of torch.{name}, the parameters of the layer that failed" in note


class Mixed(nn.Module):
    """Whole numbers are right for one of its inputs alone."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(10, 8), nn.Linear(8, 2)

    def forward(self, word: Tensor, image: Tensor) -> Tensor:
        return self.out(self.words(word)) + self.out(image)


def test_the_note_names_the_input_of_the_wrong_type_among_others() -> None:
    batch = (torch.arange(32) % 10, X.double()), Y
    assert "batch[0][1] is of torch.float64" in notes(lambda: check(Mixed(), batch, steps=1))


# refusals -----------------------------------------------------------------------------------------


def test_what_cannot_predict_is_refused_before_it_is_trained() -> None:
    made: list[Any] = []

    def train_step(model: nn.Module, batch: Any) -> float:
        made.append(batch)
        return 0.0

    for batch in ((X, X, X, Y), {"left": X, "right": X, "kind": Y}, ((X, X), Y)):
        with pytest.raises(InputError, match="override bncheck_forward, for example"):
            check(nn.Sequential(nn.Linear(8, 2)), batch, train_step=train_step)
    assert not made


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        ({}, ["def bncheck_forward():", "def bncheck_train_step(bncheck_model):"]),
        (
            {"forward": lambda model, batch: model(batch[0])},
            ["def bncheck_train_step(bncheck_model):"],
        ),
        (
            {
                "forward": lambda model, batch, training: model(batch[0]),
                "loss": lambda outputs, targets: outputs.mean() * targets,
                "optimizer": optimizer,
                "train_step": lambda model, batch: None,
            },
            [
                "def bncheck_train_step(bncheck_model, bncheck_optimizer, bncheck_forward, "
                "bncheck_loss):",
                "optimizer = bncheck_optimizer(bncheck_model.parameters())",
                "loss = bncheck_loss(bncheck_forward(model, batch, training=True), ...)",
            ],
        ),
    ],
)
def test_the_code_of_an_error_uses_what_the_user_has_written(
    given: dict[str, Any], lines: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        check(nn.Sequential(nn.Linear(8, 2)), (X, X, X, Y), **given)
    text = str(caught.value)
    assert [line for line in lines if line not in text] == [], text
    assert text.count("@pytest.fixture") == (1 if given else 2)
    assert "docs/how-to/inputs.md" in text
