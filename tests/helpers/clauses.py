"""What has to be as it was after a check, and the ways a check can end.

A clause is a piece of state: how to read it, and a change that a user's code could make to it. The
tests of each framework add its own clauses to those of the process, and hold every clause against
every ending; none is in a list without being tested, since the tests are made from the lists:

- `test_left_as_found`: all clauses after each ending;
- `test_a_change_is_seen`: the reading of each clause tells its change;
- `test_a_change_is_undone`: a check in which the user's code makes that change undoes it.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from types import FrameType, SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest


class Clause(NamedTuple):
    """A piece of state of a world: a model with what hangs on it."""

    read: Callable[[Any], Any]
    """Something that can be compared, bit by bit."""
    change: Callable[[Any], object]
    undone: bool = True
    """Whether a check undoes what the user's own code did to it in the check."""


class Ending(NamedTuple):
    """A way for a check to end: a verdict, or what is thrown in it, where and when."""

    verdict: str = ""
    error: BaseException | None = None
    place: str = "loss"
    calls: int = 0
    """How many calls of that place go well before."""


class Mistake(Exception):
    """An error of the user's."""


NOT_IN = "contextlib", "jax", "tensorflow", "weakref"

INTERRUPTIONS: dict[str, BaseException] = {
    "Ctrl-C": KeyboardInterrupt(),
    "SIGTERM": SystemExit(143),  # as a handler of the user's raises it
    # What pytest-timeout raises from its signal.
    "timeout": pytest.fail.Exception("Timeout (>0.1s) from pytest-timeout.", pytrace=False),
}


def endings(no_memory: BaseException, steps: int) -> dict[str, Ending]:
    """The ways to end, in checks of so many steps."""
    middle = steps // 2
    return {
        "pass": Ending("pass"),
        "fail": Ending("fail"),
        "NaN loss": Ending("warn"),
        "exception in the loss": Ending(error=Mistake(), calls=middle),
        "exception in the first forward": Ending(error=Mistake(), place="forward"),
        "exception in forward at a step": Ending(error=Mistake(), place="forward", calls=middle),
        "exception after training": Ending(error=Mistake(), place="forward", calls=steps + 1),
        "Ctrl-C in the loss": Ending(error=KeyboardInterrupt(), calls=middle),
        "exit": Ending(error=SystemExit(3), place="forward", calls=middle),
        **{
            name: Ending(error=error, place="forward", calls=middle)
            for name, error in INTERRUPTIONS.items()
        },
        "out of memory": Ending(error=no_memory, place="forward", calls=middle),
        "out of disk": Ending(
            error=OSError(28, "No space left on device"), place="forward", calls=middle
        ),
        "out of host memory": Ending(error=MemoryError(), place="forward", calls=middle),
    }


def random_numbers() -> tuple[Any, ...]:
    """The state of numpy's generator."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return name, keys.tobytes(), *rest


PROCESS = {
    "random state of Python": Clause(lambda _: random.getstate(), lambda _: random.random()),
    "random state of numpy": Clause(lambda _: random_numbers(), lambda _: np.random.rand()),
    "numpy's treatment of errors": Clause(
        lambda _: np.geterr(), lambda _: np.seterr(over="raise"), undone=False
    ),
    "signal handlers": Clause(
        lambda _: [
            signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGALRM, signal.SIGTERM)
        ],
        lambda _: signal.signal(signal.SIGALRM, signal.SIG_IGN),
        undone=False,
    ),
    "trace function": Clause(
        lambda _: sys.gettrace(),
        lambda _: sys.settrace(lambda *_: None),
        undone=False,
    ),
    "garbage collector": Clause(
        lambda _: (gc.isenabled(), gc.get_threshold()),
        lambda _: gc.set_threshold(100_000),
        undone=False,
    ),
    "environment": Clause(
        lambda _: dict(os.environ), lambda _: os.environ.update(CHANGED="1"), undone=False
    ),
}


class Helper:
    """An object of the user's that a model holds, with all that one can hold."""

    shared: ClassVar[list[int]] = []
    count = 0

    def __init__(self) -> None:
        self.array = np.zeros(3)
        self.dice = np.random.default_rng(0)
        self.python = random.Random(0)
        self.counter = Counter(steps=100)
        self.space = SimpleNamespace(value=0)
        self.buffer = bytearray(3)
        self.queue = deque([1], maxlen=2)
        self.read = partial(vars, self.space)


