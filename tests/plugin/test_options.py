"""Command line and ini file."""

from __future__ import annotations

import pytest

ONE = "import pytest\n@pytest.mark.bn_consistency\ndef test_it(): ..."


def usage_error(result) -> str:
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    lines = [line for line in result.stderr.lines if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("ERROR: ")
    return lines[0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--bncheck-steps=-1"], "steps='-1' (from --bncheck-steps) cannot be used; allowed: "),
        (["--bncheck-seed=x"], "seed='x' (from --bncheck-seed)"),
        (["--bncheck-gap-tolerance=nan"], "gap_tolerance='nan' (from --bncheck-gap-tolerance)"),
        (["--bncheck-ignore=BN1", "--bncheck-ignore=BN999: x"], "there is no rule 'BN999'"),
        (["--bncheck-select=nonsense"], "there is no rule 'nonsense'"),
        (["--bncheck-json=no/such.json"], "--bncheck-json=no/such.json cannot be written: the dir"),
        (["--bncheck-json=."], "it is a directory"),
        (["--bncheck-json="], "the path is empty"),
        (["--bncheck-html=no/such.html"], "--bncheck-html=no/such.html cannot be written: the dir"),
        (["--bncheck-explain=BN999"], "--bncheck-explain: there is no rule 'BN999'; near: BN"),
        (["--bncheck-explain=momentum"], "near: momentum-suspicious, mode-sticks"),
    ],
)
def test_command_line_errors(project, args, message):
    project.pytester.makepyfile(ONE)
    assert message in usage_error(project.run(*args))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bncheck = maybe", "bncheck"),
        ("bncheck_steps = five", "steps='five' (from bncheck_steps in tox.ini)"),
        ("bncheck_strict = perhaps", "bncheck_strict"),
        ("bncheck_ignore = BN999: x", "ignore=['BN999: x'] (from bncheck_ignore in tox.ini)"),
        ("bncheck_json = no/such.json", "bncheck_json=no/such.json (from tox.ini)"),
        ("bncheck_html = no/such.html", "bncheck_html=no/such.html (from tox.ini)"),
    ],
)
def test_ini_errors(project, line, message):
    project.pytester.makepyfile(ONE)
    project.pytester.makefile(".ini", tox=f"[pytest]\n{line}\n")
    assert message in usage_error(project.run())


NATIVE = pytest.mark.skipif(pytest.version_tuple < (9, 2), reason="ini values of several types")


@pytest.mark.parametrize(
    "text",
    [
        '[tool.pytest.ini_options]\nbncheck = true\nbncheck_steps = 5\nbncheck_ignore = ["BN2"]',
        '[tool.pytest.ini_options]\nbncheck = true\nbncheck_steps = "5"\nbncheck_ignore = "BN2"',
        pytest.param(
            '[tool.pytest]\nbncheck = true\nbncheck_steps = 5\nbncheck_ignore = ["BN2"]',
            marks=NATIVE,
        ),
        pytest.param(
            '[tool.pytest]\nbncheck = true\nbncheck_steps = "5"\nbncheck_ignore = ["BN2"]',
            marks=NATIVE,
        ),
    ],
)
def test_pyproject(project, text):
    project.pytester.makepyprojecttoml(text)
    project.pytester.makepyfile(
        """
        def test_it(bncheck_report):
            assert bncheck_report.steps == 5
        """
    )
    result = project.run("--bncheck-ignore=BN1: early")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["bncheck: on (steps=5, ignore=BN2 BN1)"])


@NATIVE
@pytest.mark.parametrize("value", ['{ BN1 = "x" }', "5"])
def test_native_table_for_ignore_is_an_error(project, value):
    project.pytester.makepyprojecttoml(f"[tool.pytest]\nbncheck_ignore = {value}")
    usage_error(project.run())


