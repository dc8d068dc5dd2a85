"""The marker's options."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("step=5", '*unknown option "step" (from marker); did you mean "steps"?'),
        ("steps=-1", "*steps=-1 (from marker) cannot be used*"),
        ("5", "*takes keywords only, but got 5*"),
        ("ignore='BN999'", "*there is no rule 'BN999'*"),
    ],
)
def test_bad_mark_fails_its_test_before_setup(project, xdist_args, arguments, message):
    project.pytester.makepyfile(
        f"""
        import pytest
        @pytest.fixture
        def bncheck_model():
            raise RuntimeError("expensive")
        @pytest.mark.bn_consistency({arguments})
        def test_it(): ...
        def test_other(): ...
        """
    )
    result = project.run("--bncheck", "--bncheck-json=report.json", *xdist_args)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines([message])
    (check,) = project.report()["checks"]
    assert check["verdict"] == "error"
    assert check["error"].startswith("InputError: ")


def test_mark_on_a_function_that_is_no_test(project):
    project.pytester.makepyfile(
        """
        import pytest
        def my_loss(outputs): ...
        @pytest.mark.bn_consistency(my_loss)
        def test_it(): ...
        """
    )
    result = project.run("--bncheck")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*bn_consistency marks my_loss, which is not a test.*"])


def test_marks_merge_per_keyword_nearest_and_last_first(project):
    project.pytester.makepyfile(
        """
        import pytest
        mark = pytest.mark.bn_consistency
        pytestmark = mark(steps=1, seed=1, planned_updates=100, ignore=["BN1: module"])

        @mark(steps=2, seed=2)
        class Base:
            pass

        @mark(seed=3)
        class TestIt(Base):
            @mark(steps=5, ignore={"BN1": "upper"})
            @mark(steps=4, ignore="BN2")
            def test_decorators(self, bncheck_report):
                assert bncheck_report.steps == 5
                assert bncheck_report.seed == 3
                assert bncheck_report.planned_updates == 100

            def test_class(self, bncheck_report):
                assert bncheck_report.steps == 2

            @pytest.mark.parametrize("steps", [pytest.param(7, marks=mark(steps=7)), 4])
            @mark(steps=4)
            def test_param(self, bncheck_report, steps):
                assert bncheck_report.steps == steps
        """
    )
    project.run("--bncheck").assert_outcomes(passed=4)


def test_marker_applies_to_the_callable(project):
    project.pytester.makepyfile(
        """
        import pytest
        from toy import ToyModel, toy_batch
        @pytest.mark.bn_consistency(steps=4, ignore="BN")
        def test_it(bncheck):
            assert bncheck(ToyModel(), toy_batch()).steps == 4
            assert bncheck(ToyModel(), toy_batch(), steps=3).steps == 3
        """
    )
    project.run("--bncheck").assert_outcomes(passed=1)
