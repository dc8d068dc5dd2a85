"""Switches of Python and numpy for the whole process that a user's code can leave changed."""

from __future__ import annotations

import decimal
import gc
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from pytest_bncheck.adapters.objects import remember
from pytest_bncheck.adapters.undo import Undo, run_all


def _set_collector(on: bool) -> None:
    (gc.enable if on else gc.disable)()


_SWITCHES: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (sys.getswitchinterval, sys.setswitchinterval),
    (gc.isenabled, _set_collector),
    (gc.get_threshold, lambda limits: gc.set_threshold(*limits)),
    (np.geterr, lambda ways: np.seterr(**ways)),
    (np.get_printoptions, lambda options: np.set_printoptions(**options)),
)
"""How to read and to write each of them."""


def _set(read: Callable[[], Any], write: Callable[[Any], object], value: Any) -> None:
    if read() != value:
        write(value)


def remember_switches() -> Undo:
    """Remember all of them, and the context in which this thread computes decimal numbers."""
    before = [(read, write, read()) for read, write in _SWITCHES]
    context = decimal.getcontext()
    put_context_back = remember(context)

    def undo() -> None:
        run_all(partial(_set, *switch) for switch in before)
        if decimal.getcontext() is not context:
            decimal.setcontext(context)
        if put_context_back is not None:
            put_context_back()

    return undo
