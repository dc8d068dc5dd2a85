"""How far a long check is: on a line of a terminal that is gone in the end, or in one sentence."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pytest_bncheck.wording import LONG, duration

PATIENCE = 1.0
"""Seconds before a check is long enough to show anything."""

TIMED = 3
"""Steps after which the time of the others is known."""

PAUSE = 0.5
"""Seconds between two pictures; each needs the loss, which a GPU has to be waited for."""

# Index and back up: makes room for a line below without leaving the column. Then save the cursor.
_BELOW = "\x1bD\x1b[1A\x1b7\x1b[1B\r\x1b[K"
_BACK = "\x1b8"


@dataclass
class Progress:
    """Shows the steps of one check below the cursor, which stays where pytest left it.

    Attributes
    ----------
    write
        Puts characters on the terminal, past any capturing.
    width
        Columns of the terminal.
    clock
        Seconds.
    """

    write: Callable[[str], None]
    width: int = 80
    clock: Callable[[], float] = time.monotonic
    _started: float = field(init=False)
    _first: float | None = field(default=None, init=False)
    _shown: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._started = self.clock()

    def __call__(self, done: int, most: int, fixed: bool, loss: Callable[[], float]) -> None:
        """Called by the experiment after each training step.

        Parameters
        ----------
        done, most
            Steps so far, and the last one there can be; equal after the last one.
        fixed
            Whether it was clear from the start that all the steps would be made.
        loss
            Gives the latest loss; asked for only if it is shown.
        """
        now = self.clock()
        if self._first is None:
            self._first = now  # What is built in the first step says nothing about the others.
        if now - self._started < PATIENCE:
            return
        if done == most:
            self._show(f"{done} steps made, loss {loss():.3g}; comparing the modes", now)
        elif self._shown is None or now - self._shown >= PAUSE:
            at_most = "" if fixed else "at most "
            text = f"step {done} of {at_most}{most}, loss {loss():.3g}"
            if done > 1:
                seconds = (now - self._first) / (done - 1) * (most - done)
                text += f", {at_most or 'about '}{duration(seconds)} left"
            self._show(text, now)

    def _show(self, text: str, now: float) -> None:
        self._shown = now
        self.write(f"{_BELOW}{f'bncheck: {text}'[: self.width - 1]}{_BACK}")

    def close(self) -> None:
        """Erase the line."""
        if self._shown is not None:
            self.write(f"{_BELOW}{_BACK}")


@dataclass
class Forecast:
    """Says once, after a few steps, how long a check will take, if that is long.

    Attributes
    ----------
    write
        Prints a line.
    who
        The test that the check belongs to.
    clock
        Seconds.
    """

    write: Callable[[str], None]
    who: str
    clock: Callable[[], float] = time.monotonic
    _first: float | None = field(default=None, init=False)

    def __call__(self, done: int, most: int, fixed: bool, loss: Callable[[], float]) -> None:
        """As `Progress` is called; no loss is asked for."""
        if done == 1:
            self._first = self.clock()
        elif done == TIMED and self._first is not None:
            each = (self.clock() - self._first) / (done - 1)
            if each * (most - done) > LONG:
                at_most = "" if fixed else "at most "
                left = f"{at_most or 'about '}{duration(each * (most - done))}"
                steps = f"{at_most}{most} steps, {left} more"
                self.write(f"bncheck: {self.who} makes {steps}, then a few passes")
