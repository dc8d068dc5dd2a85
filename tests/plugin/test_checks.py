"""Marked tests and the two fixtures, with checks on."""

from __future__ import annotations

import pytest

from project import BROKEN

FAILING = BROKEN + "@pytest.mark.bn_consistency(steps=5)\ndef test_model(): ...\n"


def test_marked_test_needs_no_body(project, xdist_args):
    project.pytester.makepyfile("import pytest\n@pytest.mark.bn_consistency\ndef test_a(): ...")
    result = project.run("--bncheck", *xdist_args)
    assert result.ret == 0
    result.assert_outcomes(passed=1)


def test_failing_check_fails_the_test_and_not_its_setup(project, xdist_args):
    project.pytester.makepyfile(FAILING + "def test_other(): ...")
    result = project.run("--bncheck", *xdist_args)
    assert result.ret == 1
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(
        ["*BN101 running-stats-underconverged*", "*= bncheck =*", "FAIL *::test_model", "*BN101*"]
    )


def test_callable(project, xdist_args):
    project.pytester.makepyfile(
        """
        import numpy as np
        import pytest
        from pytest_bncheck import CheckFailed, Report
        from toy import ToyModel, toy_batch

        @pytest.fixture(autouse=True)
        def seed():
            np.random.seed(0)

        def test_one(bncheck):
            report = bncheck(ToyModel(), toy_batch())
            assert isinstance(report, Report) and report.ok and report.nodeid.endswith("test_one")

        def test_two(bncheck):
            assert bncheck(ToyModel(), toy_batch(), steps=60).index == 0
            with pytest.raises(CheckFailed, match="BN101") as info:
                bncheck(ToyModel(0.01), toy_batch(), steps=5)
            assert info.value.report.index == 1

        def test_three(bncheck):
            bncheck(ToyModel(0.01), batches=[toy_batch()], steps=5)
        """
    )
    result = project.run("--bncheck", *xdist_args)
    assert result.ret == 1
    result.assert_outcomes(passed=2, failed=1)


def test_report_fixture(project, xdist_args):
    project.pytester.makepyfile(
        BROKEN
        + """
@pytest.mark.bn_consistency(steps=5)
def test_bad(bncheck_report):
    open("body.txt", "w").close()

class TestGood:
    @pytest.fixture
    def bncheck_model(self):
        return ToyModel()

    def test_good(self, bncheck_report):
        assert bncheck_report.predictions.eval.accuracy == 1
"""
    )
    result = project.run("--bncheck", *xdist_args)
    result.assert_outcomes(passed=1, failed=1)
    assert not (project.path / "body.txt").exists()


@pytest.mark.parametrize("indirect", [True, False])
def test_parametrized_model(project, xdist_args, indirect):
    project.pytester.makepyfile(
        f"""
        import pytest
        from toy import ToyModel

        @pytest.fixture
        def bncheck_model(request):
            return ToyModel(request.param)

        values = [0.1, 0.2, 0.01] if {indirect} else [ToyModel(), ToyModel(0.2), ToyModel(0.01)]

        @pytest.mark.bn_consistency(steps=60)
        @pytest.mark.parametrize("bncheck_model", values, indirect={indirect}, ids="abc")
        def test_it(): ...
        """
    )
    result = project.run("--bncheck", "-rA", *xdist_args)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["FAILED *test_it?c?*"])


def test_parametrized_fixture_and_class_level_mark(project):
    project.pytester.makepyfile(
        """
        import pytest
        from toy import ToyModel

        @pytest.fixture(params=[0.1, 0.2])
        def bncheck_model(request):
            return ToyModel(request.param)

        @pytest.mark.bn_consistency
        class TestModels:
            def test_it(self): ...

        def test_report(bncheck_report):
            assert bncheck_report.ok

        @pytest.fixture
        def wrapped(bncheck_report):
            return bncheck_report

        def test_wrapped(wrapped):
            assert wrapped.ok
        """
    )
    project.run("--bncheck").assert_outcomes(passed=6)


def test_mixin_is_not_marked_by_a_marked_sibling(project):
    project.pytester.makepyfile(
        """
        import pytest
        class Mixin:
            def test_it(self, request):
                assert ("bncheck_model" in request.fixturenames) is self.checked
        @pytest.mark.bn_consistency
        class TestChecked(Mixin):
            checked = True
        class TestOther(Mixin):
            checked = False
        """
    )
    project.run("--bncheck").assert_outcomes(passed=2)


def test_test_case_and_late_marks_are_checked(project, xdist_args):
    project.pytester.makeconftest(
        (project.path / "conftest.py").read_text()
        + """
def pytest_collection_modifyitems(items):
    for item in items:
        if "late" in item.name:
            item.add_marker(pytest.mark.bn_consistency(steps=5))
"""
    )
    project.pytester.makepyfile(
        BROKEN
        + """
import unittest

class TestThem(unittest.TestCase):
    @pytest.mark.bn_consistency(steps=5)
    def test_case(self): ...

@pytest.mark.parametrize("x", [1, pytest.param(2, marks=pytest.mark.bn_consistency(steps=5))])
def test_param(x): ...

def test_late(): ...
"""
    )
    result = project.run("--bncheck", *xdist_args)
    result.assert_outcomes(passed=1, failed=3)


