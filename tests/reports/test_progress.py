"""What a long check shows while it trains."""

from __future__ import annotations

import re

import pytest

from pytest_bncheck.reports.progress import Forecast, Progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Shown:
    """A progress, the time, and what it wrote, without the moves of the cursor."""

    def __init__(self, width: int = 80) -> None:
        self.clock, self.raw = Clock(), list[str]()
        self.progress = Progress(self.raw.append, width, self.clock)

    def step(self, done: int, most: int, fixed: bool, now: float, loss: float = 0.5) -> None:
        self.clock.now = now
        self.progress(done, most, fixed, lambda: loss)

    @property
    def texts(self) -> list[str]:
        return [re.sub(r"\x1b(\[\d?[A-Z]|[D78])|\r", "", raw) for raw in self.raw]


def test_a_short_check_shows_nothing_and_asks_for_no_loss() -> None:
    shown = Shown()
    for step in range(1, 10):
        shown.clock.now = step / 10
        shown.progress(step, 9, True, pytest.fail)
    shown.progress.close()
    assert shown.raw == []


def test_steps_loss_and_time_left() -> None:
    shown = Shown()
    shown.step(1, 11, True, now=5)
    shown.step(2, 11, True, now=7, loss=float("nan"))
    shown.step(2, 150, False, now=8)
    assert shown.texts == [
        "bncheck: step 1 of 11, loss 0.5",
        "bncheck: step 2 of 11, loss nan, about 18 s left",  # the first step does not count
        "bncheck: step 2 of at most 150, loss 0.5, at most 7 min 24 s left",
    ]


def test_seldom_but_always_at_the_end() -> None:
    shown = Shown()
    for step in range(1, 21):
        shown.step(step, 20, True, now=step / 8)
    assert shown.texts == [
        "bncheck: step 8 of 20, loss 0.5, about 2 s left",
        "bncheck: step 12 of 20, loss 0.5, about 1 s left",
        "bncheck: step 16 of 20, loss 0.5, about 0 s left",
        "bncheck: 20 steps made, loss 0.5; comparing the modes",
    ]


def test_one_line_that_is_erased() -> None:
    shown = Shown(width=20)
    shown.step(1, 2, True, now=3)
    shown.progress.close()
    assert shown.texts == ["bncheck: step 1 of ", ""]


def forecast(fixed: bool, *times: float) -> list[str]:
    """What is said when 150 steps may be made and these are the seconds after the first ones."""
    clock, said = Clock(), list[str]()
    watching = Forecast(said.append, "test_net.py::test_net", clock)
    for done, now in enumerate(times, 1):
        clock.now = now
        watching(done, 150, fixed, pytest.fail)
    return said


def test_a_long_check_says_once_how_long_it_takes() -> None:
    # The first step, in which things are built, does not count.
    said = forecast(False, 60.0, 61.0, 62.0, 63.0, 64.0)
    assert said == [
        "bncheck: test_net.py::test_net makes at most 150 steps, at most 2 min 27 s more, "
        "then a few passes"
    ]
    said = forecast(True, 1.0, 1.1, 1.2, 1.3)
    assert said == [
        "bncheck: test_net.py::test_net makes 150 steps, about 15 s more, then a few passes"
    ]


def test_a_short_check_has_no_forecast() -> None:
    assert forecast(False, 60.0, 60.06, 60.12, 60.18) == []
