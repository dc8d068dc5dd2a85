"""What mkdocs calls: pages and plots made from the code, and formulas as MathML."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pages
import peers
import plots
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

from pytest_bncheck.reports.html import page as report

EXAMPLE = Path(__file__).parents[2] / "docs" / "how-to" / "example.json"
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
"""What the Markdown extension arithmatex leaves for a script to typeset."""


def on_config(config: Any) -> Any:
    """Every rule has its entry in the navigation."""
    (section,) = (entry for entry in config.nav if isinstance(entry, dict) and "Rules" in entry)
    section["Rules"] += sorted(path for path in pages.rule_pages() if not path.endswith("index.md"))
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add everything that is made and not written."""
    example = {"how-to/example.html": report(json.loads(EXAMPLE.read_text(encoding="utf-8")))}
    for path, text in {**pages.all_pages(), **plots.all_plots(), **example}.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(text: str, **_: Any) -> str:
    """Tables of what was measured."""
    return peers.filled(text)


def on_page_content(text: str, **_: Any) -> str:
    """Formulas as MathML, which browsers typeset without a script."""
    return FORMULA.sub(_mathml, text)


def _mathml(found: re.Match[str]) -> str:
    display = "block" if found[1] == "div" else "inline"
    return str(convert(html.unescape(found[2]), display=display))
