"""`--bncheck-model`: a model that is checked with no test code, as a test of its own."""

from __future__ import annotations

import pytest

from project import Project

MODELS = """
from toy import ToyModel

made = []

def good():
    made.append(1)
    return ToyModel()

def bad():
    return ToyModel(update_rate=0.01)

class Fresh(ToyModel):
    pass

class Needs(ToyModel):
    def __init__(self, width): ...

class Group:
    good = staticmethod(good)

async def later(): ...

def weighted(weights="imagenet"):
    assert weights is None
    return ToyModel()

def shaped(weights="imagenet", input_shape=None):
    assert input_shape == (4,)
    return ToyModel()

def raises():
    return 1 / 0

def nothing(): ...

model = good()
number = 3
"""


@pytest.fixture
def models(project: Project) -> Project:
    project.pytester.makepyfile(models=MODELS)
    return project


def check(project: Project, *specs: str, subprocess: bool = False) -> pytest.RunResult:
    flags = [f"--bncheck-model=models:{spec}" for spec in specs]
    return project.run(*flags, "--bncheck-json=report.json", subprocess=subprocess)


def test_each_model_is_a_test(models: Project, xdist_args: list[str]) -> None:
    flags = [f"--bncheck-model=models:{name}" for name in ("good", "bad", "Fresh", "Group.good")]
    result = models.run(*flags, "--bncheck-json=report.json", "--bncheck-steps=80", *xdist_args)
    result.assert_outcomes(passed=3, failed=1)
    checks = models.report()["checks"]
    names = {each["nodeid"]: each["verdict"] for each in checks}
    assert names == {
        "bncheck::models:good": "pass",
        "bncheck::models:bad": "fail",
        "bncheck::models:Fresh": "pass",
        "bncheck::models:Group.good": "pass",
    }
    assert {each["steps"] for each in checks} == {80}
    result.stdout.fnmatch_lines(["*BN101 running-stats-underconverged*", "FAILED bncheck::*bad -*"])
    assert "targets.py" not in result.stdout.str()


def test_they_stand_beside_the_tests_of_a_suite(models: Project) -> None:
    models.pytester.makepyfile("def test_own(): ...")
    check(models, "good").assert_outcomes(passed=2)
    only = models.run("--bncheck-model=models:good", "-m", "bn_consistency")
    only.assert_outcomes(passed=1, deselected=1)
    models.run("--bncheck-model=models:good", "-k", "own").assert_outcomes(passed=1, deselected=1)
    assert models.run("--bncheck-model=models:good", "--co", "-q").ret == 0


def test_the_ini_file_names_models_that_wait_for_the_flag(models: Project) -> None:
    models.pytester.makeini("[pytest]\nbncheck_model =\n    models:good\n    models:Fresh\n")
    models.run().assert_outcomes(skipped=2)
    models.run("--bncheck").assert_outcomes(passed=2)
    models.run("--bncheck-model=models:bad").assert_outcomes(failed=1)  # takes their place
    models.run("--bncheck-model=models:bad", "--no-bncheck").assert_outcomes(skipped=1)


def test_inputs_for_all_and_for_each(models: Project) -> None:
    two = ("--bncheck-model=models:good", "--bncheck-model=models:Fresh", "--bncheck-steps=40")
    assert models.run(*two, "--bncheck-input=12x4", "--bncheck-json=report.json").ret == 0
    assert [each["batch_size"] for each in models.report()["checks"]] == [12, 12]
    sizes = ("--bncheck-input=12x4", "--bncheck-input=18x4", "--bncheck-json=report.json")
    assert models.run(*two, *sizes).ret == 0
    assert [each["batch_size"] for each in models.report()["checks"]] == [18, 12]
    same = ("--bncheck-model=models:good", *two[:1], *sizes)
    models.run(*same).assert_outcomes(passed=2)
    names = [each["nodeid"] for each in models.report()["checks"]]
    assert names == ["bncheck::models:good[12x4]", "bncheck::models:good[18x4]"]


