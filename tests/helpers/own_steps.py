"""Training steps by hand: what is done around a forward and a backward, in many ways."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from own_layers import OwnNorm

Step = Callable[[nn.Module, Any], Tensor]
Loss = Callable[[Any, Any], Tensor]


def own_norms(model: nn.Module) -> dict[str, OwnNorm]:
    """The layers by hand that make the prediction, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, OwnNorm) and not name.startswith("teacher.")
    }


@contextmanager
def untracked(model: nn.Module) -> Iterator[None]:
    """The running averages stay as they are."""
    layers = own_norms(model).values()
    for layer in layers:
        layer.tracks = False
    try:
        yield
    finally:
        for layer in layers:
            layer.tracks = True


class Steps:
    """Makes steps for one model; the optimizer begins with the first of them."""

    def __init__(self, loss: Loss, rate: float = 1e-2) -> None:
        self.loss, self.rate = loss, rate
        self.made = 0
        self.optimizer: Any = None

    def start(self, model: nn.Module) -> None:
        self.made += 1
        if self.optimizer is None:
            trained = [p for p in model.parameters() if p.requires_grad]
            self.optimizer = torch.optim.Adam(trained, self.rate)
        self.optimizer.zero_grad()

    def plain(self, model: nn.Module, batch: Any) -> Tensor:
        self.start(model)
        loss = self.loss(model(batch[0]), batch[1])
        loss.backward()
        self.optimizer.step()
        return loss

    def sharpness_aware(self, model: nn.Module, batch: Any) -> Tensor:
        """Climbs, and takes the gradient there; the second forward is not tracked."""
        self.start(model)
        loss = self.loss(model(batch[0]), batch[1])
        loss.backward()
        moved = [p for p in model.parameters() if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in moved if p.grad is not None]).norm()
        climbs = [0.02 * p.grad / (norm + 1e-12) for p in moved if p.grad is not None]
        with torch.no_grad():
            torch._foreach_add_(moved, climbs)
        self.optimizer.zero_grad()
        with untracked(model):
            self.loss(model(batch[0]), batch[1]).backward()
        with torch.no_grad():
            torch._foreach_sub_(moved, climbs)
        self.optimizer.step()
        return loss

    def two_views(self, model: nn.Module, batch: Any) -> Tensor:
        """Two forwards, both tracked."""
        self.start(model)
        views = (batch[0], 1.01 * batch[0])
        loss = torch.stack([self.loss(model(view), batch[1]) for view in views]).mean()
        loss.backward()
        self.optimizer.step()
        return loss

    def accumulated(self, model: nn.Module, batch: Any) -> Tensor:
        """Gradients of two halves, then one step."""
        self.start(model)
        total = torch.zeros(())
        for part in range(2):
            inputs, targets = (each[part::2] for each in batch)
            loss = self.loss(model(inputs), targets) / 2
            loss.backward()
            total = total + loss.detach()
        self.optimizer.step()
        return total

    def decaying(self, model: nn.Module, batch: Any) -> Tensor:
        """The rate of the averages falls with every step."""
        if not self.made:
            self.first = {name: float(n.new_share()) for name, n in own_norms(model).items()}
        loss = self.plain(model, batch)
        for name, layer in own_norms(model).items():
            layer.set_rate(self.first[name] * 0.985**self.made)
        return loss

    def validating(self, model: nn.Module, batch: Any) -> Tensor:
        """Predicts in eval mode before it trains."""
        model.eval()
        with torch.no_grad():
            model(batch[0])
        model.train()
        return self.plain(model, batch)

    def freezing(self, model: nn.Module, batch: Any) -> Tensor:
        """The averages stay as they are in the last steps, and normalise."""
        if self.made >= 40:
            for layer in own_norms(model).values():
                layer.eval()
        return self.plain(model, batch)

    def distilling(self, model: Any, batch: Any) -> Tensor:
        """A teacher in training mode follows its student."""
        self.start(model)
        with torch.no_grad():
            taught = model.teacher(batch[0])
        outputs = model(batch[0])
        loss = self.loss(outputs, batch[1]) + 0.01 * (outputs - taught).square().mean()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            pairs = zip(model.teacher.parameters(), model.student.parameters(), strict=True)
            for own, other in pairs:
                own.lerp_(other, 0.05)
        return loss


class Distilled(nn.Module):
    """A student, and a teacher that is an average of it."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.teacher = copy.deepcopy(student).requires_grad_(False)

    def forward(self, x: Tensor) -> Any:
        return self.student(x)
