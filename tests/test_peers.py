"""How the benchmark of other tools judges what they say, and what its page is made of."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULT = json.loads((ROOT / "benchmarks" / "peers.json").read_text(encoding="utf-8"))
ABOUT = {"batch": ("BN303", "own norms"), "loss": ()}


def load(folder):
    """`peers.py` of a folder."""
    sys.path.insert(0, str(ROOT / folder))
    try:
        sys.modules.pop("peers", None)
        import peers

        return peers
    finally:
        sys.path.remove(str(ROOT / folder))
        sys.modules.pop("peers", None)


@pytest.fixture(scope="module")
def benchmark():
    return load("benchmarks")


def case(said, which="bad", name="BN303", suite="rules", error=""):
    said = [[check, "words"] for check in said]
    return {"suite": suite, "name": name, "which": which, "said": said, "error": error}


@pytest.mark.parametrize(
    ("found", "outcome"),
    [
        (case(["loss", "batch"]), "detected"),
        (case(["loss"]), "symptom only"),
        (case(["unknown"]), "symptom only"),
        (case(["batch"], name="BN302"), "symptom only"),
        (case([]), "silent"),
        (case([], error="ValueError: no"), "no answer"),
        (case(["batch"], error="ValueError: no"), "detected"),
        (case(["batch"], suite="own norms", name="kept: list"), "detected"),
        (case(["loss"], which="good"), "false alarm"),
        (case([], which="good"), "silent"),
        (case([], which="good", error="ValueError: no"), "no answer"),
    ],
)
def test_how_an_answer_is_judged(benchmark, found, outcome):
    assert benchmark.outcome(found, ABOUT) == outcome


def test_a_rule_of_ours_is_about_its_example_alone(benchmark):
    assert benchmark.outcome(case(["BN303"]), {}, ours=True) == "detected"
    assert benchmark.outcome(case(["BN302"]), {}, ours=True) == "symptom only"
    assert benchmark.outcome(case(["BN303"]), {}) == "symptom only"


def test_what_is_kept_is_what_is_judged_now(benchmark):
    assert [*RESULT["tools"]] == [*benchmark.TOOLS]
    names = None
    for key, tool in RESULT["tools"].items():
        about = benchmark.TOOLS[key].about
        for each in tool["cases"]:
            assert each["outcome"] == benchmark.outcome(each, about, ours=key == "bncheck")
        assert benchmark.summary(tool["cases"]) == tool["summary"]
        found = [(each["suite"], each["name"], each["which"]) for each in tool["cases"]]
        names = names or found
        assert found == names


def test_the_page_has_the_tables():
    page = (ROOT / "docs" / "other-tools.md").read_text(encoding="utf-8")
    text = load("tools/site").filled(page)
    assert "<!-- peers" not in text
    for tool in RESULT["tools"].values():
        assert f"| {tool['title']} | {tool['version'] or '–'} |" in text