def test_late_mark_with_a_parametrized_model_is_never_green(project):
    project.pytester.makepyfile(
        """
        import pytest
        from toy import ToyModel
        @pytest.fixture(params=[0.1])
        def bncheck_model(request):
            return ToyModel(request.param)
        @pytest.mark.parametrize("x", [pytest.param(2, marks=pytest.mark.bn_consistency)])
        def test_param(x): ...
        """
    )
    project.run("--bncheck").assert_outcomes(errors=1)


def test_requesting_bncheck_without_calling_it_is_never_green(project, xdist_args):
    project.pytester.makepyfile(
        """
        import pytest
        @pytest.mark.bn_consistency
        def test_it(bncheck): ...
        def test_other(bncheck):
            pytest.skip("no network")
        """
    )
    result = project.run("--bncheck", *xdist_args)
    result.assert_outcomes(failed=1, skipped=1)
    result.stdout.fnmatch_lines(["*requested bncheck but made no check*"])


def test_getfixturevalue(project, xdist_args):
    project.pytester.makepyfile(
        BROKEN
        + """
def test_it(request):
    request.getfixturevalue("bncheck")(ToyModel(), toy_batch())

def test_bad(request):
    request.getfixturevalue("bncheck_report")
"""
    )
    result = project.run("--bncheck-json=report.json", "--bncheck-steps=5", *xdist_args)
    result.assert_outcomes(failed=2)
    assert [check["verdict"] for check in project.report()["checks"]] == ["fail", "fail"]


def test_getfixturevalue_before_the_body(project):
    project.pytester.makepyfile(
        BROKEN
        + """
@pytest.fixture
def early(request):
    request.getfixturevalue("bncheck_report")

def test_it(early): ...
"""
    )
    result = project.run("--bncheck-json=report.json", "--bncheck-steps=5")
    result.assert_outcomes(failed=1)
    assert [check["verdict"] for check in project.report()["checks"]] == ["fail"]


def test_tests_without_a_check_meet_no_hook_of_an_attempt(project):
    project.pytester.makeconftest(
        (project.path / "conftest.py").read_text()
        + """
def pytest_runtest_teardown(item):
    attempting = item.config.pluginmanager.hasplugin("bncheck-attempting")
    assert attempting == ("checked" in item.name), item.name
"""
    )
    project.pytester.makepyfile(
        """
        import pytest
        from toy import ToyModel, toy_batch
        def test_first(): ...
        @pytest.mark.bn_consistency
        def test_checked(): ...
        @pytest.mark.bn_consistency
        def test_checked_too(): ...
        def test_between(): ...
        def test_checked_by_the_fixture(bncheck):
            bncheck(ToyModel(), toy_batch())
        def test_last(): ...
        """
    )
    project.run("--bncheck").assert_outcomes(passed=6)


@pytest.mark.parametrize("style", ["auto", "long", "short", "line", "native"])
def test_crash_line_is_the_test(project, style):
    path = project.pytester.makepyfile(FAILING)
    result = project.run("--bncheck", f"--tb={style}")
    text = result.stdout.str()
    line = path.read_text().splitlines().index("@pytest.mark.bn_consistency(steps=5)") + 1
    if style == "native":
        assert f'File "{path}", line {line}, in test_model' in text
    elif style == "line":
        assert f"{path}:{line}: " in text
    else:
        assert f"{path.name}:{line}: " in text
    assert "pluggy/" not in text
    assert "plugin.py" not in text
    assert "What to do" in text or style == "line"


def test_exact_text_of_a_failing_check_is_the_report(project):
    project.pytester.makepyfile(FAILING)
    result = project.run("--bncheck", "--tb=short")
    result.stdout.fnmatch_lines(
        [
            "E   pytest_bncheck.CheckFailed: * % right in training mode, * % in eval mode",
            "E   bncheck fail: 1 error*",
            "FAILED *test_model*",
        ]
    )


def test_users_exception_shows_the_users_traceback(project, xdist_args):
    project.pytester.makepyfile(
        """
        import pytest
        from toy import ToyModel, toy_batch

        class Faulty(ToyModel):
            def __call__(self, inputs):
                raise RuntimeError("the user's own")

        @pytest.fixture
        def bncheck_model():
            return Faulty()

        @pytest.mark.bn_consistency
        def test_marker(): ...

        def test_callable(bncheck):
            bncheck(Faulty(), toy_batch())
        """
    )
    result = project.run("--bncheck", "--bncheck-json=report.json", *xdist_args)
    result.assert_outcomes(errors=1, failed=1)
    text = result.stdout.str()
    assert text.count("E       RuntimeError: the user's own") == 2
    assert "plugin.py" not in text
    assert "engine.py" not in text
    assert "pytest_bncheck/plugin/" not in text
    checks = project.report()["checks"]
    assert [c["error"] for c in checks] == ["RuntimeError: the user's own"] * 2
    assert project.report()["summary"]["errored"] == 2


