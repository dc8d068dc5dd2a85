"""The fixtures that users override."""

from __future__ import annotations

import pytest

MARKED = "@pytest.mark.bn_consistency(steps=60)\ndef test_it(): ...\n"


@pytest.mark.parametrize("name", ["bncheck_model", "bncheck_batch"])
def test_missing_fixture_is_explained(project, xdist_args, name):
    text = (project.path / "conftest.py").read_text()
    project.pytester.makeconftest(text.replace(f"def {name}(", "def other("))
    project.pytester.makepyfile("import pytest\n" + MARKED)
    result = project.run("--bncheck", "--bncheck-json=report.json", *xdist_args)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [f"this test needs the fixture {name}; override it *", f"*def {name}():"]
    )
    assert "pytest_bncheck/" not in result.stdout.str()
    assert project.report()["checks"][0]["error"].startswith("InputError: this test needs")


def test_functions_are_used(project):
    project.pytester.makepyfile(
        """
        import pytest
        from toy import cross_entropy
        used = set()

        @pytest.fixture
        def bncheck_loss():
            def loss(outputs, targets):
                used.add("loss")
                return cross_entropy(outputs, targets)
            return loss

        @pytest.fixture
        def bncheck_forward():
            def forward(model, batch):
                used.add("forward")
                return model(batch[0])
            return forward

        @pytest.fixture
        def bncheck_optimizer():
            return lambda params: used.add("optimizer") or 0.5

        def test_it(bncheck_report):
            assert used == {"loss", "forward", "optimizer"}
        """
    )
    project.run("--bncheck").assert_outcomes(passed=1)


@pytest.mark.parametrize("arguments", ["outputs, targets", "request, outputs"])
def test_function_written_as_fixture_is_explained(project, arguments):
    project.pytester.makepyfile(
        f"import pytest\n@pytest.fixture\ndef bncheck_loss({arguments}): ...\n" + MARKED
    )
    result = project.run("--bncheck")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*the fixture bncheck_loss asks for *outputs*returns the function loss(outputs, targets)*"]
    )


def test_fixture_that_returns_no_function(project):
    project.pytester.makepyfile(
        "import pytest\n@pytest.fixture\ndef bncheck_loss(): return 3\n" + MARKED
    )
    result = project.run("--bncheck")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["loss=3 (from fixture bncheck_loss) cannot be used; allowed: a*"])


BATCHES = """
@pytest.fixture
def bncheck_batches():
    return [toy_batch(seed=0), toy_batch(size=12, seed=1)]
"""


@pytest.mark.parametrize("marked", [True, False])
def test_nearer_batch_wins(project, marked):
    conftest = (project.path / "conftest.py").read_text()
    one = "@pytest.fixture\ndef bncheck_batch(): return toy_batch(size=6)\n"
    head = "import pytest\nfrom toy import toy_batch\n"
    test = "def test_it(bncheck_report): assert bncheck_report.batch_size == "
    if marked:
        test = "@pytest.mark.bn_consistency\n" + test

    project.pytester.makepyfile(head + BATCHES + test + "24")
    project.run("--bncheck", "--bncheck-ignore=BN").assert_outcomes(passed=1)

    project.pytester.makeconftest(conftest.replace("def bncheck_batch(", "def x(") + BATCHES)
    project.pytester.makepyfile(head + one + test + "6")
    project.run("--bncheck", "--bncheck-ignore=BN").assert_outcomes(passed=1)

    project.pytester.makepyfile(head + BATCHES + one + test + "6")
    result = project.run("--bncheck")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*bncheck_batch and bncheck_batches are both overridden*"])


