"""Reports that cannot be written, tests that run twice, and checks that end in SystemExit."""

from __future__ import annotations

import os

import pytest

from project import CONFTEST
from pytest_bncheck.reports import wire

CHECKED = """
import pytest
@pytest.mark.bn_consistency(steps=3, ignore="BN")
def test_a(): ...
def test_b(): assert 0
"""

TWICE = """
import os, pytest
from toy import ToyModel
N = [0]
@pytest.fixture
def bncheck_model():
    N[0] += 1
    broken = os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0" and N[0] == 1
    return ToyModel(0.01 if broken else 0.1)
@pytest.mark.bn_consistency(steps=60)
def test_a(): ...
"""

DOUBLED = """
def pytest_collection_modifyitems(items):
    items.append(items[0])
"""

EXIT = """
import sys, pytest
from toy import ToyModel
class Exiting(ToyModel):
    def __call__(self, x): sys.exit("usage")
@pytest.fixture
def bncheck_model(): return Exiting()
@pytest.mark.bn_consistency(steps=3)
def test_a(): ...
"""

PROCESSES = [(), ("-n2",)]


def workers(*args):
    if args:
        pytest.importorskip("xdist")
    return args


@pytest.mark.parametrize(
    ("kind", "error", "processes"),
    [
        ("json", ValueError("no"), ()),
        ("json", ImportError(), ("-n2",)),
        ("html", RuntimeError("LaTeX\nmore"), ()),
    ],
)
def test_no_error_in_a_report_takes_the_runs_output(project, monkeypatch, processes, error, kind):
    if kind == "html":
        pytest.importorskip("jinja2")
    project.pytester.makepyfile(CHECKED)
    module = "html" if kind == "html" else "wire"

    def fail(*_):
        raise error

    monkeypatch.setattr(f"pytest_bncheck.reports.{module}.write", fail)
    args = (f"--bncheck-{kind}=report", "--junitxml=junit.xml", *workers(*processes))
    result = project.run(*args)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*FAILURES*", "*report*could not be written: *"])
    assert (project.path / "junit.xml").exists()
    assert not (project.path / "report").exists()


def _loop(project):
    os.symlink("loop", project.path / "loop")
    return "loop"


PATHS = {
    "too long": lambda project: "r" * 300,
    "loop": _loop,
    "directory": lambda project: ".",
    "in a file": lambda project: "conftest.py/report",
    "no such directory": lambda project: "none/report",
}


@pytest.mark.parametrize("kind", ["json", "html"])
@pytest.mark.parametrize("path", PATHS)
def test_paths_are_checked_without_raising(project, path, kind):
    project.pytester.makepyfile(CHECKED)
    result = project.run(f"--bncheck-{kind}={PATHS[path](project)}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--bncheck-{kind}=*cannot be written: *"])


def test_a_path_that_no_system_takes(project):
    (project.path / "pytest.ini").write_text("[pytest]\nbncheck_json = a\0b.json\n")
    project.pytester.makepyfile(CHECKED)
    result = project.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*cannot be written: *"])


def test_names_as_long_as_the_system_allows(project):
    project.pytester.makepyfile(CHECKED)
    name = "r" * 250 + ".json"
    project.run(f"--bncheck-json={name}")
    assert project.report(name)["summary"]["checks"] == 1


def test_both_reports_in_one_file_are_refused(project):
    project.pytester.makepyfile(CHECKED)
    result = project.run("--bncheck-json=r", "--bncheck-html=r")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*cannot be the same file*"])


@pytest.mark.parametrize("how", ["--keep-duplicates", "each"])
def test_a_test_that_runs_twice_keeps_both_checks(project, how):
    path = str(project.pytester.makepyfile(test_twice=TWICE))
    args = (path, path, how) if how != "each" else workers("--dist=each", "--tx=2*popen")
    result = project.run("--bncheck-json=report.json", *args)
    result.assert_outcomes(passed=1, failed=1)
    assert [check["verdict"] for check in project.report()["checks"]] == ["fail", "pass"]


def test_an_item_that_is_in_a_session_twice_keeps_both_checks(project):
    project.pytester.makeconftest(CONFTEST + DOUBLED)
    project.pytester.makepyfile(TWICE + "def test_between(): ...\n")
    result = project.run("--bncheck-json=report.json")
    result.assert_outcomes(passed=2, failed=1)
    assert [check["verdict"] for check in project.report()["checks"]] == ["fail", "pass"]


@pytest.mark.parametrize("processes", PROCESSES, ids=["one process", "xdist"])
def test_a_check_that_ends_in_system_exit_is_in_the_report(project, processes):
    project.pytester.makepyfile(EXIT)
    project.run("--bncheck-json=report.json", *workers(*processes))
    checks = project.report()["checks"]
    assert [check["error"] for check in checks] == ["SystemExit: usage"]


ONE_EXIT = """
import sys, pytest
@pytest.fixture
def bncheck_train_step(request):
    return (lambda model, batch: sys.exit(3)) if request.node.name == "test_a" else None
@pytest.mark.bn_consistency(steps=3, ignore="BN")
def test_a(): ...
@pytest.mark.bn_consistency(steps=3, ignore="BN")
def test_b(): ...
"""


@pytest.mark.parametrize("processes", PROCESSES, ids=["one process", "xdist"])
def test_a_system_exit_fails_its_own_test_only(project, processes):
    project.pytester.makepyfile(ONE_EXIT)
    result = project.run("--bncheck-json=report.json", *workers(*processes))
    result.assert_outcomes(failed=1, passed=1)
    assert [check["verdict"] for check in project.report()["checks"]] == ["error", "pass"]


