"""The pages that are made from the code: nothing is missing, and nothing is left unconverted."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

import pytest

from pytest_bncheck import __version__, settings
from pytest_bncheck.plugin import definitions
from pytest_bncheck.reports import wire
from pytest_bncheck.rules import RULES

SITE = Path(__file__).parents[1] / "tools" / "site"


@pytest.fixture(scope="module")
def pages():
    sys.path.insert(0, str(SITE))
    try:
        import pages

        yield pages.all_pages()
    finally:
        sys.path.remove(str(SITE))
        for name in ("pages", "docstrings", "option_examples"):
            sys.modules.pop(name, None)


def headings(page):
    return re.findall(r"^## (\S+)", page, re.MULTILINE)


def test_the_example_of_a_report_is_one_of_this_version():
    jsonschema = pytest.importorskip("jsonschema")
    example = json.loads((SITE.parents[1] / "docs" / "how-to" / "example.json").read_text("utf-8"))
    jsonschema.validate(example, wire.schema())
    assert example["plugin"] == __version__


def test_every_option_has_its_block(pages):
    assert headings(pages["reference/options.md"])[: len(settings.OPTIONS)] == [*settings.OPTIONS]
    block = pages["reference/options.md"].partition("## gap_tolerance")[2].partition("\n## ")[0]
    for place in (
        "`check(model, batch, gap_tolerance=0.3)`",
        "`@pytest.mark.bn_consistency(gap_tolerance=0.3)`",
        "`--bncheck-gap-tolerance 0.3`",
        "`bncheck_gap_tolerance = 0.3`",
        "| default | `0.25` |",
    ):
        assert place in block


@pytest.mark.usefixtures("pages")
@pytest.mark.parametrize("name", settings.OPTIONS)
def test_the_example_of_an_option_can_be_used(name):
    from option_examples import EXAMPLES

    example = EXAMPLES[name]
    if example.code:
        torch = pytest.importorskip("torch")
        defined = {"torch": torch, "model": torch.nn.Linear(2, 2)}
        exec(example.code, defined)
        settings.parse(name, defined[example.value], "call")
        return
    value = settings.parse(name, ast.literal_eval(example.value), "call")
    assert value != getattr(settings.merge(), name)
    if not settings.OPTIONS[name].in_code:
        assert settings.parse(name, example.typed.strip("\"'"), "ini") == value


def test_every_fixture_is_described(pages):
    wanted = {*definitions.INPUTS, "bncheck", "bncheck_report"}
    assert wanted <= {*headings(pages["reference/fixtures.md"])}


def test_the_hook_has_a_conftest_to_paste(pages):
    page = pages["reference/hooks.md"]
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    compile(code, "conftest.py", "exec")
    assert "def pytest_bncheck_adapters(model):" in code


@pytest.mark.parametrize("code", RULES)
def test_every_rule_has_its_page(pages, code):
    page = pages[f"rules/{code.lower()}.md"]
    assert page.startswith(f"# {code} {RULES[code].name}\n")
    assert headings(page) == ["What", "Why", "Example", "Use", "References", "As"]
    assert "def bad()" in page or "NOT_APPLICABLE" in page


def test_no_page_shows_the_markup_of_docstrings(pages):
    for path, text in pages.items():
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        assert not re.search(r":(math|class|func):|^\.\. |::$|^---+$", prose, re.MULTILINE), path
