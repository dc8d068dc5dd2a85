"""Switches of Python and numpy for the whole process that a user's code can leave changed."""

from __future__ import annotations

import decimal
import gc
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from pytest_bncheck.adapters.objects import remember
from pytest_bncheck.adapters.undo import Undo, handler_of, put_handler, run_all

Switch: TypeAlias = tuple[Callable[[], Any], Callable[[Any], object]]
"""How to read and to write it."""


def variable(owner: Any, name: str) -> Switch:
    """A switch that is a variable of a module, or an attribute."""
    return partial(getattr, owner, name), partial(setattr, owner, name)


def _members(held: list[Any]) -> Switch:
    return lambda: list(held), lambda before: held.__setitem__(slice(None), before)


def _set_collector(on: bool) -> None:
    (gc.enable if on else gc.disable)()


def _signals() -> list[Switch]:
    """What is called for each signal; only the main thread can change it."""
    if threading.current_thread() is not threading.main_thread():
        return []
    numbers = [n for n in signal.valid_signals() if signal.getsignal(n) is not None]
    return [(partial(handler_of, n), partial(put_handler, n)) for n in numbers]


_SWITCHES: tuple[Switch, ...] = (
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (sys.getswitchinterval, sys.setswitchinterval),
    (sys.get_int_max_str_digits, sys.set_int_max_str_digits),
    (sys.get_asyncgen_hooks, lambda hooks: sys.set_asyncgen_hooks(*hooks)),
    (sys.get_coroutine_origin_tracking_depth, sys.set_coroutine_origin_tracking_depth),
    variable(sys, "excepthook"),
    variable(sys, "displayhook"),
    variable(sys, "unraisablehook"),
    variable(sys, "breakpointhook"),
    variable(threading, "excepthook"),
    (socket.getdefaulttimeout, socket.setdefaulttimeout),
    variable(tempfile, "tempdir"),
    (gc.isenabled, _set_collector),
    (gc.get_threshold, lambda limits: gc.set_threshold(*limits)),
    (gc.get_debug, gc.set_debug),
    _members(gc.callbacks),
    (np.geterr, lambda ways: np.seterr(**ways)),
    (np.get_printoptions, lambda options: np.set_printoptions(**options)),
)


def _set(read: Callable[[], Any], write: Callable[[Any], object], value: Any) -> None:
    if read() != value:
        write(value)


def remember_all(switches: Iterable[Switch]) -> Callable[[], None]:
    """Remember switches; returns the way back."""
    before = [(read, write, read()) for read, write in switches]
    return lambda: run_all(partial(_set, *switch) for switch in before)


def remember_switches() -> Undo:
    """Remember all of them, and the context in which this thread computes decimal numbers."""
    arguments = variable(sys, "argv"), _members(sys.argv)
    put_switches_back = remember_all((*_SWITCHES, *arguments, *_signals()))
    context = decimal.getcontext()
    put_context_back = remember(context)

    def undo() -> None:
        put_switches_back()
        if decimal.getcontext() is not context:
            decimal.setcontext(context)
        if put_context_back is not None:
            put_context_back()

    return undo
