"""What takes a change back, and how several are taken back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeAlias

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
