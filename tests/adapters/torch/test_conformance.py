"""The PyTorch adapter keeps the contract that other adapters are held to."""

from __future__ import annotations

import re
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from pytest_bncheck.adapters.torch.adapter import TorchAdapter
from pytest_bncheck.testing import check_adapter


def net(*parts: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), *parts, nn.Flatten(), nn.LazyLinear(4))


MODELS = {
    "several layers": lambda: net(
        nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5, momentum=0.01)
    ),
    "cumulative average": lambda: net(nn.BatchNorm2d(6, momentum=None)),
    "dropout": lambda: net(nn.BatchNorm2d(6), nn.Dropout(0.5)),
    "dropout before a layer": lambda: net(nn.Dropout(0.5), nn.BatchNorm2d(6)),
    "no statistics": lambda: net(nn.GroupNorm(2, 6), nn.Dropout(0.1)),
}


def images() -> tuple[Any, Any]:
    return 2 * torch.randn(8, 3, 8, 8) + 3, torch.arange(8) % 4


@pytest.mark.parametrize("name", MODELS)
def test_the_contract_is_kept(name: str) -> None:
    found = check_adapter(MODELS[name], images, loss=nn.functional.cross_entropy)
    assert found.silent == {}
    chance = {"dropout before a layer", "no statistics"}
    assert list(found.skipped) == ["history obeys the recursion"] * (name in chance)


@pytest.mark.device
def test_with_an_inferred_loss_and_an_optimizer_of_the_user_s() -> None:
    def sgd(parameters: Any) -> Any:
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    assert not check_adapter(MODELS["several layers"], images, optimizer=sgd).skipped


def test_with_a_step_of_the_user_s() -> None:
    def train_step(model: nn.Module, batch: tuple[Any, Any]) -> Any:
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        return loss

    found = check_adapter(MODELS["several layers"], images, train_step=train_step)
    assert list(found.skipped) == ["restore after an error in a pass"]


FORGOTTEN = {
    "[0]._parameters['weight'] holds other numbers": lambda net: net[0].weight.data.add_(1.0),
    "[1]._buffers['running_var'] holds other numbers": lambda net: net[1].running_var.add_(1.0),
    "[1].training is False": lambda net: net[1].eval(),
}


@pytest.mark.parametrize("what", FORGOTTEN)
def test_what_a_restore_forgets_is_seen(what: str) -> None:
    class Forgetful(TorchAdapter):
        def restore(self, *, keep_weights: bool = False) -> None:
            super().restore(keep_weights=keep_weights)
            FORGOTTEN[what](self.model)

    path = re.escape(what.replace("[0]", "['0']").replace("[1]", "['1']"))
    with pytest.raises(AssertionError, match=rf"Forgetful\.restore: .* model\._modules{path}"):
        check_adapter(
            lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)),
            lambda: (torch.randn(8, 4), torch.arange(8) % 2),
            adapter=Forgetful,
        )
