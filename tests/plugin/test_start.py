"""What the start of every run costs: the plugin imports what a run without checks needs."""

from __future__ import annotations

import subprocess
import sys

PRINT = "import sys, pytest; pytest.main(sys.argv[1:]); print(*sorted(sys.modules))"


def _modules(folder, *arguments):
    (folder / "test_nothing.py").write_text("def test_nothing():\n    pass\n")
    command = [sys.executable, "-c", PRINT, "-q", "-p", "no:cacheprovider", *arguments]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split())


def test_a_run_without_checks_imports_nothing_that_checks(tmp_path):
    off = {name for name in _modules(tmp_path) if name.startswith("pytest_bncheck")}
    plugin = "hookspecs internals marks options skipping stash fixtures"
    needed = {"errors", "settings", "plugin", *(f"plugin.{name}" for name in plugin.split())}
    assert off == {"pytest_bncheck", *(f"pytest_bncheck.{name}" for name in needed)}


def test_a_run_with_checks_imports_no_framework_for_tests_without_one(tmp_path):
    on = _modules(tmp_path, "--bncheck")
    assert "pytest_bncheck.plugin.checking" in on
    assert not on & {"numpy", "torch", "keras", "pytest_bncheck.report", "pytest_bncheck.types"}
