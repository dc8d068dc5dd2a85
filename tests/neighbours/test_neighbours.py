"""Beside other plugins, each alone and all together: the same counts, exit code and report.

`tox -e neighbours` installs all of them; elsewhere what is missing is skipped.
"""

from __future__ import annotations

import importlib.util
import json
import xml.etree.ElementTree as ET

import pytest

from pytest_bncheck.plugin.collected import CRASHED

NEIGHBOURS = {
    "hypothesis": ["-p", "hypothesispytest", "--hypothesis-seed=1"],
    "pytest_asyncio": ["-p", "asyncio", "--asyncio-mode=auto"],
    "pytest_cov": ["-p", "pytest_cov", "--cov=net"],
    "pytest_html": ["-p", "metadata", "-p", "html", "--html=page.html"],
    "pytest_mock": ["-p", "pytest_mock"],
    "pytest_randomly": ["-p", "randomly", "--randomly-seed=3"],
    "pytest_rerunfailures": ["-p", "rerunfailures", "--reruns=1"],
    "pytest_timeout": ["-p", "timeout", "--timeout=60"],
    "xdist": ["-p", "xdist", "-n2"],
}
"""What is imported, and how a user turns the plugin on."""

NET = """
from toy import ToyModel

class Net(ToyModel):
    def __call__(self, inputs):
        outputs = super().__call__(inputs)
        return outputs
"""

TESTS = """
import unittest
import numpy as np
import pytest
from net import Net
from toy import toy_batch

@pytest.fixture(params=[0.1, 0.01])
def bncheck_model(request):
    return Net(request.param)

@pytest.mark.bn_consistency(steps=80)
def test_parametrized(): ...

class TestOfOneClass:
    @pytest.fixture(scope="class")
    def bncheck_model(self):
        return Net()

    @pytest.mark.bn_consistency(steps=80)
    def test_good(self): ...

    @pytest.mark.bn_consistency(steps=5)
    def test_bad(self): ...

class TestCase(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def keep(self, bncheck):
        self.check = bncheck

    def test_good(self):
        np.random.seed(1)
        self.check(Net(), toy_batch(), steps=80)

    def test_bad(self):
        np.random.seed(1)
        self.check(Net(), toy_batch(), steps=5)

def test_ordinary(): ...
"""
OUTCOMES = {"passed": 4, "failed": 3}


@pytest.fixture
def run(project, monkeypatch):
    """Runs pytest with this plugin and the named ones; without a name with all installed."""
    project.pytester.makepyfile(net=NET)
    project.pytester.makeini("[pytest]\npythonpath = .\n")

    def run(*names, args=(), subprocess=False):
        for name in names:
            pytest.importorskip(name)
        if names:
            monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
            args = ["-p", "pytest_bncheck.plugin", *args]
        else:
            monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", raising=False)
        start = {
            False: project.pytester.runpytest_inprocess,
            True: project.pytester.runpytest_subprocess,
        }
        result = start[subprocess]("--bncheck-json=report.json", *args)
        assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()
        return result

    return run


def numbers(project):
    """All of the report that has to be the same in each run."""
    checks = project.report()["checks"]
    for check in checks:
        del check["seconds"]
    return checks


@pytest.fixture
def alone(project, run):
    """The numbers of a run with no other plugin."""
    project.pytester.makepyfile(test_it=TESTS)
    result = run("pytest_bncheck")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(**OUTCOMES)
    found = numbers(project)
    assert len(found) == 6
    (project.path / "report.json").unlink()
    return found


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_each(project, run, alone, name):
    result = run(name, args=NEIGHBOURS[name])
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(**OUTCOMES)
    assert numbers(project) == alone


@pytest.mark.parametrize("chosen", ["", "-k good or ordinary"], ids=["some fail", "none fails"])
def test_all_together(project, run, alone, chosen):
    present = [name for name in NEIGHBOURS if importlib.util.find_spec(name)]
    options = [a for name in present for a in NEIGHBOURS[name] if a.startswith("-") and a != "-p"]
    result = run(args=[*options, *chosen.split(maxsplit=1)], subprocess=True)
    if chosen:
        assert result.ret == 0
        result.assert_outcomes(passed=3)
        assert numbers(project) == [check for check in alone if "good" in check["nodeid"]]
    else:
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.assert_outcomes(**OUTCOMES)
        assert numbers(project) == alone


def test_random_order_changes_no_number(project, run, alone):
    orders = set()
    for seed in (1, 2, 3):
        result = run(
            "pytest_randomly", args=["-p", "randomly", f"--randomly-seed={seed}", "-v", "-rN"]
        )
        result.assert_outcomes(**OUTCOMES)
        assert numbers(project) == alone
        orders.add(tuple(line.split()[0] for line in result.outlines if line.startswith("test_it")))
    assert len(orders) > 1


