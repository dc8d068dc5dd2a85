"""When the HTML report is written, and what tells it from the JSON report: nothing."""

from __future__ import annotations

import pytest

from opened import Page
from project import BROKEN

pytest.importorskip("jinja2")

# Loaded once here: pytester forgets modules that a run inside it imports first.
import pytest_bncheck.reports.html  # noqa: F401

TESTS = (
    BROKEN
    + """
@pytest.mark.bn_consistency(steps=5)
def test_bad(): ...

@pytest.mark.xfail(strict=True)
@pytest.mark.bn_consistency(steps=5)
def test_known(): ...

def test_calls(bncheck):
    bncheck(ToyModel(), toy_batch())
    bncheck(ToyModel(), toy_batch(), steps=50)

def test_error(bncheck):
    bncheck(None, toy_batch())
"""
)
BOTH = ("--bncheck-json=report.json", "--bncheck-html=report.html")


@pytest.fixture
def page(project):
    """What the report of the last run shows."""
    return lambda: Page((project.path / "report.html").read_text(encoding="utf-8"))


def test_both_reports_hold_the_same_checks(project, page, xdist_args):
    project.pytester.makepyfile(TESTS)
    result = project.run(*BOTH, *xdist_args)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["JSON report: *report.json", "HTML report: *report.html"])
    wanted = []
    for check in project.report()["checks"]:
        path, test = check["nodeid"].split("::")
        number = f" #{check['index'] + 1}" if check["index"] else ""
        wanted.append((check["verdict"], f"{path} {test}{number}"))
    assert len(wanted) == 5
    assert sorted(page().checks()) == sorted(wanted)
    assert page().select("h1") == ["3 of 5 checks failed"]
    assert page().select("span", "note").count("expected") == 2


def test_a_path_turns_checks_on(project, page):
    project.pytester.makepyfile("def test_it(bncheck_report): ...")
    project.run("--bncheck-html=report.html").assert_outcomes(passed=1)
    assert len(page().checks()) == 1
    (project.path / "report.html").unlink()
    project.pytester.makeini("[pytest]\nbncheck_html = report.html\n")
    project.run().assert_outcomes(passed=1)
    assert len(page().checks()) == 1
    (project.path / "report.html").unlink()
    project.run("--no-bncheck").assert_outcomes(skipped=1)
    assert not (project.path / "report.html").exists()


@pytest.mark.parametrize(
    "args", [(), ("-x",), ("--co",), ("no_such_file.py",), ("-k", "nothing"), ("--bncheck-seed=x",)]
)
def test_it_is_written_exactly_when_the_other_is(project, args):
    project.pytester.makepyfile(TESTS)
    project.run(*BOTH, *args)
    written = [(project.path / name).exists() for name in ("report.json", "report.html")]
    assert written == [args not in (("--co",), ("no_such_file.py",), ("--bncheck-seed=x",))] * 2


def test_it_is_written_in_one_piece(project):
    project.pytester.makepyfile(TESTS)
    (project.path / "target.html").write_text("old")
    (project.path / "report.html").symlink_to("target.html")
    project.run(*BOTH)
    assert (project.path / "report.html").is_symlink()
    assert "</html>" in (project.path / "target.html").read_text()
    assert not list(project.path.glob(".target*"))


def test_a_report_that_cannot_be_written_at_the_end(project):
    project.pytester.makepyfile("import shutil\ndef test_it(): shutil.rmtree('out')")
    (project.path / "out").mkdir()
    result = project.run("--bncheck-html=out/report.html")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["the HTML report *report.html could not be written: *"])


def test_nothing_is_imported_before_the_end(project):
    project.pytester.makeconftest(
        """
        import sys
        def pytest_collection_finish():
            heavy = {"numpy", "jinja2", "markupsafe"}
            print("imported:", sorted(heavy & set(sys.modules)))
        """
    )
    project.pytester.makepyfile("def test_it(): ...")
    # pytest-html, a plugin of its own, imports jinja2.
    result = project.run("-s", "--bncheck-html=report.html", "-p", "no:html", subprocess=True)
    result.stdout.fnmatch_lines(["*imported: []*"])
    assert (project.path / "report.html").exists()
