"""What every framework's observer shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_bncheck.watch.ledger import Seen


class Watcher:
    """Looks at what a test does.

    Parameters
    ----------
    run
        What calls a function that looks; by default nothing does but this class.

    Attributes
    ----------
    active
        Whether a test is running, and no check.
    test
        What was seen in it.
    """

    def __init__(self, run: Callable[..., None] | None = None) -> None:
        self.active = False
        self.test = Seen()
        self._run = run or _call

    def guarded(self, look: Callable[..., None], *args: Any) -> None:
        """Look, and raise nothing into a test: a failure ends the watching of this one."""
        try:
            self._run(look, *args)
        except Exception as error:
            self.active = False
            text = " ".join(str(error).split())[:200]
            self.test.problem = self.test.problem or f"{type(error).__name__}: {text}"


def _call(look: Callable[..., None], *args: Any) -> None:
    look(*args)
