"""A rule's page for a terminal."""

from __future__ import annotations

import re

from pytest_bncheck.reports.layout import wrap

PAGE_WIDTH = 78
"""Columns of a line; code is not broken."""


def render(page: str) -> str:
    """A docstring as text: paragraphs wrapped to the terminal, code as it is, without markup.

    Parameters
    ----------
    page
        reStructuredText as in the rules' docstrings: underlined headings, paragraphs, code that is
        indented after a double colon, literals between double backticks.
    """
    blocks = re.split(r"\n{2,}", page.strip())
    return "\n\n".join(_block(block) for block in blocks)


def _block(block: str) -> str:
    lines = block.split("\n")
    if lines[0].startswith(" "):
        return block
    if len(lines) > 1 and set(lines[1]) == {"-"}:
        return "\n".join([*lines[:2], *_paragraph(lines[2:])])
    return "\n".join(_paragraph(lines))


def _paragraph(lines: list[str]) -> list[str]:
    text = re.sub(r"^::$", "", " ".join(lines))
    return wrap(re.sub(r"::$", ":", text).replace("``", "`"), width=PAGE_WIDTH)
