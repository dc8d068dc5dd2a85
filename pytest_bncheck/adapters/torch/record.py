"""What the training steps did: in which modes modules ran, which parameters changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile

import torch
from torch import nn

from pytest_bncheck.adapters.torch.layers import Layers
from pytest_bncheck.adapters.torch.modes import Watch, depends_on_mode
from pytest_bncheck.adapters.torch.state import Snapshot, local


class Record:
    """The record of all training steps.

    Parameters
    ----------
    model
        The user's model.
    start
        The model before them.
    """

    def __init__(self, model: nn.Module, start: Snapshot) -> None:
        self._model, self._start = model, start
        self._trained: dict[nn.Module, None] = {}
        self._rested: dict[nn.Module, None] = {}
        self._kept: list[dict[str, float]] = []
        self._order: list[nn.Module] = []
        self._unchanged: set[int] | None = None

    def add(self, ran: Watch, kept: Mapping[str, float]) -> None:
        """Add a step.

        Parameters
        ----------
        ran
            The modules that ran in it.
        kept
            The share of its statistics that each layer kept.
        """
        self._unchanged = None
        self._trained.update(ran.training)
        self._order = list(ran.order)
        self._kept.append(dict(kept))
        for module in ran.learning:
            # A layer that rests later on, while others still train, is frozen by design.
            late = module in self._trained and bool(ran.training)
            if module not in ran.training and not late:
                self._rested[module] = None

    def rested(self, module: nn.Module) -> bool:
        """Whether a layer of two modes ran in inference mode only, in some step, with gradients."""
        return module in self._rested and depends_on_mode(module)

    def idle(self) -> list[nn.Module]:
        """The layers that `rested` although their parameters changed."""
        return [
            module
            for module in self._rested
            if module in self._start.paths and depends_on_mode(module) and self._changed(module)
        ]

    def _changed(self, module: nn.Module) -> bool:
        """Whether parameters of a module changed; of one without any, those around it."""
        around = [parent for parent in self._model.modules() if module in parent.children()]
        own = next((found for m in (module, *around) if (found := list(m.parameters()))), [])
        return not all(self._start.unchanged(own))

    def frozen(self, layers: Layers) -> set[str]:
        """Layers whose parameters, at least one, and all before them are as they were."""
        if self._unchanged is None:
            self._unchanged = self._left_unchanged()
        unchanged = self._unchanged

        def kept(module: nn.Module) -> bool:
            return all(id(p) in unchanged for p in module.parameters(recurse=False))

        def is_frozen(name: str, layer: nn.Module) -> bool:
            if not any(True for _ in layer.parameters()) or not all(map(kept, layer.modules())):
                return False
            before = takewhile(lambda module: module is not layer, self._order)
            return name not in layers.calls.after_trainable or all(map(kept, before))

        found = {name for name, layer in layers.modules.items() if is_frozen(name, layer)}
        anything_trained = found and not all(map(kept, self._model.modules()))
        return found if anything_trained else set()

    def _left_unchanged(self) -> set[int]:
        """The ids of the parameters that the steps could have changed and did not."""
        parameters = list(self._model.parameters())
        pairs = zip(parameters, self._start.unchanged(parameters), strict=True)
        same = {id(parameter) for parameter, same in pairs if same}
        return same - _without_gradients(parameters)  # no freezing, only nothing to learn

    def kept(self, layers: Layers) -> list[list[float]]:
        """The share that each layer kept in each step; empty where no step differs."""
        names = [n for n in layers.modules if layers.rates.last[n] is not None]
        different = {tuple(step[name] for name in names) for step in self._kept}
        if len(different) < 2 and not layers.calls.changing:
            return []
        return [[step[name] for name in layers.modules] for step in self._kept]


def _without_gradients(parameters: Sequence[nn.Parameter]) -> set[int]:
    """The ids of parameters that could train and got no gradient, in one transfer.

    One of nothing but zeros moves nothing either, as of a batch of one or of a dead branch.
    """
    able = [parameter for parameter in parameters if parameter.requires_grad]
    known = [(id(p), p.grad) for p in able if p.grad is not None]
    resting = {id(parameter) for parameter in able} - {key for key, _ in known}
    if known:
        home = known[0][1].device
        moves = [local(gradient.detach()).any().to(home) for _, gradient in known]
        moving = torch.stack(moves).tolist()
        resting |= {key for (key, _), moves in zip(known, moving, strict=True) if not moves}
    return resting