def test_a_model_is_made_from_the_seed(models: Project) -> None:
    def gap(*args: str) -> float:
        models.run(
            "--bncheck-model=models:good", "--bncheck-steps=5", "--bncheck-json=report.json", *args
        )
        return models.report()["checks"][0]["predictions"]["gap"]

    assert gap() == gap("-p", "no:randomly")
    assert gap() != gap("--bncheck-seed=1")


def test_what_would_be_downloaded_is_made_without_weights(models: Project) -> None:
    assert check(models, "weighted").ret == 0
    assert models.run("--bncheck-model=models:shaped", "--bncheck-input=24x4").ret == 0


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nowhere:good", "there is no module 'nowhere'"),
        ("models.inner:good", "there is no module 'models.inner'"),
        ("models:god", "models has no 'god'. Near: good"),
        ("models:number", "number is a int and makes no model"),
        ("models:model", "models:model is itself a model; name a function that makes one"),
        ("models:Needs", "models:Needs needs arguments (width)"),
        ("models:later", "models:later is a coroutine function"),
        ("models:nothing", "the model is None"),
        ("toy:toy_batch", "cannot check a model of type tuple"),
    ],
)
def test_a_spec_that_makes_no_model(models: Project, spec: str, words: str) -> None:
    result = models.run(f"--bncheck-model={spec}", "--bncheck-json=report.json")
    result.assert_outcomes(failed=1)
    (check,) = models.report()["checks"]
    assert check["verdict"] == "error"
    assert words in check["error"]
    assert words in result.stdout.str()
    assert "Traceback" not in result.stdout.str()


def test_inputs_that_the_model_does_not_take(models: Project) -> None:
    result = models.run("--bncheck-model=models:good", "--bncheck-input=8x5")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*--bncheck-input 8x5: the model does not take it*5 features*"])


def test_the_users_error_keeps_its_traceback(models: Project) -> None:
    result = check(models, "raises")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*return 1 / 0*", "*ZeroDivisionError*"])
    assert "plugin" not in result.stdout.str().partition("FAILURES")[2].partition("= bncheck")[0]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--bncheck-model=models"], "--bncheck-model=models cannot be used; allowed: package.mo"),
        (["--bncheck-model=a-b:c"], "--bncheck-model=a-b:c cannot be used"),
        (["--bncheck-model=a:b", "--bncheck-input=8xx"], "--bncheck-input=8xx cannot be used"),
        (["--bncheck-model=a:b", "--bncheck-input=int7:8"], "--bncheck-input=int7:8 cannot be"),
        (["--bncheck-model=a:b", "--bncheck-input=0x4"], "--bncheck-input=0x4 cannot be used"),
        (["--bncheck-input=8x4"], "--bncheck-input is given without --bncheck-model"),
        (
            [*["--bncheck-model=a:b", "--bncheck-input=8"] * 2, "--bncheck-model=a:c"],
            "--bncheck-input is given 2 times and --bncheck-model 3 times",
        ),
    ],
)
def test_options_that_cannot_be_used(models: Project, args: list[str], words: str) -> None:
    result = models.run(*args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert words in result.stderr.str()


def test_an_adapter_that_makes_up_no_batch(models: Project) -> None:
    models.pytester.makeconftest("""
        import sys
        from toy import ToyAdapter, ToyModel
        from pytest_bncheck.adapters.base import Adapter

        class Plain(ToyAdapter):
            invent = Adapter.__dict__["invent"]

        def pytest_bncheck_adapters(model):
            return Plain if isinstance(model, ToyModel) else None
    """)
    result = check(models, "good")
    result.stdout.fnmatch_lines(["*no batch can be made up for a model of toy*"])


def test_github_points_at_the_function(models: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    line = MODELS.strip().splitlines().index("def bad():") + 1
    result = check(models, "bad")
    result.stdout.fnmatch_lines([f"::error file=models.py,line={line},title=BN101*"])
