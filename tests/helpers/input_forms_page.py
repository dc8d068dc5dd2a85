"""The page of input forms, and what every row of it uses."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from input_forms import Form
from pytest_bncheck import check

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "inputs.md"
REWRITE = "BNCHECK_REWRITE"
"""Set to 1 to write the rows of a table anew."""

_rng = np.random.default_rng(0)
Y = np.arange(32) % 3
X = (3 + 2 * np.eye(3, 4)[Y] + 0.3 * _rng.normal(size=(32, 4))).astype("float32")
PADDED = np.where(_rng.random(X.shape) < 0.1, np.nan, X)
ARRAYS = {"np": np, "check": check, "x": X, "y": Y, "padded": PADDED}


def table(rows: Iterable[Form], framework: str) -> list[str]:
    """The rows of the page for a framework."""
    return [f"| {row.what} | {framework} | {row.since} | `{row.call}` |" for row in rows]


def compare(title: str, lines: list[str]) -> None:
    """Hold a table of the page against the rows that were run."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(rf"(### {re.escape(title)}\n\n\|.*\n\|.*\n)((?:\|.*\n)*)", text)
    assert found, title
    if os.environ.get(REWRITE):
        text = text[: found.start(2)] + "\n".join(lines) + "\n" + text[found.end(2) :]
        PAGE.write_text(text, encoding="utf-8")
    else:
        assert found[2].splitlines() == lines


def understood(form: Form, names: dict[str, Any]) -> None:
    """The model was trained on this batch, and its slow statistics were judged."""
    report = eval(form.call[:-1] + ", steps=3)", names)
    assert report.steps == 3
    assert "BN101" in [finding.code for finding in report.findings], (form, str(report))
