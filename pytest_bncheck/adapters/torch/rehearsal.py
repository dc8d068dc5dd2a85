"""A training pass just before a training step, and what the step did otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pytest_bncheck.adapters.random_state import RandomState
from pytest_bncheck.adapters.torch.data import Raw, widest
from pytest_bncheck.adapters.torch.layers import Layers
from pytest_bncheck.adapters.torch.modes import Watch
from pytest_bncheck.adapters.torch.states import States
from pytest_bncheck.maths.settling import MOVE_ROUNDINGS, OTHERWISE
from pytest_bncheck.types import Rehearsal


class Rehearsals:
    """Compares a pass in training mode with the training step after it.

    Parameters
    ----------
    layers, states
        The known layers, and all other state.
    paths
        The path of each module in the model.
    """

    def __init__(self, layers: Layers, states: States, paths: Mapping[nn.Module, str]) -> None:
        self._layers, self._states, self._paths = layers, states, paths
        self._ran: Watch | None = None
        self._before: Raw | None = None
        self._after: Raw | None = None
        self._names: list[str] = []
        self._calls: tuple[int, ...] = ()
        self._loss: float | None = None
        self.last: Rehearsal | None = None

    def rehearse(self, run: Callable[[], float | None]) -> None:
        """Run a pass in training mode, of which nothing remains, not even its exception.

        Parameters
        ----------
        run
            Returns its loss, where the check knows that of the step.
        """
        __tracebackhide__ = True
        random, watch = RandomState.capture(), Watch()
        modes = {module: module.training for module in self._paths}
        self._ran = None
        self._before, self._names = self._layers.raw(), list(self._layers.modules)
        try:
            with self._states.kept(), self._layers.calls.apart(), watch.open(), torch.enable_grad():
                self._loss = run()
                self._states.rehearsed()
                self._after, self._calls = self._layers.raw(), self._layers.calls.counted().training
        except Exception:  # of a model that only the user's step can run in training mode
            return
        finally:
            for module, training in modes.items():
                module.training = training
            random.restore()
        self._ran = watch

    def compare(self, ran: Watch, calls: tuple[int, ...], loss: object) -> None:
        """Compare with the step that followed.

        Parameters
        ----------
        ran
            The modules that ran in it.
        calls
            Calls of each known layer in it.
        loss
            What it returned.
        """
        if self._ran is None or list(self._layers.modules) != self._names:
            return
        mine, rehearsed = set(ran.order), set(self._ran.order)
        trained = [m for m in ran.taught if m not in self._ran.training and self._learns(m)]
        runs = [m for m in self._ran.order if _has_parameters(m)]
        strange = [m for m in runs if m not in mine]
        if not any(self._learns(m) for m in runs):
            strange = runs  # what predicts may run in the step, too, as a teacher does
        self.last = Rehearsal(
            absent=tuple(self._paths[m] for m in trained),
            untrained=tuple(self._paths[m] for m in strange if m in self._paths),
            changed=tuple(self._changed(calls)),
            comparable=bool(rehearsed),
            losses=None if self._loss is None else (self._loss, float(loss)),  # type: ignore[arg-type]
        )
        self._ran = None

    def _learns(self, module: nn.Module) -> bool:
        return module in self._paths and any(
            p.grad is not None for p in module.parameters(recurse=False)
        )

    def _changed(self, calls: tuple[int, ...]) -> list[str]:
        """The layers that the step moved otherwise, in as many calls; the worst first."""
        if self._before is None or self._after is None or not self._names:
            return []
        now = self._layers.raw()
        sizes = [module.running_mean.numel() for module in self._layers.modules.values()]
        apart = sum_of_squares(now, self._after, sizes)
        moves = sum_of_squares(now, self._before, sizes)
        values = sum_of_squares(now, (torch.zeros_like(now[0]), torch.zeros_like(now[1])), sizes)
        eps = torch.finfo(now[1].dtype).eps
        allowed = torch.maximum(OTHERWISE * moves.sqrt(), MOVE_ROUNDINGS * eps * values.sqrt())
        apart = (apart.sqrt() / allowed) * (moves > 0.0)  # an update that was undone is no other
        rows = zip(self._names, apart.tolist(), calls, self._calls, strict=True)
        found = [(size, name) for name, size, c, mine in rows if c == mine and c and size > 1.0]
        return [name for _, name in sorted(found, reverse=True)]


def sum_of_squares(one: Raw, other: Raw, sizes: list[int]) -> Tensor:
    """Of the differences between two sets of statistics, for each layer."""
    wide = widest(one[0].device)
    squares = [(a.to(wide) - b.to(wide)) ** 2 for a, b in zip(one, other, strict=True)]
    return torch.stack(
        [part.sum() for part in torch.split_with_sizes(squares[0] + squares[1], sizes)]
    )


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))