# pytest-timeout ---------------------------------------------------------------------------------

SLOW = """
import copy
import random
import time
import numpy as np
import pytest
from net import Net
from toy import toy_batch

class Slow(Net):
    def __call__(self, inputs):
        if self.updates == 3:
            time.sleep(60)
        return super().__call__(inputs)

MODEL = Slow()

def state():
    return copy.deepcopy(vars(MODEL)), random.getstate(), np.random.get_state(legacy=True)

@pytest.fixture(autouse=True, scope="module")
def as_found():
    before = state()
    yield
    np.testing.assert_equal(state(), before)

@pytest.fixture
def bncheck_model():
    return MODEL

@pytest.mark.bn_consistency(steps=5)
def test_in_setup(): ...

def test_in_call(bncheck):
    bncheck(MODEL, toy_batch(), steps=5)

def test_other(): ...
"""


def test_timeout_by_signal(project, run):
    project.pytester.makepyfile(test_it=SLOW)
    result = run("pytest_timeout", args=["-p", "timeout", "--timeout=0.4"], subprocess=True)
    result.assert_outcomes(passed=1, failed=1, errors=1)
    checks = project.report()["checks"]
    assert [check["nodeid"] for check in checks] == ["test_it.py::" + n for n in TIMED_OUT]
    assert {check["verdict"] for check in checks} == {"error"}
    assert all("Timeout (>0.4s) from pytest-timeout." in check["error"] for check in checks)


TIMED_OUT = ("test_in_call", "test_in_setup")
THREAD = ["-p", "timeout", "--timeout=0.4", "--timeout-method=thread"]


def test_timeout_by_thread_ends_the_process(project, run):
    project.pytester.makepyfile(test_it=SLOW)
    (project.path / "report.json").write_text("old")
    result = run("pytest_timeout", args=THREAD, subprocess=True)
    assert result.ret == 1
    assert "Timeout" in result.stdout.str() + result.stderr.str()
    assert (project.path / "report.json").read_text() == "old"
    assert [each.name for each in project.path.glob(".*json*")] == []


def test_timeout_by_thread_in_a_worker_is_in_the_report(project, run):
    project.pytester.makepyfile(test_it=SLOW)
    args = [*THREAD, "-p", "xdist", "-n2", "--dist=load"]
    result = run("pytest_timeout", "xdist", args=args, subprocess=True)
    result.assert_outcomes(passed=1, failed=2)
    checks = project.report()["checks"]
    assert [(check["nodeid"], check["error"]) for check in checks] == [
        ("test_it.py::" + name, CRASHED) for name in TIMED_OUT
    ]


# pytest-rerunfailures ---------------------------------------------------------------------------

FLAKY = """
import itertools
import pytest
from net import Net
from toy import toy_batch

RATES = itertools.chain([0.01, 0.01], itertools.repeat(0.1))

@pytest.fixture
def bncheck_model():
    return Net(next(RATES))

@pytest.mark.flaky(reruns=2)
@pytest.mark.bn_consistency(steps=80)
def test_third_time(): ...

@pytest.mark.flaky(reruns=2)
def test_never(bncheck):
    bncheck(Net(0.01), toy_batch(), steps=80)

@pytest.mark.flaky(reruns=2)
def test_user(bncheck):
    bncheck(Net(0.1), toy_batch(), steps=80)
    raise ValueError
"""


@pytest.mark.parametrize("processes", [(), ("xdist",)], ids=["alone", "n1"])
def test_a_rerun_replaces_its_attempts(project, run, processes):
    project.pytester.makepyfile(test_it=FLAKY)
    args = ["-p", "rerunfailures", "--junitxml=junit.xml"]
    args += ["-p", "xdist", "-n1"] if processes else []
    result = run("pytest_rerunfailures", *processes, args=args)
    assert {"passed": 1, "failed": 2, "rerun": 6}.items() <= result.parseoutcomes().items()
    checks = project.report()["checks"]
    assert [(check["nodeid"], check["index"], check["verdict"]) for check in checks] == [
        ("test_it.py::test_never", 0, "fail"),
        ("test_it.py::test_third_time", 0, "pass"),
        ("test_it.py::test_user", 0, "pass"),
    ]
    for case in ET.parse(project.path / "junit.xml").iter("testcase"):
        names = [each.get("name") for each in case.iter("property")]
        assert names.count("bncheck_verdict") == 1


