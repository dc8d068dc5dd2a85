"""Progress of a long check, seen on a terminal's screen."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

pty = pytest.importorskip("pty")
pyte = pytest.importorskip("pyte")

# Without patience, so that a short check shows what a long one does.
HASTE = "\nfrom pytest_bncheck.reports import progress\nprogress.PATIENCE = progress.PAUSE = 0\n"

TESTS = """
import logging
import sys
import pytest
from toy import ToyModel, toy_batch

class Noisy(ToyModel):
    def __call__(self, inputs):
        print("noise")
        print("noise", file=sys.stderr)
        logging.warning("noise")
        return super().__call__(inputs)

@pytest.fixture
def bncheck_model():
    return Noisy()

def test_a(): ...
def test_b(): ...

@pytest.mark.bn_consistency(steps=60)
def test_marked(): ...

def test_captured(bncheck, capsys):
    print("before")
    bncheck(Noisy(), toy_batch(), steps=60)
    out, err = capsys.readouterr()
    assert set(out.split()) == {"before", "noise"}
    assert set(err.split()) == {"noise"}

@pytest.mark.bn_consistency(steps=5)
def test_shown(): ...
"""


class Terminal:
    """A run of pytest on a terminal of 80 columns, and what was to be seen."""

    def __init__(self, project, *args: str, **environment: str) -> None:
        self.screen = pyte.Screen(80, 200)
        self.screen.set_mode(pyte.modes.LNM)
        self.progress: dict[str, tuple[int, str]] = {}
        self.raw = b""
        stream = pyte.ByteStream(self.screen)
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--bncheck", *args]
        process = subprocess.Popen(
            command,
            cwd=project.path,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "80", **environment},
            **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
        )
        os.close(theirs)
        while data := self._read(ours):
            self.raw += data
            for part in re.split(rb"(?<=\x1b8)", data):  # each picture, however fast they come
                stream.feed(part)
                if part.endswith(b"\x1b8"):
                    self._look()
        os.close(ours)
        self.exit = process.wait()

    @staticmethod
    def _read(terminal: int) -> bytes:
        try:
            return os.read(terminal, 4096)
        except OSError:  # how Linux says that the other side was closed
            return b""

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display]

    def _look(self) -> None:
        """Note progress, and where the cursor is then: its column, and the line above."""
        for row, line in enumerate(self.lines):
            if line.startswith("bncheck: ") and "loss" in line:
                cursor = self.screen.cursor
                above = self.lines[cursor.y] if cursor.y == row - 1 else "not above"
                self.progress[line] = cursor.x, above


@pytest.fixture
def noisy(project):
    conftest = project.path / "conftest.py"
    conftest.write_text(conftest.read_text() + HASTE)
    project.pytester.makepyfile(test_it=TESTS)
    return project


def test_progress_is_below_the_dots_and_goes_away(noisy):
    terminal = Terminal(noisy, "-k", "not shown")
    assert terminal.exit == 0, terminal.lines
    assert any("step" in line and "of 60" in line for line in terminal.progress)
    assert any("comparing the modes" in line for line in terminal.progress)
    assert {above for _, above in terminal.progress.values()} <= {"test_it.py ..", "test_it.py ..."}
    assert {cursor for cursor, _ in terminal.progress.values()} <= {13, 14, 15}
    assert not [line for line in terminal.lines if "loss" in line]
    (result,) = [line for line in terminal.lines if line.startswith("test_it.py")]
    assert result.startswith("test_it.py .... ")
    assert result.endswith("[100%]")


def test_captured_output_is_complete_and_pure(noisy):
    terminal = Terminal(noisy, "-k", "shown", "--tb=short")
    assert terminal.exit == 1
    assert terminal.progress
    titles = [line for line in terminal.lines if "Captured" in line]
    assert len(titles) == 3
    after = terminal.lines[terminal.lines.index(titles[0]) : terminal.lines.index(titles[1])]
    assert set(after[1:]) == {"noise"}


def test_with_the_tests_names(noisy):
    terminal = Terminal(noisy, "-k", "marked", "-v")
    assert terminal.exit == 0, terminal.lines
    assert {above for _, above in terminal.progress.values()} == {"test_it.py::test_marked"}
    assert any(line.startswith("test_it.py::test_marked PASSED  ") for line in terminal.lines)


def test_an_interrupted_check_leaves_nothing(noisy):
    conftest = noisy.path / "conftest.py"
    conftest.write_text(
        conftest.read_text()
        + """
step = ToyAdapter.train_step
def train_step(self, batch):
    if len(self.losses) == 9:
        raise KeyboardInterrupt
    step(self, batch)
ToyAdapter.train_step = train_step
"""
    )
    terminal = Terminal(noisy, "-k", "marked")
    assert terminal.exit == 2
    assert terminal.progress
    assert not [line for line in terminal.lines if "loss" in line]


@pytest.mark.parametrize(
    ("args", "environment"),
    [
        (["-s"], {}),
        (["--capture=tee-sys"], {}),
        (["-q"], {}),
        (["-n1"], {}),
        (["--log-cli-level=ERROR"], {}),
        (["-o", "log_cli=true"], {}),
        (["-p", "no:terminal"], {}),
        ([], {"CI": "true"}),
        ([], {"TERM": "dumb"}),
    ],
    ids=lambda value: str(value or ""),
)
def test_no_progress(noisy, args, environment):
    if "-n1" in args:
        pytest.importorskip("xdist")
    terminal = Terminal(noisy, "-k", "marked", *args, **environment)
    assert terminal.exit == 0, terminal.lines
    assert b"comparing the modes" not in terminal.raw
    assert b"\x1b7" not in terminal.raw


def test_nothing_but_text_where_there_is_no_terminal(noisy):
    result = noisy.run("--bncheck", "-k", "marked", subprocess=True)
    assert result.ret == 0
    assert "\x1b" not in result.stdout.str() + result.stderr.str()
