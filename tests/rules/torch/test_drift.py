"""PyTorch models that eval mode moves, and attention on the training path."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn

from common_nets import SEED
from pytest_bncheck import check


def codes(report: Any) -> list[str]:
    return [finding.code for finding in report.findings]


class Centre(nn.Module):
    """A centre of the outputs that follows them in every mode, or in training only."""

    def __init__(self, width: int, plain: bool, always: bool) -> None:
        super().__init__()
        self.centre: Tensor
        self.always = always
        if plain:
            self.centre = torch.zeros(width)
        else:
            self.register_buffer("centre", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        if self.always or self.training:
            self.centre = 0.9 * self.centre + 0.1 * x.detach().mean(0)
        return x - self.centre


def centred(deep: bool, seed: int, plain: bool, always: bool) -> Any:
    torch.manual_seed(seed)
    x = torch.randn(64, 8) + 1
    body = [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)] if deep else []
    model = nn.Sequential(*body, nn.Linear(8, 3), Centre(3, plain, always))
    adam = lambda parameters: torch.optim.Adam(parameters, 1e-2)  # noqa: E731
    return check(model, (x, (x[:, 0] > 1).long()), steps=30, optimizer=adam)


@SEED
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("plain", [False, True])
def test_what_draws_nothing_is_not_random(deep: bool, seed: int, plain: bool) -> None:
    report = centred(deep, seed, plain, always=True)
    assert codes(report) == ["BN304"], str(report)
    assert report.verdict == "fail"


class Attention(nn.Module):
    """Torch's encoder over padded tokens; in eval mode its mean is over all of them."""

    def __init__(self, dropout: float, layers: int, bad: bool) -> None:
        super().__init__()
        self.tokens, self.bad = nn.Embedding(20, 16), bad
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.last = nn.Linear(16, 3)

    def forward(self, t: Tensor) -> Tensor:
        z = self.encoder(self.tokens(t))
        return self.last(z.mean(1) if self.training or not self.bad else z[:, 0] - z.mean(1))


@SEED
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("bad", [False, True])
def test_a_path_beside_attention(seed: int, layers: int, dropout: float, bad: bool) -> None:
    torch.manual_seed(seed)
    y = torch.arange(48) % 3
    t = torch.randint(1, 7, (48, 8)) + y[:, None] * 6
    report = check(Attention(dropout, layers, bad), (t, y), steps=30)
    assert codes(report) == (["BN201"] if bad else []), str(report)