REACHED = {
    "arrays of a helper": Clause(
        lambda w: w.model.helper.array.tolist(), lambda w: w.model.helper.array.fill(1)
    ),
    "numpy's generator in a helper": Clause(
        lambda w: repr(w.model.helper.dice.bit_generator.state),
        lambda w: w.model.helper.dice.random(),
    ),
    "Python's generator in a helper": Clause(
        lambda w: w.model.helper.python.getstate(), lambda w: w.model.helper.python.random()
    ),
    "counter of a helper": Clause(
        lambda w: dict(w.model.helper.counter), lambda w: w.model.helper.counter.update("a")
    ),
    "namespace of a helper": Clause(
        lambda w: dict(w.model.helper.read()),
        lambda w: setattr(w.model.helper.space, "value", 1),
    ),
    "buffer of a helper": Clause(
        lambda w: bytes(w.model.helper.buffer), lambda w: w.model.helper.buffer.extend(b"x")
    ),
    "queue of a helper": Clause(
        lambda w: list(w.model.helper.queue), lambda w: w.model.helper.queue.appendleft(2)
    ),
    "class of a helper": Clause(
        lambda w: (Helper.count, list(Helper.shared)),
        lambda w: (setattr(Helper, "count", 1), Helper.shared.append(1)),
    ),
    "dictionary of a helper": Clause(
        lambda w: sorted(vars(w.model.helper)), lambda w: setattr(w.model.helper, "new", 1)
    ),
}
"""What a model refers to; its `helper` is a `Helper`."""


@contextmanager
def helpers_kept() -> Iterator[None]:
    """A change that a test makes to the class is no fault of the next tests."""
    yield
    Helper.count = 0
    Helper.shared.clear()


@contextmanager
def process_kept() -> Iterator[None]:
    """A change that a test makes to the process is no fault of the next tests."""
    environment, errors, alarm = dict(os.environ), np.geterr(), signal.getsignal(signal.SIGALRM)
    thresholds, trace = gc.get_threshold(), sys.gettrace()
    yield
    sys.settrace(trace)
    gc.set_threshold(*thresholds)
    signal.signal(signal.SIGALRM, alarm)
    np.seterr(**errors)
    os.environ.clear()
    os.environ.update(environment)


def readings(clauses: Mapping[str, Clause], world: Any) -> dict[str, Any]:
    """What every clause reads now."""
    return {name: clause.read(world) for name, clause in clauses.items()}


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is not as it was: a line for each thing, not the bytes of all tensors."""
    found: list[str] = []
    for name, value in before.items():
        if isinstance(value, dict):
            keys: Iterable[Any] = {**value, **now[name]}
            found += [f"{name}: {key}" for key in keys if value.get(key) != now[name].get(key)]
        found += [name] if value != now[name] and name not in "".join(found) else []
    return found


def is_seen(clause: Clause, world: Any) -> bool:
    """Whether a reading tells its change."""
    before = clause.read(world)
    clause.change(world)
    return bool(clause.read(world) != before)


def nothing(*_: Any) -> None:
    """No event."""


def after(calls: int, event: Callable[[], Any]) -> Callable[..., None]:
    """A function that does nothing so often, and then `event` each time."""
    left = [calls]

    def count(*_: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            event()

    return count


def once(event: Callable[[], Any]) -> Callable[[], None]:
    """The same, a single time."""
    events = [event]

    def happen() -> None:
        if events:
            events.pop()()

    return happen


def throw(error: BaseException) -> Callable[[], Any]:
    """A function that raises."""

    def event() -> None:
        raise error

    return event


def staged(
    ending: Ending, happen: Callable[[], Any]
) -> tuple[Callable[..., None], Callable[[], None]]:
    """What a check that ends so calls in each forward pass, and in each loss.

    `happen` happens in the third loss.
    """
    event = after(ending.calls, throw(ending.error) if ending.error else nothing)
    third = after(2, once(happen))

    def in_loss() -> None:
        third()
        if ending.place == "loss":
            event()

    return event if ending.place == "forward" else nothing, in_loss


def around(
    clauses: Mapping[str, Clause], world: Any, ending: Ending, run_to: Callable[[Ending, Any], None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The readings of all clauses before and after a check that ends so."""
    before = readings(clauses, world)
    with pytest.raises(type(ending.error)) if ending.error else nullcontext():
        run_to(ending, world)
    return before, readings(clauses, world)


@contextmanager
def in_time(seconds: float, error: BaseException) -> Iterator[None]:
    """Raise from a signal, as pytest-timeout and Ctrl-C do, in the middle of whatever runs.

    Not in the middle of what no check can put in order, whoever runs it: the compiled parts of
    TensorFlow and JAX swallow some of what is raised in them, and a context manager of TensorFlow's
    that is interrupted on its way out leaves a graph open; and Python swallows what is raised in a
    callback of a weak reference. There it waits for the next millisecond.
    What is swallowed elsewhere, as by a bare ``except`` of Keras', is raised again.
    """

    def stop(_: int, frame: FrameType | None) -> None:
        inside = frame and frame.f_globals.get("__name__", "").split(".")[0] in NOT_IN
        signal.setitimer(signal.ITIMER_REAL, 0.001 if inside else 5.0)
        if not inside:
            raise error

    before = signal.signal(signal.SIGALRM, stop)
    gc.disable()  # Python swallows what is raised in a callback of the collector, as hypothesis has
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()
