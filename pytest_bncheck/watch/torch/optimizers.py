"""The steps of PyTorch's optimizers, which a Keras model on PyTorch may be trained with too."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable
from typing import Any

import torch

from pytest_bncheck.adapters.torch.internals import leave_uncompiled
from pytest_bncheck.watch.replaced import Replaced

is_compiling = torch.compiler.is_compiling


class Optimizers(Replaced):
    """Replaces the steps of all optimizers, also of those whose class comes later.

    Parameters
    ----------
    after
        Called with an optimizer after each of its steps, and raises nothing.
    """

    def __init__(self, after: Callable[[torch.optim.Optimizer], None]) -> None:
        super().__init__(leave_uncompiled)
        self._after = after
        init = torch.optim.Optimizer.__init__

        @functools.wraps(init)
        def watched_init(optimizer: Any, *args: Any, **kwargs: Any) -> None:
            __tracebackhide__ = True
            init(optimizer, *args, **kwargs)
            if not is_compiling():
                with contextlib.suppress(Exception):  # a class that refuses is not watched
                    self._replace_step(type(optimizer))

        self.replace(torch.optim.Optimizer, "__init__", watched_init)
        for kind in _all_subclasses(torch.optim.Optimizer):
            self._replace_step(kind)

    def _replace_step(self, kind: type) -> None:
        for each in kind.__mro__[:-1]:
            step = vars(each).get("step")
            if each is torch.optim.Optimizer or not isinstance(step, types.FunctionType):
                continue  # a mock is no method: a function in its place would pass on the optimizer
            if self not in getattr(step, "bncheck_watched", ()):
                self.replace(each, "step", self._watched_step(step))

    def _watched_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        after = self._after

        @functools.wraps(step)
        def watched_step(self: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            result = step(self, *args, **kwargs)
            if not is_compiling():
                after(self)
            return result

        others = getattr(step, "bncheck_watched", ())
        watched_step.bncheck_watched = (*others, self)  # type: ignore[attr-defined]
        return watched_step


def _all_subclasses(kind: type) -> list[type]:
    found: dict[type, None] = {}
    below: type
    for below in kind.__subclasses__():
        found |= dict.fromkeys([below, *_all_subclasses(below)])
    return list(found)