def test_an_exception_that_cannot_be_said(project, xdist_args):
    """The run goes on, and the words are those of Python's own tracebacks."""
    project.pytester.makepyfile(
        """
        import pytest

        class Mute(Exception):
            def __str__(self):
                raise RuntimeError("no words")

        @pytest.fixture
        def bncheck_model():
            raise Mute

        @pytest.mark.bn_consistency
        def test_marker(): ...

        def test_callable(bncheck):
            raise Mute
        """
    )
    result = project.run("--bncheck", "--bncheck-json=report.json", *xdist_args)
    result.assert_outcomes(errors=1, failed=1)
    errors = [check["error"] for check in project.report()["checks"]]
    assert errors == ["Mute: <exception str() failed>"] * 2


def test_bad_input_of_a_call_points_at_the_call(project):
    project.pytester.makepyfile(
        """
        from toy import ToyModel, toy_batch
        def test_steps(bncheck):
            bncheck(ToyModel(), toy_batch(), steps=-1)
        def test_unknown(bncheck):
            bncheck(ToyModel(), toy_batch(), step=1)
        def test_none(bncheck):
            bncheck(ToyModel())
        def test_both(bncheck):
            bncheck(ToyModel(), toy_batch(), batches=[])
        def test_model(bncheck):
            bncheck(object(), toy_batch())
        """
    )
    result = project.run("--bncheck", "--tb=short")
    result.assert_outcomes(failed=5)
    result.stdout.fnmatch_lines(
        [
            "E   *InputError: steps=-1 (from call) cannot be used; allowed: a whole number from 0*",
            'E   *unknown option "step" (from call); did you mean "steps"?',
            "E   *neither was given*",
            "E   *both were given*",
            "E   *cannot check a model of type object; supported are torch.nn.Module, keras.Model*",
        ]
    )
    assert "pytest_bncheck/" not in result.stdout.str()


def test_xfail_with_check_failed(project, xdist_args):
    project.pytester.makepyfile(
        BROKEN
        + """
from pytest_bncheck import CheckFailed

@pytest.mark.xfail(raises=CheckFailed, strict=True)
@pytest.mark.bn_consistency(steps=5)
def test_known(): ...

@pytest.mark.xfail(raises=CheckFailed, strict=True)
@pytest.mark.bn_consistency(steps=5, loss=3)
def test_broken_setup(): ...
"""
    )
    result = project.run("--bncheck", *xdist_args)
    result.assert_outcomes(xfailed=1, failed=1)
    result.stdout.fnmatch_lines(["FAIL  *", "*(expected)"])


def test_ignored_findings_pass_with_their_reason(project):
    project.pytester.makepyfile(FAILING.replace("steps=5", "steps=5, ignore={'BN1': 'pretrained'}"))
    result = project.run("--bncheck", "--bncheck-json=report.json")
    result.assert_outcomes(passed=1)
    (check,) = project.report()["checks"]
    assert check["suppressed"][0]["reason"] == "ignored: pretrained"


def test_listing_and_setup_only_do_not_train(project):
    project.pytester.makepyfile(FAILING)
    for flag in ("--co", "--setup-only", "--setup-plan"):
        result = project.run("--bncheck", "--bncheck-json=report.json", flag)
        assert result.ret == 0
        assert "= bncheck =" not in result.stdout.str()
        assert not (project.path / "report.json").exists()


def test_a_refused_input_is_said_once(project):
    project.pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def bncheck_model():
            return object()

        @pytest.mark.bn_consistency
        def test_model(): ...
        """
    )
    result = project.run("--bncheck", "-rN", "--bncheck-json=report.json")
    result.assert_outcomes(errors=1)
    text = result.stdout.str().partition("= bncheck =")[0]
    assert text.count("cannot check a model of type object") == 1
    assert "direct cause" not in text
    (check,) = project.report()["checks"]
    assert check["error"].startswith("InputError: cannot check a model of type object")


def test_a_user_s_error_is_shown_without_the_plugin_and_says_where(project):
    project.pytester.makepyfile(
        """
        import pytest

        class Faulty:
            def forward(self):
                raise RuntimeError("mine")

        @pytest.fixture
        def bncheck_forward():
            def forward(model, batch):
                return Faulty().forward()
            return forward

        @pytest.mark.bn_consistency(steps=3)
        def test_model(): ...
        """
    )
    result = project.run("--bncheck", "-rN")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*RuntimeError: mine", "*raised in training step 1 of 3."])
    for file in ("engine.py", "fixtures.py", "plugin.py"):
        result.stdout.no_fnmatch_line(f"*pytest_bncheck*{file}:*")