def test_batch_of_a_subfolder_is_nearer_than_batches_of_the_root(project):
    conftest = (project.path / "conftest.py").read_text()
    project.pytester.makeconftest(conftest.replace("def bncheck_batch(", "def x(") + BATCHES)
    folder = project.path / "a"  # as short a name as "." is
    folder.mkdir()
    (folder / "conftest.py").write_text(
        "import pytest\nfrom toy import toy_batch\n"
        "@pytest.fixture\ndef bncheck_batch(): return toy_batch(size=6)\n"
    )
    (folder / "test_a.py").write_text(
        "def test_it(bncheck_report): assert bncheck_report.batch_size == 6"
    )
    project.run("--bncheck", "--bncheck-ignore=BN").assert_outcomes(passed=1)


def test_generator_of_batches(project):
    project.pytester.makepyfile(
        """
        import itertools, pytest
        from toy import ToyModel, toy_batch
        def test_it(bncheck):
            assert bncheck(ToyModel(), batches=(toy_batch() for _ in range(2)), steps=60).ok
            assert bncheck(ToyModel(), batches=itertools.repeat(toy_batch()), steps=60).ok
            with pytest.raises(ValueError, match="batches is empty"):
                bncheck(ToyModel(), batches=[])
            for wrong in (3, {"inputs": 1}, toy_batch()[0]):
                with pytest.raises(ValueError, match="batches is of type (int|dict|ndarray)"):
                    bncheck(ToyModel(), batches=wrong)
        """
    )
    project.run("--bncheck").assert_outcomes(passed=1)


def test_inputs_are_seeded_and_random_state_is_left_alone(project, xdist_args):
    project.pytester.makepyfile(
        """
        import random
        import numpy as np
        import pytest
        from toy import ToyModel

        @pytest.fixture
        def helper():
            return np.random.random(), random.random()

        @pytest.fixture
        def bncheck_model(helper):
            drawn = *helper, np.random.random(), random.random()
            model = ToyModel()
            model.drawn = drawn
            return model

        def expected(seed):
            rng, py = np.random.RandomState(seed), random.Random(seed)
            return (rng.random(), py.random()) * 2

        @pytest.fixture(autouse=True)
        def mine():
            random.seed(42)
            np.random.seed(42)

        @pytest.fixture(params=range(2))
        def repeat(request): ...

        @pytest.mark.bn_consistency(seed=7)
        def test_marker(bncheck_model, repeat):
            assert bncheck_model.drawn == expected(7)
            assert random.random() == random.Random(42).random()
            assert np.random.random() == np.random.RandomState(42).random()

        def test_report(bncheck_report, bncheck_model):
            assert bncheck_model.drawn == expected(0)
            assert random.random() == random.Random(42).random()

        def test_ordinary(helper):
            assert helper == (np.random.RandomState(42).random(), random.Random(42).random())
        """
    )
    project.run("--bncheck", *xdist_args).assert_outcomes(passed=4)


def test_conftest_hook_and_unknown_model(project):
    project.pytester.makepyfile(
        """
        import pytest
        from toy import ToyModel, toy_batch

        @pytest.mark.parametrize("model", [None, ToyModel])
        def test_it(bncheck, model):
            bncheck(model, toy_batch())
        """
    )
    result = project.run("--bncheck")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "*the model is None; does the function that makes it*",
            "*the model is the class toy.ToyModel; pass*",
        ]
    )


def test_hook_that_returns_something_else(project):
    project.pytester.makeconftest("def pytest_bncheck_adapters(model): return model")
    project.pytester.makepyfile("def test_it(bncheck): bncheck(3, 4)")
    result = project.run("--bncheck")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*must return a subclass of *Adapter or None, not 3*"])


def test_functions_may_depend_on_the_parameters_of_a_test(project):
    project.pytester.makepyfile(
        """
        import pytest
        from toy import cross_entropy

        @pytest.fixture
        def bncheck_loss(scale):
            return lambda outputs, targets: cross_entropy(outputs * scale, targets)

        @pytest.mark.parametrize("scale", [1, 2])
        @pytest.mark.bn_consistency(steps=5, ignore="BN")
        def test_it(scale): ...
        """
    )
    project.run("--bncheck").assert_outcomes(passed=2)
