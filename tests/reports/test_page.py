"""A rule's page as text for a terminal."""

from __future__ import annotations

import pytest

from pytest_bncheck.reports import page
from pytest_bncheck.rules import RULES


@pytest.mark.parametrize("code", RULES)
def test_every_page_fits_a_terminal_and_shows_no_marks(code: str) -> None:
    text = page.render(RULES[code].page)
    assert max(map(len, text.splitlines())) < 80
    assert "``" not in text
    assert "::\n" not in text
    assert text.startswith(f"{code} {RULES[code].name} (")


def test_paragraphs_are_wrapped_and_code_is_not() -> None:
    text = page.render(
        "Title\n\nExample\n-------\nUse ``a b`` in\n" + "many words " * 9 + "as here::\n\n"
        "    x = 1\n\n    y  =  2\n\nNext\n----\n::\n\n    z"
    )
    assert text == (
        "Title\n\nExample\n-------\n"
        "Use `a b` in many words many words many words many words many words many words\n"
        "many words many words many words as here:\n\n"
        "    x = 1\n\n    y  =  2\n\nNext\n----\n\n    z"
    )
