"""Where in the user's code something was called."""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import pytest_bncheck

_INSTALLED = re.compile(r".*[/\\](?:site|dist)-packages[/\\]")
_STANDARD = sysconfig.get_paths()["stdlib"]
_OURS = str(Path(pytest_bncheck.__file__).parent)
_GENERATED = "__autograph_generated_file"
_DEPTH = 60
"""Frames that are looked at."""


class Place(NamedTuple):
    """A line of the user's.

    Attributes
    ----------
    file
        Relative to the root of the tests, with slashes.
    line
        Counted from 1.
    function
        The function or method, not one inside it.
    """

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Places:
    """Finds the user's lines.

    Parameters
    ----------
    root
        The directory that holds the user's code: what lies elsewhere, or is installed and no
        copy of what lies there, is not the user's.
    libraries
        The directories of the framework, whose frames are passed over.
    """

    def __init__(self, root: str, libraries: Iterable[str]) -> None:
        self._root = os.path.join(os.path.realpath(root), "")
        self._passed_over = (*(os.path.join(each, "") for each in libraries), _OURS, "<")
        self._known: dict[str, str | None] = {}

    def of(self, frame: FrameType | None, skip: Callable[[FrameType], bool]) -> Place | None:
        """The line that called into the framework, if it is the user's.

        Parameters
        ----------
        frame
            The innermost frame to look at.
        skip
            Whether a frame only passes the call on.
        """
        for _ in range(_DEPTH):
            if frame is None:
                return None
            file = frame.f_code.co_filename
            if file.startswith(self._passed_over) or _GENERATED in file or skip(frame):
                frame = frame.f_back
                continue
            name = self._relative(file)
            if name is None and file.startswith(_STANDARD) and not _is_installed(file):
                frame = frame.f_back  # contextlib, functools
                continue
            function = frame.f_code.co_qualname.partition(".<locals>")[0]
            return Place(name, frame.f_lineno, function) if name else None
        return None

    def _relative(self, file: str) -> str | None:
        """A file as the user names it; None if it is not the user's."""
        if file not in self._known:
            path = os.path.realpath(file)
            if _is_installed(path):
                path = self._source_of(path)
            name = path.removeprefix(self._root).replace(os.sep, "/")
            self._known[file] = name if path.startswith(self._root) else None
        return self._known[file]

    def _source_of(self, path: str) -> str:
        """The file that an installed one is a copy of, as tox installs what it tests."""
        inside = _INSTALLED.sub("", path)
        sources = (os.path.join(self._root, folder, inside) for folder in ("", "src"))
        return next(filter(os.path.isfile, sources), "")


def _is_installed(path: str) -> bool:
    return _INSTALLED.match(path) is not None


def passes_on(frame: FrameType) -> bool:
    """No frame of the user's only passes a call on."""
    return False


def same_function(one: Place | None, other: Place) -> bool:
    """Whether two lines are in one function."""
    return one is not None and (one.file, one.function) == (other.file, other.function)


def is_under(frame: FrameType | None, function: str) -> bool:
    """Whether a function of this name is among the callers."""
    for _ in range(_DEPTH):
        if frame is None:
            return False
        if frame.f_code.co_name == function:
            return True
        frame = frame.f_back
    return False
