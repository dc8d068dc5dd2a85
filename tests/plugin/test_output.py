"""What a run prints: the section at its end, and what pytest's own options make of a failure."""

from __future__ import annotations

import itertools

import pytest

from project import BROKEN

TESTS = (
    BROKEN
    + """
@pytest.mark.bn_consistency(steps=5)
def test_bad(): ...

@pytest.mark.bn_consistency(steps=5, ignore={"BN1": "known"})
def test_hidden(): ...

def test_good(bncheck):
    bncheck(ToyModel(), toy_batch(), steps=80)
"""
)


@pytest.fixture
def tests(project):
    project.pytester.makepyfile(test_it=TESTS)
    return project


def section(result: pytest.RunResult) -> list[str]:
    """The lines of the plugin's own section."""
    titles = [k for k, line in enumerate(result.outlines) if line.startswith("=")]
    for start, end in itertools.pairwise(titles):
        if result.outlines[start].strip("= ") == "bncheck":
            return result.outlines[start + 1 : end]
    return []


def test_one_entry_for_each_check(tests, xdist_args):
    result = tests.run("--bncheck", *xdist_args)
    entries, meanings = section(result)[:4], section(result)[4:]
    assert entries == [
        "FAIL  test_it.py::test_bad",
        "      BN101 running-stats-underconverged; train 100 %, eval 38 %",
        "PASS  test_it.py::test_good: train 100 %, eval 100 %",
        "PASS  test_it.py::test_hidden: train 100 %, eval 38 % (BN101 suppressed)",
    ]
    begins = [line.partition(":")[0] for line in meanings if not line.startswith(" ")]
    assert begins == ["gap", "distortion", "retained"]  # said once, since a check failed


def test_the_section_stands_apart_like_those_of_pytest(tests):
    lines = tests.run("--bncheck", "-k", "good").outlines
    (title,) = [k for k, line in enumerate(lines) if line.strip("= ") == "bncheck"]
    assert lines[title - 1] == ""
    assert lines[title + 1].startswith("PASS")


def test_quiet_is_silent_about_what_passed(tests):
    result = tests.run("--bncheck", "-q", "--tb=no", "-rN", "--bncheck-json=report.json")
    assert result.outlines[1:3] == [f"{' bncheck ':=^80}", "FAIL  test_it.py::test_bad: BN101"]
    assert "JSON report" not in result.stdout.str()
    result = tests.run("--bncheck", "-q", "-k", "good")
    assert "bncheck" not in result.stdout.str()


def test_quiet_says_when_a_report_is_missing(project):
    project.pytester.makepyfile(
        """
        import shutil
        def test_it():
            shutil.rmtree("out")
        """
    )
    (project.path / "out").mkdir()
    result = project.run("-q", "--bncheck-json=out/report.json")
    result.stdout.fnmatch_lines(["the JSON report *report.json could not be written: *"])


def test_verbose_shows_layers(tests):
    result = tests.run("--bncheck", "-v", "-k", "good")
    assert section(result)[-2:] == [
        "      layer                       momentum updates  initial distortion",
        "      norm                             0.1      80    0.0 %       0.01",
    ]


def test_very_verbose_shows_what_is_suppressed_and_times(tests):
    result = tests.run("--bncheck", "-vv", "-k", "hidden")
    lines = section(result)
    assert "      BN101 running-stats-underconverged is ignored: known." in lines
    assert [line for line in lines if line.startswith("      seconds: train 0.")]


@pytest.mark.parametrize("args", [[], ["-q"], ["-v"], ["-vv"]])
def test_fits_80_columns(tests, args):
    result = tests.run("--bncheck", "--no-header", "-rN", *args)
    assert max(map(len, result.outlines)) <= 80


def test_colour(tests):
    text = tests.run("--bncheck", "--color=yes").stdout.str()
    assert "\x1b[31mFAIL \x1b[0m test_it.py::test_bad" in text
    assert "\x1b[32mPASS \x1b[0m test_it.py::test_good" in text
    assert "\x1b" not in tests.run("--bncheck").stdout.str()


@pytest.mark.parametrize("args", [["-vv"], []])
def test_the_short_summary_does_not_repeat_the_whole_text(tests, args, monkeypatch):
    if not args:
        monkeypatch.setenv("CI", "true")
    result = tests.run("--bncheck", "-k", "bad", *args)
    line = "FAILED test_it.py::test_bad - pytest_bncheck.CheckFailed: 100 % right in trai*"
    result.stdout.fnmatch_lines([line, "=* 1 failed, *"], consecutive=True)
    assert result.stdout.str().count("What to do") == 1


def test_without_tracebacks(tests):
    result = tests.run("--bncheck", "--tb=no")
    assert "What to do" not in result.stdout.str()
    result.stdout.fnmatch_lines(["FAIL  *test_bad", "FAILED *test_bad - *100 % right in *"])


def test_durations(tests):
    result = tests.run("--bncheck", "--durations=0", "-vv")
    for line in ("*s setup *::test_bad", "*s call *::test_good"):  # in whatever order
        result.stdout.fnmatch_lines([line])


def test_expected_by_the_test_itself(project):
    project.pytester.makepyfile(
        BROKEN
        + """
from pytest_bncheck import CheckFailed

def test_it(bncheck):
    with pytest.raises(CheckFailed):
        bncheck(ToyModel(0.01), toy_batch(), steps=5)
"""
    )
    result = project.run("--bncheck", "--color=yes")
    result.stdout.fnmatch_lines(["*33mFAIL *test_it*", "* (expected)"])


HASTE = "\nfrom pytest_bncheck.reports import progress\nprogress.LONG = 0.0\n"
MARKED = "import pytest\n@pytest.mark.bn_consistency(steps=60)\ndef test_marked(): ..."
LINE = "bncheck: test_it.py::test_marked makes 60 steps, about 0 s more, then a few passes"


@pytest.mark.parametrize(
    ("args", "said"), [([], 1), (["-v"], 1), (["-s"], 1), (["-q"], 0)], ids=str
)
def test_a_long_check_says_so_where_nothing_can_be_drawn(project, args, said):
    conftest = project.path / "conftest.py"
    conftest.write_text(conftest.read_text() + HASTE)
    project.pytester.makepyfile(test_it=MARKED)
    lines = project.run("--bncheck", *args, subprocess=True)
    assert lines.outlines.count(LINE) == said
    assert lines.ret == 0


def test_a_run_without_any_check_says_how_to_begin(project, xdist_args):
    project.pytester.makepyfile("def test_a(): ...\ndef test_b(): ...")
    result = project.run("--bncheck", *xdist_args)
    result.stdout.fnmatch_lines(
        ["bncheck: 2 tests, no check among them. To begin, mark one with *"]
    )
    result = project.run("--bncheck", "-q", *xdist_args)
    result.stdout.no_fnmatch_line("bncheck: *")
    (project.path / "pytest.ini").write_text("[pytest]\nbncheck = true\n")
    result = project.run(*xdist_args)  # often only a part of a suite is run
    result.stdout.no_fnmatch_line("bncheck: 2 tests*")
