"""The model repos in fixtures/, each run by pytest as its owner would run it."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import pytest

from opened import Page, flaws
from pytest_bncheck.reports import wire

FIXTURES = Path(__file__).parents[1] / "fixtures"

# What each repo imports.
REPOS = {
    "batches_keras": "tensorflow",
    "batches_torch": "torch",
    "detector_torch": "torch",
    "gan_torch": "torch",
    "groupnorm_torch": "torch",
    "huggingface_torch": "transformers",
    "layernorm_keras": "tensorflow",
    "lightning_torch": "pytorch_lightning",
    "outputs_torch": "torch",
    "replicas_torch": "torch",
    "resnet_torch": "torch",
    "three_images_keras": "tensorflow",
    "training_steps_keras": "tensorflow",
    "training_steps_torch": "torch",
    "vision_torch": "torch",
}
HTML = importlib.util.find_spec("jinja2") is not None
STRICT = ("--strict-markers", "-W", "error")
RUNS = [
    *[(repo, STRICT) for repo in REPOS],
    *[("groupnorm_torch", args) for args in [("-n0",), ("-n2",)]],
    ("layernorm_keras", ("-n2",)),
]


@dataclass(frozen=True)
class Run:
    """One run of pytest: its exit code, counts, text, checks by test, and HTML report."""

    exit: int
    outcomes: dict[str, int]
    text: str
    checks: dict[str, dict]
    page: str


@functools.cache
def run(repo: str, *args: str) -> Run:
    """Run pytest in a repo; the same run is made once."""
    if importlib.util.find_spec(REPOS[repo]) is None:
        pytest.skip(f"needs {REPOS[repo]}")
    if "-n" in str(args):
        pytest.importorskip("xdist")
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
    environment["OMP_NUM_THREADS"] = "1"  # torch's threads wait for each other on a busy machine
    with tempfile.TemporaryDirectory() as folder:
        report, page = Path(folder, "report.json"), Path(folder, "report.html")
        processes = expected(repo).get("processes", 1)
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *(torchrun if processes > 1 else ())]
        command += ["-m", "pytest", "-p", "no:cacheprovider", *args, repo]
        if "--bncheck" in args:
            command.append(f"--bncheck-json={report}")
            command += [f"--bncheck-html={page}"] if HTML else []
        done = subprocess.run(
            command, cwd=FIXTURES, env=environment, capture_output=True, text=True, timeout=1200
        )
        checks = []
        if report.exists():
            content = json.loads(report.read_text())
            jsonschema.validate(content, wire.schema())
            checks = content["checks"]
        shown = page.read_text(encoding="utf-8") if page.exists() else ""
    text = done.stdout + done.stderr
    assert "INTERNALERROR" not in text
    outcomes = pytest.RunResult.parse_summary_nouns(done.stdout.splitlines())
    return Run(done.returncode, outcomes, text, {check["nodeid"]: check for check in checks}, shown)


def expected(repo: str) -> dict:
    """What the repo says about itself."""
    return json.loads((FIXTURES / repo / "expected.json").read_text())


def test_every_repo_is_run():
    assert set(REPOS) == {path.parent.name for path in FIXTURES.glob("*/expected.json")}


@pytest.mark.parametrize(("repo", "args"), RUNS, ids=lambda value: "".join(value) or "alone")
def test_a_repo_comes_out_as_expected(repo, args):
    result = run(repo, "--bncheck", *args)
    found = {
        nodeid: [check["verdict"], *(finding["code"] for finding in check["findings"])]
        for nodeid, check in result.checks.items()
    }
    wanted = expected(repo)
    assert found == wanted["checks"], result.text
    assert result.outcomes == wanted["outcomes"], result.text
    assert result.exit == wanted["exit"]


@pytest.mark.skipif(not HTML, reason="needs the extra html")
@pytest.mark.parametrize(("repo", "args"), RUNS, ids=lambda value: "".join(value) or "alone")
def test_the_page_shows_the_checks(repo, args):
    result = run(repo, "--bncheck", *args)
    shown = [(test, verdict) for verdict, test in Page(result.page).checks()]
    assert sorted(shown) == sorted(
        (nodeid.replace("::", " ", 1), check["verdict"]) for nodeid, check in result.checks.items()
    )


@pytest.mark.skipif(not HTML, reason="needs the extra html")
@pytest.mark.parametrize("repo", REPOS)
def test_the_page_opens_in_a_browser(repo, browse, tmp_path):
    result = run(repo, "--bncheck", *STRICT)
    file = tmp_path / "report.html"
    file.write_text(result.page, encoding="utf-8")
    page = browse(file)
    for check in page.locator("details.check").all():
        name = check.locator("h2").text_content()
        found = next(c for k, c in result.checks.items() if k.replace("::", " ", 1) == name)
        assert check.locator("tbody tr:has(th[data-value])").count() == len(found["layers"])
        assert check.locator(".finding").count() == len(found["findings"])
        assert (check.get_attribute("open") is not None) == (found["verdict"] == "fail")
        titles = set(check.locator("h3").all_text_contents())
        assert {"Modes", "Measures"} <= titles
        assert ("Findings" in titles) == bool(found["findings"])
        assert ("Layers" in titles) == bool(found["layers"])
    for table in page.locator("details[open] table.layers").all():
        table.locator("thead button", has_text="Distortion").click()
        bent = [float(text) for text in table.locator("tbody td:nth-child(3)").all_inner_texts()]
        assert bent == sorted(bent, reverse=True)
    for width, theme in ((390, "light"), (1280, "dark")):
        assert (
            flaws(browse(file, viewport={"width": width, "height": 900}, color_scheme=theme)) == []
        )


@pytest.mark.parametrize("repo", ["layernorm_keras", "resnet_torch", "training_steps_torch"])
def test_without_the_flag_every_test_is_skipped(repo):
    result = run(repo, "-rs", *STRICT)
    count = sum(expected(repo)["outcomes"].values())
    assert result.outcomes == {"skipped": count}, result.text
    assert result.exit == 0
    assert "turn them on with --bncheck" in result.text


def test_three_images_are_right_in_training_and_wrong_in_prediction():
    result = run("three_images_keras", "--bncheck", *STRICT)
    check = result.checks["test_caught.py::test_resnet"]
    shown = check["predictions"]
    assert (check["framework"], check["backend"], check["steps"]) == ("keras", "tensorflow", 5)
    assert shown["train"]["accuracy"] == 1
    assert shown["eval"]["accuracy"] == pytest.approx(1 / 3)
    assert shown["recalibrated"]["accuracy"] == 1


def test_three_images_fail_with_the_cause_in_numbers():
    result = run("three_images_keras", "--bncheck", *STRICT)
    (finding,) = result.checks["test_caught.py::test_resnet"]["findings"]
    evidence = finding["evidence"]
    assert evidence["momentum"] == 0.99
    assert evidence["updates"] == 5
    assert evidence["initial_weight"] == pytest.approx(0.99**5)
    assert evidence["gap_with_batch_statistics"] < 1e-4
    text = " ".join(result.text.replace("\nE ", " ").split())
    assert "100 % right in training mode, 33 % " in text
    assert "After 5 updates at momentum 0.99, 95.1 % of every running statistic" in text


def test_three_images_after_fit_fail_for_the_same_reason():
    result = run("three_images_keras", "--bncheck", *STRICT)
    check = result.checks["test_after_fit.py::test_trained_resnet"]
    (finding,) = check["findings"]
    assert check["steps"] == 0
    assert finding["evidence"]["momentum"] == 0.99
    assert finding["evidence"]["updates"] == 5
    assert finding["evidence"]["initial_weight"] == pytest.approx(0.99**5, abs=0.005)
    assert check["predictions"]["train"]["accuracy"] == 1
    assert check["predictions"]["eval"]["accuracy"] == pytest.approx(1 / 3)


def words(text: str) -> str:
    """A text without line breaks, pytest's marks and figures, which depend on the machine."""
    return re.sub(r"\d+", "0", " ".join(re.sub(r"^E? +", "", text, flags=re.M).split()))


