"""Runs that something ends from outside: a signal to pytest itself, or a disk that is full."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

resource = pytest.importorskip("resource", reason="needs limits of processes")

OLD = "the report of the run before"

CHECKED = """
import pytest
@pytest.mark.bn_consistency(steps=3, ignore="BN")
def test_a(): ...
"""

SIGNALLED = """
import os, signal, sys, pytest
from toy import ToyModel
class Ending(ToyModel):
    def __call__(self, x):
        os.kill(os.getpid(), signal.SIGTERM)
        return super().__call__(x)
@pytest.fixture
def bncheck_model(): return Ending()
@pytest.mark.bn_consistency(steps=3)
def test_a(): ...
def test_b(): ...
"""

HANDLED = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"

AT_THE_REPORT = """
import os, signal
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
"""

BYTES = 2000
"""Less than a report has, and more than what pytest captures."""


@pytest.fixture
def run(project):
    """Runs pytest in a process of its own beside a report of an earlier run."""
    report = project.path / "report.json"
    report.write_text(OLD)

    def run_pytest(most_bytes=None):
        def limit():
            if most_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

        command = [sys.executable, "-B", "-m", "pytest", "-p", "no:cacheprovider"]
        ours = ["-p", "pytest_bncheck.plugin", "--bncheck", f"--bncheck-json={report}"]
        return subprocess.run(
            [*command, *ours],
            cwd=project.path,
            env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            capture_output=True,
            text=True,
            preexec_fn=limit,
            timeout=120,
        )

    return run_pytest


def old_report_is_whole(project):
    return (project.path / "report.json").read_text() == OLD


def test_a_signal_ends_the_run_and_leaves_the_old_report(project, run):
    project.pytester.makepyfile(SIGNALLED)
    assert run().returncode == -signal.SIGTERM
    assert old_report_is_whole(project)
    assert not list(project.path.glob(".bncheck.*"))


def test_a_signal_while_the_report_is_written_leaves_the_old_one(project, run):
    project.pytester.makepyfile(AT_THE_REPORT + CHECKED)
    assert run().returncode == -signal.SIGTERM
    assert old_report_is_whole(project)


def test_a_signal_that_the_users_code_handles_fails_that_test(project, run):
    project.pytester.makepyfile(HANDLED + SIGNALLED)
    ended = run()
    assert ended.returncode == pytest.ExitCode.TESTS_FAILED
    assert "1 failed, 1 passed" in ended.stdout
    assert [check["error"] for check in project.report()["checks"]] == ["SystemExit: 143"]


def test_a_disk_that_is_full_leaves_the_old_report(project, run):
    project.pytester.makepyfile(CHECKED)
    ended = run(most_bytes=BYTES)
    assert ended.returncode == pytest.ExitCode.TESTS_FAILED
    assert "1 passed" in ended.stdout
    assert "report.json could not be written: [Errno 27] File too large" in ended.stdout
    assert old_report_is_whole(project)
    assert not list(project.path.glob(".bncheck.*"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full device")
def test_a_step_summary_on_a_full_disk_costs_itself_alone(project, run, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "/dev/full")
    project.pytester.makepyfile(CHECKED)
    ended = run()
    assert ended.returncode == pytest.ExitCode.OK
    assert "the step summary /dev/full could not be written: [Errno 28]" in ended.stdout
    assert project.report()["summary"]["checks"] == 1
