"""BN201 names the module whose code differs between the modes, and the line that asks for them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn

from pytest_bncheck import check
from torch_nets import FAST


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(x)
        return 3.0 * h + 1.0 if self.training else h


class Graded(nn.Module):
    """Asks for gradients, which a training step has and a prediction does not."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            x = x.flip(1) * 2.0
        return x


class Between(nn.Module):
    """Changes what a layer gets, not what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.scale = nn.Linear(16, 16), 4.0

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale if self.training else -1.0
        return self.inner(x * scale)


class Skipped(nn.Module):
    """Leaves a layer out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.second(x) if self.training else x


class Aligned(nn.Module):
    """As LoRA merged by ``eval()``: nothing in ``forward`` asks for the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.sign = nn.Linear(16, 16), 1.0

    def train(self, mode: bool = True) -> Aligned:
        self.sign = 1.0 if mode else -1.0
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.sign


ASKING = {
    Scaled: "if self.training",
    Graded: "is_grad_enabled",
    Between: "scale = self.scale",
    Skipped: "self.second(x) if",
    Aligned: "",
}


def found(model: nn.Module, inputs: Tensor, seed: int) -> Any:
    torch.manual_seed(seed)
    targets = torch.randint(0, 4, (len(inputs),))
    report = check(model, (inputs, targets), steps=40, optimizer=FAST)
    return {finding.code: finding for finding in report.findings}


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("kind", ASKING)
def test_module_and_line(kind: type[nn.Module], normalised: bool) -> None:
    torch.manual_seed(1)
    norm = nn.BatchNorm1d(16, momentum=0.5) if normalised else nn.Identity()
    inner = nn.Sequential(nn.ReLU(), kind())
    model = nn.Sequential(nn.Linear(8, 16), norm, inner, nn.Linear(16, 4))
    finding = found(model, torch.randn(24, 8), 0)["BN201"]
    assert f"The modes part in 2.1 ({kind.__name__})" in finding.cause
    lines, first = inspect.getsourcelines(kind)
    asking = ASKING[kind]
    if asking:
        (number,) = (first + k for k, line in enumerate(lines) if asking in line)
        assert f": test_parting.py:{number}: " in finding.cause
        assert asking in finding.cause
    assert "Let 2.1 compute the same in both modes." in finding.remedy


class Padded(nn.Module):
    """The fast path of torch gives zeros for padding, and the other path does not."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.head = nn.Linear(16 * 6, 4)

    def forward(self, x: Tensor) -> Tensor:
        padding = torch.arange(6).expand(len(x), 6) >= 3
        return self.head(self.encoder(x, src_key_padding_mask=padding).flatten(1))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_code_of_the_framework_is_not_called_the_models() -> None:
    torch.manual_seed(2)
    finding = found(Padded(), torch.randn(24, 6, 16), 1)["BN201"]
    assert finding.message.startswith("The model computes something else")
    assert "The modes part in encoder (TransformerEncoder of the framework)." in finding.cause
    assert "Call encoder so that it does the same in both modes." in finding.remedy


def test_nothing_parts_where_both_modes_do_the_same() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16, momentum=0.5), nn.ReLU(), nn.Linear(16, 4)
    )
    assert "BN201" not in found(model, torch.randn(24, 8), 0)