def test_three_images_fail_as_the_readme_shows():
    readme = (FIXTURES.parent / "README.md").read_text(encoding="utf-8")
    shown = readme.partition("## Three images")[2].partition("```text")[2].partition("```")[0]
    assert "Cause: After 5 updates" in shown
    assert words(shown) in words(run("three_images_keras", "--bncheck", *STRICT).text)


def test_three_images_are_judged_as_after_the_planned_updates():
    result = run("three_images_keras", "--bncheck", *STRICT)
    check = result.checks["test_cured.py::TestLongTraining::test_thousand_updates"]
    assert check["predictions"]["eval"]["accuracy"] == pytest.approx(1 / 3)
    assert check["predictions"]["projected"]["accuracy"] == 1.0


def test_of_several_processes_the_first_reports():
    result = run("replicas_torch", "--bncheck", *STRICT)
    lines = result.text.splitlines()
    assert len([line for line in lines if " bncheck =" in line]) == 1
    found = {"test_caught.py": ["module.1", "module.4"], "test_sharded.py": ["1", "4"]}
    for file, layers in found.items():
        assert len([line for line in lines if line.startswith(f"FAIL  {file}")]) == 1
        check = result.checks[f"{file}::test_every_process_for_itself"]
        (finding,) = check["findings"]
        assert finding["evidence"]["processes"] == 2
        assert sorted(finding["layers"]) == layers


def test_resnet_in_torch_fails_and_passes_with_the_cause_in_numbers():
    checks = run("resnet_torch", "--bncheck", *STRICT).checks
    caught, cured = checks["test_caught.py::test_resnet"], checks["test_cured.py::test_resnet"]
    (finding,) = caught["findings"]
    assert finding["evidence"]["momentum"] == 0.01
    assert finding["evidence"]["updates"] == caught["steps"] == 10
    assert finding["evidence"]["initial_weight"] == pytest.approx(0.99**10)
    assert finding["evidence"]["gap_with_batch_statistics"] < 1e-4
    assert caught["predictions"]["train"]["accuracy"] == 1
    assert caught["predictions"]["eval"]["accuracy"] < 0.5
    assert cured["predictions"]["eval"]["accuracy"] == 1
    assert 20 <= cured["steps"] <= 150