def test_table_for_ignore_is_an_error(project):
    text = '[tool.pytest.ini_options]\nbncheck_ignore = { BN1 = "x" }'
    project.pytester.makepyprojecttoml(text)
    assert "ignore=" in usage_error(project.run())


def test_precedence(project):
    project.pytester.makeini(
        "[pytest]\nbncheck = true\nbncheck_steps = 1\nbncheck_seed = 1\nbncheck_strict = true\n"
        "bncheck_ignore =\n    BN1: ini\n"
    )
    project.pytester.makepyfile(
        """
        import pytest
        from toy import ToyModel, toy_batch

        @pytest.mark.bn_consistency(seed=3, intended="frozen-batchnorm")
        def test_it(bncheck):
            report = bncheck(ToyModel(), toy_batch())
            assert (report.steps, report.seed) == (2, 3)
            assert bncheck(ToyModel(), toy_batch(), steps=4, seed=0).seed == 0
            assert bncheck(ToyModel(), toy_batch()).suppressed[0].reason == "ignored: ini"
        """
    )
    result = project.run("--bncheck-steps=2", "--bncheck-seed=2", "--no-bncheck-strict")
    result.assert_outcomes(passed=1)


def test_a_json_path_turns_checks_on(project):
    project.pytester.makepyfile(ONE)
    project.run("--bncheck-json=r.json").assert_outcomes(passed=1)
    project.pytester.makeini("[pytest]\nbncheck_json = ini.json\n")
    (project.path / "sub").mkdir()
    project.run("--rootdir=.", "-c", "tox.ini").assert_outcomes(passed=1)
    assert project.report("ini.json")["summary"]["checks"] == 1


def test_the_html_report_asks_for_its_extra(project, xdist_args):
    project.pytester.makepyfile(ONE)
    project.pytester.makepyfile(
        sitecustomize="""
        import importlib.util

        find_spec = importlib.util.find_spec
        importlib.util.find_spec = lambda name: None if name == "jinja2" else find_spec(name)
        """
    )
    project.pytester.syspathinsert()
    result = project.run("--bncheck-html=r.html", *xdist_args, subprocess=True)
    sentence = "the HTML report needs jinja2: pip install 'pytest-bncheck[html]'."
    assert usage_error(result) == f"ERROR: {sentence}"
    result = project.run("--bncheck-html=r.html", "--no-bncheck", subprocess=True)
    result.assert_outcomes(skipped=1)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ([], "bncheck: on"),
        (
            ["--bncheck-steps=auto", "--bncheck-seed=0", "--bncheck-gap-tolerance=0.25"],
            "bncheck: on",
        ),
        (["--bncheck-seed=1", "--bncheck-strict"], "bncheck: on (seed=1, strict=true)"),
        (["--bncheck-select=BN1,BN2"], "bncheck: on (select=BN1 BN2)"),
        (["--bncheck-ignore=BN106: tiny [images]"], "bncheck: on (ignore=BN106)"),
    ],
)
def test_header_says_what_is_not_the_default(project, args, line):
    assert line in project.run("--bncheck", *args).outlines


def test_explain(project):
    result = project.run("--bncheck-explain", "running-stats-underconverged")
    assert result.ret == 0
    assert "Why it is bad" in result.outlines
    assert "test session starts" not in result.stdout.str()


def test_explain_a_family(project):
    lines = project.run("--bncheck-explain=bn2").outlines
    assert [line for line in lines if line.startswith("BN")] == [
        "BN201 eval-path-differs (error)",
        "BN202 training-inconclusive (warning)",
    ]


def test_help(project):
    result = project.run("--help")
    result.stdout.fnmatch_lines(
        [
            "*--bncheck, --no-bncheck*",
            "*--bncheck-steps=N|auto*",
            "*--bncheck-strict, --no-bncheck-strict*",
            "*--bncheck-json=PATH*",
            "*--bncheck-html=PATH*",
            "*bncheck_steps (*",
        ]
    )
