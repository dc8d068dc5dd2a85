"""The loss of a step that is the user's code, in the modes that the modules are in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from pytest_bncheck.adapters.random_state import RandomState, seed_everything
from pytest_bncheck.adapters.torch.state import Snapshot

Module = TypeVar("Module", bound=nn.Module)


class OwnLoss:
    """Asks the user's step for its loss; nothing of the step remains.

    Parameters
    ----------
    step
        Trains on one batch and returns the loss.
    roots
        Everything that the step may change: the model, the user's functions.
    """

    def __init__(self, step: Callable[[Any], Any], *roots: Any) -> None:
        self._step, self._roots = step, roots

    def __call__(self, batch: Any) -> float | None:
        """The loss, or None where the step cannot run in these modes.

        Every call draws the same random numbers, so that the modes are asked alike.
        """
        snapshot, random = Snapshot(*self._roots, batch), RandomState.capture()
        try:
            seed_everything(0)
            with held_modes(), torch.enable_grad():
                return float(self._step(batch))
        except Exception:  # of a step that is made for training mode
            return None
        finally:
            snapshot.restore()
            random.restore()


@contextmanager
def held_modes() -> Iterator[None]:
    """Let `train` and `eval` change nothing for the time of a ``with`` block."""
    original = nn.Module.train

    def train(module: Module, mode: bool = True) -> Module:
        return module

    nn.Module.train = train  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.train = original  # type: ignore[method-assign]
