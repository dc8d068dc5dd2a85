"""Lines of the user's code, as messages show them, and how to find them on the stack."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType

PACKAGE = str(Path(__file__).resolve().parents[1])
"""Folder of this package, whose frames are never the user's code."""


def source_line(path: str, number: int) -> str:
    """A line with its place: ``net.py:12: h = F.dropout(h, 0.5)``."""
    return f"{Path(path).name}:{number}: {linecache.getline(path, number).strip()}"


def line_of(frame: FrameType) -> str:
    """The line that a frame is at."""
    return source_line(frame.f_code.co_filename, frame.f_lineno)


def frames_within(outermost: CodeType) -> Iterator[FrameType]:
    """The frames from the caller out to a call of `outermost`, innermost first.

    Those of this package are left out.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not outermost:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            yield frame
        frame = frame.f_back
