"""Progress while a test runs: drawn if the terminal is free for that, else one line at most."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_bncheck.plugin import internals, ranks

if TYPE_CHECKING:
    import pytest

    from pytest_bncheck.reports.progress import Forecast, Progress


@contextmanager
def progress(item: pytest.Item) -> Iterator[Progress | Forecast | None]:
    """Progress of one check, erased at the end; None if nobody would read it."""
    config, stdout = item.config, sys.__stdout__
    if stdout is None or not _is_read(config):
        yield None
        return
    if not _can_draw(config):
        from pytest_bncheck.reports.progress import Forecast

        yield Forecast(lambda line: internals.write_line(config, line), item.nodeid)
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


def _is_read(config: pytest.Config) -> bool:
    """Whether somebody reads what this process writes."""
    quiet = config.getoption("verbose", -1) < 0  # the option comes with pytest's terminal
    return not quiet and not internals.is_worker(config) and ranks.is_first()


def _can_draw(config: pytest.Config) -> bool:
    """Whether stdout is a terminal that nothing else writes to during a test, as a CI system."""
    return (
        internals.owns_terminal(config)
        and not any(os.environ.get(name) for name in ("CI", "BUILD_NUMBER"))
        and os.environ.get("TERM", "dumb" if os.name == "posix" else "") != "dumb"
    )
