"""Lines of the user's code, as messages show them, and how to find them on the stack."""

from __future__ import annotations

import dis
import inspect
import linecache
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

PACKAGE = str(Path(__file__).resolve().parents[1])
"""Folder of this package, whose frames are never the user's code."""


def source_line(path: str, number: int) -> str:
    """A line with its place: ``net.py:12: h = F.dropout(h, 0.5)``."""
    return f"{Path(path).name}:{number}: {linecache.getline(path, number).strip()}"


def line_of(frame: FrameType) -> str:
    """The line that a frame is at."""
    return source_line(frame.f_code.co_filename, frame.f_lineno)


_PASSED_ON = re.compile(r"\btraining\s*=\s*[\w.]+|#.*")
_ABOUT_MODES = re.compile(r"\b(training|is_grad_enabled)\b")


def line_about_modes(function: Callable[..., Any]) -> str:
    """The first line of a function's body that asks for the mode, with its place; or nothing.

    A line that only passes the mode on, ``layer(x, training=training)``, does not ask.
    """
    code: CodeType | None = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        return ""
    lines = {line for _, line in dis.findlinestarts(code) if line and line > code.co_firstlineno}
    for line in sorted(lines):
        if _ABOUT_MODES.search(_PASSED_ON.sub("", linecache.getline(code.co_filename, line))):
            return source_line(code.co_filename, line)
    return ""


def frames_within(outermost: CodeType) -> Iterator[FrameType]:
    """The frames from the caller out to a call of `outermost`, innermost first.

    Those of this package are left out.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not outermost:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            yield frame
        frame = frame.f_back
