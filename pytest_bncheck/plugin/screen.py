"""Progress on the terminal while a test runs, if the terminal is free to draw on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_bncheck.plugin import internals

if TYPE_CHECKING:
    import pytest

    from pytest_bncheck.reports.progress import Progress


@contextmanager
def progress(config: pytest.Config) -> Iterator[Progress | None]:
    """Progress of one check, erased at the end; None if nobody watches a terminal."""
    stdout = sys.__stdout__
    if stdout is None or not _can_draw(config):
        yield None
        return
    from pytest_bncheck.reports.progress import Progress

    def write(text: str) -> None:
        # Not through pytest's writer: it counts columns, and the line drawn here takes none.
        with internals.uncaptured(config):
            stdout.write(text)
            stdout.flush()

    drawn = Progress(write, config.get_terminal_writer().fullwidth)
    try:
        yield drawn
    finally:
        drawn.close()


def _can_draw(config: pytest.Config) -> bool:
    """Whether stdout is a terminal that nothing else writes to during a test.

    Not in a worker of pytest-xdist, which has no terminal, and not on a CI system.
    """
    return (
        internals.owns_terminal(config)
        and config.option.verbose >= 0
        and not internals.is_worker(config)
        and not any(os.environ.get(name) for name in ("CI", "BUILD_NUMBER"))
        and os.environ.get("TERM", "dumb" if os.name == "posix" else "") != "dumb"
    )
