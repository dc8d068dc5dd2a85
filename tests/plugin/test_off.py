"""Checks are off unless turned on, and cost nothing then."""

from __future__ import annotations

import subprocess
import sys

import pytest

TESTS = """
import pytest

@pytest.fixture(scope="session")
def bncheck_model():
    raise RuntimeError("expensive")

@pytest.mark.bn_consistency(steps=5)
def test_marked():
    raise RuntimeError("body")

@pytest.mark.bn_consistency
@pytest.mark.parametrize("bncheck_model", [1, 2], indirect=True)
def test_parametrized(): ...

def test_callable(bncheck):
    raise RuntimeError("body")

def test_report(bncheck_report):
    raise RuntimeError("body")

@pytest.mark.parametrize("name", ["bncheck", "bncheck_report"])
def test_dynamic(request, name):
    request.getfixturevalue(name)
    raise RuntimeError("body")

def test_ordinary(): ...
"""


def test_marked_tests_are_skipped_before_anything_expensive(project, xdist_args):
    project.pytester.makepyfile(TESTS)
    result = project.run("-rs", "--strict-markers", *xdist_args)
    assert result.ret == 0
    result.assert_outcomes(passed=1, skipped=7)
    result.stdout.fnmatch_lines(
        ["bncheck: 7 tests skipped; --bncheck runs them.", "*SKIPPED*turn them on with --bncheck*"]
    )


def test_off_wins_over_paths_and_ini(project):
    project.pytester.makepyfile(TESTS)
    project.pytester.makeini("[pytest]\nbncheck = true\n")
    result = project.run("--no-bncheck", "--bncheck-json=report.json")
    result.assert_outcomes(passed=1, skipped=7)
    assert not (project.path / "report.json").exists()


def test_users_skip_reason_wins(project):
    project.pytester.makepyfile(
        """
        import pytest
        @pytest.mark.skip(reason="my own")
        @pytest.mark.bn_consistency
        def test_it(): ...
        """
    )
    project.run("-rs").stdout.fnmatch_lines(["*my own*"])


def test_selection_by_marker(project, xdist_args):
    project.pytester.makepyfile(TESTS)
    result = project.run("-m", "bn_consistency", *xdist_args)
    result.assert_outcomes(skipped=5)


def test_marker_is_registered_with_its_signature(project):
    result = project.run("--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.bn_consistency(steps, planned_updates, *"])


@pytest.mark.parametrize("module", ["pytest_bncheck", "pytest_bncheck.plugin"])
def test_import_is_light(module):
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_start_up_is_light(project):
    project.pytester.makeconftest(
        f"""
        import sys
        def pytest_sessionfinish():
            print("heavy:", [m for m in {HEAVY} if m in sys.modules])
            print("unused:", [m for m in {UNUSED} if m in sys.modules])
        """
    )
    project.pytester.makepyfile("def test_it(): ...")
    args = ("-s", "-p", "no:hypothesispytest")
    for more in ((), ("--bncheck",), ("--bncheck-watch",)):
        result = project.run(*args, *more, subprocess=True)
        result.assert_outcomes(passed=1)
        result.stdout.fnmatch_lines(["*heavy: []*"])
        assert ("unused: []" in result.stdout.str()) == ("--bncheck-watch" not in more)


HEAVY = ("numpy", "torch", "keras", "tensorflow", "jax")
UNUSED = ("pytest_bncheck.watch", "pytest_bncheck.plugin.watching", "pytest_bncheck.plugin.targets")
"""Of our own, where neither watch mode nor a model without test code is asked for."""


def test_public_names():
    import pytest_bncheck

    assert sorted(pytest_bncheck.__all__) == pytest_bncheck.__all__
    for name in pytest_bncheck.__all__:
        assert getattr(pytest_bncheck, name) is not None
        assert name in dir(pytest_bncheck)
    with pytest.raises(AttributeError, match="no attribute 'xyz'"):
        pytest_bncheck.xyz  # noqa: B018


def test_without_autoload(project, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    project.pytester.makepyfile("import pytest\n@pytest.mark.bn_consistency\ndef test_a(): ...")
    result = project.run("-p", "pytest_bncheck.plugin", "--bncheck", subprocess=True)
    result.assert_outcomes(passed=1)


def test_blocked(project):
    project.pytester.makepyfile("def test_a(): ...")
    project.run("-p", "no:bncheck").assert_outcomes(passed=1)
