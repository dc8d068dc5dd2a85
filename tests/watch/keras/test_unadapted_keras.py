"""A suite of Keras models that knows nothing of bncheck: all faults are found, nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

keras = pytest.importorskip("keras")

from watched import expected, found

if keras.backend.backend() == "torch":  # cannot be imported in each run inside
    import torch._dynamo
    import torch._inductor.utils
    import torch.export._trace  # noqa: F401

SUITE = Path(__file__).parents[3] / "fixtures" / "unadapted_keras"


@pytest.fixture
def suite(project):
    """The suite in a folder of its own, with what runs on this backend."""
    (project.path / "conftest.py").unlink()
    for path in SUITE.glob("*.py"):
        if "own_step" not in path.name or path.stem.endswith(keras.backend.backend()):
            shutil.copy(path, project.path)
    project.pytester.syspathinsert()
    return project


def test_every_fault_is_found_at_its_line(suite):
    result = suite.run("--bncheck-watch", "--no-bncheck", "--bncheck-json=report.json")
    outcomes = result.parseoutcomes()
    assert set(outcomes) <= {"passed", "warnings", "warning"}
    assert "pytest_bncheck" not in result.stdout.str().partition("warnings summary")[2]
    report = suite.report()
    assert found(report) == expected(suite.path)
    watch = report["watch"]
    assert watch["problem"] is None
    assert watch["tests"] == outcomes["passed"] > watch["training"] > watch["minding"] > 10


def test_outcomes_and_warnings_are_the_same(suite):
    args = ("-k", "on_batches or loop or shape")
    off = suite.run(*args).parseoutcomes()
    assert suite.run("--bncheck-watch", "--no-bncheck", *args).parseoutcomes() == off


COMPILED = """
import sys
import numpy as np
import pytest
from own_nets import compiled, net

model = compiled(net())
model.fit(np.zeros((4, 4)), np.zeros(4), verbose=0)

def test_fit():
    model.fit(np.zeros((4, 4)), np.zeros(4), verbose=0)

@pytest.mark.skipif("test_fit" in sys.argv, reason="needs the first")
def test_again():
    model.fit(np.zeros((4, 4)), np.zeros(4), verbose=0)
"""


def test_what_was_compiled_before_is_not_called_fine(suite):
    if keras.backend.backend() == "torch":
        pytest.skip("nothing is compiled there")
    suite.pytester.makepyfile(test_compiled=COMPILED)
    args = ("-p", "no:warnings", "--bncheck-json=report.json", "test_compiled.py")
    suite.run("--bncheck-watch", "--no-bncheck", *args).assert_outcomes(passed=2)
    watch = suite.report()["watch"]
    reason = "a Keras model that was compiled before, or calls its layers in a way of its own"
    assert watch["unseen"] == {reason: 2}
    assert watch["findings"] == []


def test_everything_is_put_back(suite):
    before = keras.Layer.__call__, keras.Model.fit, keras.optimizers.Optimizer.apply
    suite.run("--bncheck-watch", "test_fit.py", "-k", "smoke", "-p", "no:warnings")
    assert before == (keras.Layer.__call__, keras.Model.fit, keras.optimizers.Optimizer.apply)