# pytest-cov -------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [(), ("xdist",)], ids=["alone", "n2"])
def test_the_model_s_lines_are_covered(project, run, processes):
    project.pytester.makepyfile(test_it=TESTS)
    args = ["-p", "pytest_cov", "--cov=net", "--cov-report=json:cov.json"]
    args += ["-p", "xdist", "-n2"] if processes else []
    result = run("pytest_cov", *processes, args=args, subprocess=True)
    result.assert_outcomes(**OUTCOMES)
    measured = json.loads((project.path / "cov.json").read_text())["files"]["net.py"]
    assert measured["missing_lines"] == []


# pytest-asyncio, pytest-mock, hypothesis --------------------------------------------------------


def test_coroutines(project, run):
    project.pytester.makepyfile(
        test_it="""
        import asyncio
        import pytest
        from net import Net
        from toy import toy_batch

        @pytest.mark.bn_consistency(steps=80)
        async def test_good():
            await asyncio.sleep(0)

        @pytest.mark.bn_consistency(steps=5)
        async def test_bad():
            raise RuntimeError("the body of a test whose check failed")

        async def test_call(bncheck):
            await asyncio.sleep(0)
            bncheck(Net(), toy_batch(), steps=80)

        async def test_bad_call(bncheck):
            await asyncio.sleep(0)
            bncheck(Net(), toy_batch(), steps=5)

        async def test_ordinary(): ...
        """
    )
    result = run("pytest_asyncio", args=NEIGHBOURS["pytest_asyncio"])
    result.assert_outcomes(passed=3, failed=2)
    assert "RuntimeError" not in result.stdout.str()
    assert len(project.report()["checks"]) == 4


def test_spies_and_patches(project, run):
    project.pytester.makepyfile(
        test_it="""
        import pytest
        from net import Net
        from toy import toy_batch

        def test_spy(mocker, bncheck):
            spy = mocker.spy(Net, "normalise")
            bncheck(Net(), toy_batch(), steps=80)
            assert spy.call_count > 80

        @pytest.mark.bn_consistency(steps=80)
        def test_marked(mocker):
            assert mocker.patch("net.Net").call_count == 0

        def test_replaced(mocker, bncheck):
            mocker.patch.object(Net, "normalise", side_effect=OSError("patched"))
            with pytest.raises(OSError, match="patched"):
                bncheck(Net(), toy_batch(), steps=5)

        def test_bad(mocker, bncheck):
            bncheck(Net(), toy_batch(), steps=5)
        """
    )
    result = run("pytest_mock", args=NEIGHBOURS["pytest_mock"])
    result.assert_outcomes(passed=3, failed=1)


def test_given_examples(project, run):
    """A marked test makes one check for all examples, a call one for each."""
    project.pytester.makepyfile(
        test_it="""
        import pytest
        from hypothesis import HealthCheck, given, settings, strategies
        from net import Net
        from toy import toy_batch

        sizes = strategies.sampled_from([24, 30])
        # Hypothesis asks for this beside every fixture of function scope.
        few = settings(
            max_examples=2,
            deadline=None,
            suppress_health_check=[HealthCheck.function_scoped_fixture],
        )

        @few
        @given(sizes)
        @pytest.mark.bn_consistency(steps=80)
        def test_good(size): ...

        @pytest.mark.bn_consistency(steps=5)
        @few
        @given(sizes)
        def test_bad(size):
            raise RuntimeError("the body of a test whose check failed")

        @few
        @given(size=sizes)
        def test_call(bncheck, size):
            bncheck(Net(), toy_batch(size), steps=80)

        @few
        @given(size=sizes)
        def test_bad_call(bncheck, size):
            bncheck(Net(), toy_batch(size), steps=5)
        """
    )
    result = run("hypothesis", args=NEIGHBOURS["hypothesis"])
    result.assert_outcomes(passed=2, failed=2)
    assert "RuntimeError" not in result.stdout.str()
    verdicts = {c["nodeid"].partition("::")[2]: c["verdict"] for c in project.report()["checks"]}
    assert verdicts == {
        "test_good": "pass",
        "test_bad": "fail",
        "test_call": "pass",
        "test_bad_call": "fail",
    }


def test_the_page_of_pytest_html_shows_reruns(project, run):
    project.pytester.makepyfile(test_it=FLAKY)
    args = [*NEIGHBOURS["pytest_html"], "-p", "rerunfailures"]
    result = run("pytest_html", "pytest_rerunfailures", args=args)
    assert {"passed": 1, "failed": 2, "rerun": 6}.items() <= result.parseoutcomes().items()
    assert "BN101" in (project.path / "page.html").read_text(encoding="utf-8")
