"""A batch for a model that comes with none."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
from torch import nn

from pytest_bncheck import InputError, check
from pytest_bncheck.adapters.invented import parse
from pytest_bncheck.adapters.torch.invented import invent


def cnn(classes: int = 5) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), head(classes))


def head(classes: int) -> nn.Module:
    return nn.Sequential(nn.LazyLinear(classes))


class Language(nn.Module):
    """Takes its targets and computes its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.codes, self.out = nn.Embedding(30, 8), nn.Linear(8, 30)

    def forward(self, input_ids, mask=None, labels=None):
        logits = self.out(self.codes(input_ids))
        loss = None if labels is None else nn.functional.cross_entropy(logits.mT, labels)
        return SimpleNamespace(logits=logits, loss=loss)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(3, 4)

    def forward(self, x, y):
        return self.a(x) + self.b(y)


class Whole(nn.Module):
    """Takes pictures of one size only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 2, 3), nn.Linear(2 * 26 * 26, 3)

    def forward(self, x):
        return self.last(self.first(x).flatten(1))


@pytest.mark.parametrize(
    ("make", "shape", "targets"),
    [
        (cnn, "8x1x64x64", (8,)),
        (Whole, "8x3x28x28", (8,)),
        (lambda: nn.Linear(10, 1), "8x10", (8, 1)),
        (lambda: nn.Conv2d(3, 3, 1), "8x3x64x64", (8, 3, 64, 64)),
        (lambda: nn.Conv1d(2, 2, 3, padding=1), "8x2x64", (8, 2, 64)),
        (lambda: nn.ConvTranspose2d(6, 1, 4), "8x6x1x1", (8, 1, 4, 4)),
        (lambda: nn.BatchNorm1d(7), "8x7", (8,)),
        (lambda: nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), head(3)), "int64:8x16", (8,)),
        (lambda: nn.TransformerEncoderLayer(8, 2, batch_first=True), "8x16x8", (8, 16, 8)),
    ],
)
def test_what_the_first_layers_take(
    make: Callable[[], nn.Module], shape: str, targets: tuple[int, ...]
) -> None:
    made = invent(make(), None)
    inputs, wanted = made.batch
    assert (made.shapes, tuple(inputs.shape)) == (parse(shape), parse(shape)[0].sizes)
    assert tuple(wanted.shape) == targets
    assert wanted.is_floating_point() == (len(targets) > 1)


def test_the_targets_are_classes_that_the_outputs_have() -> None:
    assert invent(nn.Linear(4, 3), None).batch[1].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert invent(nn.Linear(4, 1000), None).batch[1].max() == 3


def test_inputs_that_were_asked_for() -> None:
    made = invent(Two(), parse("5x6, 5x3"))
    assert [tuple(each.shape) for each in made.batch[0]] == [(5, 6), (5, 3)]
    assert invent(nn.Linear(4, 3).double(), None).batch[0].dtype == torch.float64
    assert invent(nn.Embedding(4, 3), parse("int32:8x2")).batch[0].dtype == torch.int32


def test_a_model_that_computes_its_own_loss_gets_a_dict() -> None:
    batch = invent(Language(), None).batch
    assert {key: tuple(value.shape) for key, value in batch.items()} == {
        "input_ids": (8, 16),
        "labels": (8, 16),
    }
    assert check(Language(), batch, steps=20).verdict == "pass"


def test_a_mask_of_attention_is_no_target() -> None:
    class Masked(nn.Linear):
        def forward(self, x, mask=None):
            return super().forward(x if mask is None else x * mask)

    inputs, targets = invent(Masked(4, 3), None).batch
    assert (tuple(inputs.shape), tuple(targets.shape)) == ((8, 4), (8,))


def test_no_input_is_found() -> None:
    with pytest.raises(InputError, match=r"--bncheck-input.*tried: 8x6 and .*missing 1 required"):
        invent(Two(), None)
    with pytest.raises(InputError, match=r"no input was found that it takes; say its shape"):
        invent(nn.ReLU(), None)


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(InputError, match=r"--bncheck-input 8x5: the model does not take it; .*mat"):
        invent(nn.Linear(4, 3), parse("8x5"))


def test_outputs_without_targets() -> None:
    class Words(nn.Linear):
        def forward(self, x):
            return "words"

    with pytest.raises(InputError, match="returns str and no tensor"):
        invent(Words(4, 3), None)
