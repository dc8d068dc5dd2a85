"""What takes a change back, and how several are taken back."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, TypeAlias

Undo: TypeAlias = Callable[[], object]
"""Puts one object back as it was."""


def run_all(undos: Iterable[Undo]) -> None:
    """Run all, whatever one of them raises; then raise the first error.

    One that raises is run again: a signal may have interrupted it in its middle.
    """
    waiting = deque(undos)
    first: BaseException | None = None
    again: Undo | None = None
    while waiting:
        try:
            while waiting:
                waiting[0]()
                waiting.popleft()
        except BaseException as error:
            first = first or error
            if again is waiting[0]:
                waiting.popleft()
            else:
                again = waiting[0]
    try:
        if first is not None:
            raise first
    finally:
        first = None  # else the error would hold this frame, and its frame the error


class Undisturbed:
    """A ``with`` block in which signals wait: their handlers are called at its end.

    Only in the main thread, where Python calls handlers at all.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}
        self._waiting: list[tuple[int, FrameType | None]] = []

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        try:
            for number in signal.valid_signals():
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._wait)
        except BaseException:  # of a handler that still was in place
            self._put_back()
            raise

    def __exit__(self, *_: object) -> None:
        self._put_back()
        for number, frame in self._waiting:
            handler = self._handlers[number]
            if callable(handler):
                handler(number, frame)
            else:  # what was put back meanwhile is the system's
                signal.raise_signal(number)

    def _wait(self, number: int, frame: FrameType | None) -> None:
        self._waiting.append((number, frame))

    def _put_back(self) -> None:
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._wait:  # not what an undo put in its place
                signal.signal(number, handler)

    def handler_of(self, number: int) -> Any:
        """What is called for a signal at the end of the block."""
        return self._handlers[number]

    def put_handler(self, number: int, handler: Any) -> None:
        """Let something else be called for a signal at the end of the block."""
        self._handlers[number] = handler


def handler_of(number: int) -> Any:
    """What is called for a signal, at once or when signals no longer wait."""
    handler = signal.getsignal(number)
    while isinstance(waiting := getattr(handler, "__self__", None), Undisturbed):
        handler = waiting.handler_of(number)
    return handler


def put_handler(number: int, handler: Any) -> None:
    """Let something else be called for a signal, at once or when signals no longer wait."""
    last, now = None, signal.getsignal(number)
    while isinstance(waiting := getattr(now, "__self__", None), Undisturbed):
        last, now = waiting, waiting.handler_of(number)
    if last is None:
        signal.signal(number, handler)
    else:
        last.put_handler(number, handler)


class Ending:
    """What has to be done at the end of a ``with`` block, once, whatever a signal interrupts.

    Enter it twice, ``with ending, ending:``. A signal can come when the first exit has just begun;
    then the second does the work.
    """

    def __init__(self, work: Undo) -> None:
        self._work, self._begun = work, False

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        if not self._begun:
            with Undisturbed():
                self._begun = True
                self._work()