def test_another_process_says_that_it_is_silent(project, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    project.pytester.makepyfile(CHECKED)
    project.run("--bncheck").stdout.fnmatch_lines(["*not the first process*"])


def test_empty_ranks_are_none(project, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "")
    monkeypatch.setenv("RANK", "")
    project.pytester.makepyfile(CHECKED)
    project.run("--bncheck-json=report.json")
    assert project.report()["summary"]["checks"] == 1


ASKED_FOR_TWICE = """
from toy import ToyModel, toy_batch
def test_a(request):
    request.getfixturevalue("bncheck")(ToyModel(), toy_batch(), steps=3, ignore="BN")
def test_between(): ...
"""


def test_a_test_that_asks_as_it_runs_can_be_in_a_session_twice(project):
    project.pytester.makeconftest((project.path / "conftest.py").read_text() + DOUBLED)
    project.pytester.makepyfile(ASKED_FOR_TWICE)
    project.run("--bncheck-json=report.json").assert_outcomes(passed=3)
    assert project.report()["summary"]["checks"] == 2


LATE = """
import pytest
@pytest.fixture
def late(request): request.applymarker(pytest.mark.bn_consistency(steps=3))
def test_a(late): assert 0
def test_b(): ...
"""


def test_a_mark_that_a_fixture_adds_comes_too_late(project, xdist_args):
    project.pytester.makepyfile(LATE.replace("assert 0", "..."))
    result = project.run("--bncheck-json=report.json", *xdist_args)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["E *a mark that a fixture adds comes too late*"])
    (check,) = project.report()["checks"]
    assert (check["nodeid"].partition("::")[2], check["verdict"]) == ("test_a", "error")


def test_a_mark_that_a_fixture_adds_skips_while_checks_are_off(project):
    project.pytester.makepyfile(LATE)
    result = project.run("--no-bncheck", "-rs")
    result.assert_outcomes(skipped=1, passed=1)
    result.stdout.fnmatch_lines(["bncheck: 1 test skipped; --bncheck runs them."])


REPLACED = """
import pytest
@pytest.fixture
def bncheck_report(): return 3
@pytest.mark.bn_consistency(steps=3)
def test_a(bncheck_report): ...
"""


def test_a_fixture_in_place_of_the_plugins_is_named(project):
    project.pytester.makepyfile(REPLACED)
    result = project.run("--bncheck")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*a fixture called bncheck_report replaces the plugin's*"])


KILLED = """
import os, signal, pytest
from toy import ToyModel
class Killed(ToyModel):
    def __call__(self, x): {how}
class TestKilled:
    @pytest.fixture
    def bncheck_model(self): return Killed()
    @pytest.mark.bn_consistency(steps=3)
    def test_killed(self): ...
@pytest.mark.bn_consistency(steps=3, ignore="BN")
def test_other(): ...
"""


@pytest.mark.parametrize(
    "how", ["os._exit(0)", "os._exit(7)", "os.kill(os.getpid(), signal.SIGTERM)", "os.abort()"]
)
@pytest.mark.parametrize("workers", ["-n1", "-n2"])
def test_a_worker_that_dies_in_a_check_costs_that_check_alone(project, workers, how):
    pytest.importorskip("xdist")
    project.pytester.makepyfile(KILLED.format(how=how))
    result = project.run(workers, "--bncheck-json=report.json")
    result.assert_outcomes(passed=1, failed=1)
    found = {c["nodeid"].split("::")[-1]: c["verdict"] for c in project.report()["checks"]}
    assert found == {"test_killed": "error", "test_other": "pass"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full device")
@pytest.mark.parametrize("kind", ["json", "html"])
def test_a_full_disk_costs_that_report_alone(project, kind):
    if kind == "html":
        pytest.importorskip("jinja2")
    project.pytester.makepyfile(CHECKED)
    options = f"--bncheck-{kind}=/dev/full", "--junitxml=junit.xml"
    result = project.run(*options)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*FAILURES*", "*report*could not be written: *No space left*"])
    assert (project.path / "junit.xml").exists()


ENDING = """
import asyncio, pytest
from toy import ToyModel
class Ending(ToyModel):
    def __call__(self, x): raise {error}
@pytest.fixture
def bncheck_model(): return Ending()
@pytest.mark.bn_consistency(steps=3)
def test_a(): ...
"""


@pytest.mark.parametrize("error", ["GeneratorExit", "asyncio.CancelledError", "BaseException"])
def test_no_exception_is_too_base_for_the_report(project, error):
    project.pytester.makepyfile(ENDING.format(error=error))
    project.run("--bncheck-json=report.json").assert_outcomes(failed=1)
    name = error.rpartition(".")[2]
    assert [check["error"] for check in project.report()["checks"]] == [f"{name}: "]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_that_nobody_reads_is_not_waited_for(project, monkeypatch):
    for name in ("report", "summary"):
        os.mkfifo(project.path / name)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary")
    project.pytester.makepyfile(CHECKED)
    result = project.run("--bncheck-json=report")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["the JSON report *report could not be written: *", "the step summary summary could *"]
    )


def test_a_pipe_that_somebody_reads_gets_the_report(tmp_path):
    pipe = tmp_path / "report"
    if not hasattr(os, "mkfifo"):
        pytest.skip("needs named pipes")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        wire.write_text(pipe, "text")
        assert os.read(reader, 9) == b"text"
    finally:
        os.close(reader)
