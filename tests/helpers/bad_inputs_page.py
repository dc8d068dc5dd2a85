"""The page of errors, and what calls of `check` with bad inputs give."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import pytest_bncheck
from bad_inputs import Row
from pytest_bncheck import InputError, check

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
REWRITE = "BNCHECK_REWRITE"
"""Set to 1, with PyTorch or with Keras on TensorFlow installed, to write the page anew."""

TITLES = {
    "options": "Command line and ini file",
    "markers": "Marker",
    "fixtures": "Fixtures",
    "checks": "Models and batches, with PyTorch",
    "keras checks": "The same models and batches, with Keras",
    "torch": "With PyTorch alone",
    "keras": "With Keras alone",
}
HEAD = ["what is wrong", "given", "error"]

X = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
Y = np.arange(12) % 3


def written(group: str) -> dict[str, tuple[str, str]]:
    """The rows of a section of the page."""
    section = PAGE.read_text(encoding="utf-8").partition(f"## {TITLES[group]}\n")[2]
    lines = [line for line in section.partition("\n## ")[0].splitlines() if line[:1] == "|"]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]
    return {what: (given, error) for what, given, error in cells}


def cell(text: str) -> str:
    """Text as one line of code in a table."""
    return "`" + re.sub(r"\s+", " ", text).strip().replace("|", r"\|").replace("`", "'") + "`"


def ours(texts: Sequence[str]) -> list[str]:
    """Without the words of an error that a framework raised itself, which its versions change."""
    return [re.sub(r"^`(\w+Error): .* (pytest-bncheck: .*)", r"\1 \2", text) for text in texts]


def compare(group: str, rows: list[Row], errors: list[str]) -> None:
    """Hold a section of the page against what happened."""
    made = {
        row.what: (cell(row.given), cell(error)) for row, error in zip(rows, errors, strict=True)
    }
    assert len(made) == len(rows)
    if os.environ.get(REWRITE):
        lines = [HEAD, ["---"] * 3, *([what, *pair] for what, pair in made.items())]
        table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        before, title, rest = PAGE.read_text(encoding="utf-8").partition(f"## {TITLES[group]}\n")
        after = rest[rest.index("\n## ") :] if "\n## " in rest else ""
        PAGE.write_text(f"{before}{title}\n{table}{after}", encoding="utf-8")
    page = written(group)
    others = {what: pair for what, pair in made.items() if ours(page.get(what, ())) != ours(pair)}
    assert not others, others
    assert [*page] == [*made]


def neutral(text: str, *folders: Path) -> str:
    """Without what differs from machine to machine."""
    for folder in folders:
        text = text.replace(str(folder), ".")
    text = re.sub(r"^(Failed|pytest_bncheck.InputError): ", "", text)
    text = re.sub(r"(for example in conftest.py:).*", r"\1 ...", text, flags=re.DOTALL)
    text = re.sub(r"\x1b\[\d*m", "", text)
    text = re.sub(r" at 0x[0-9a-f]+", "", text)
    return re.sub(r"this machine has cpu.*", "this machine has cpu", text)


def itself(container: Any = None) -> Any:
    """A container of inputs, targets and itself."""
    if isinstance(container, dict):
        container.update(image=X, label=Y, more=container)
        return container
    batch: list[Any] = [X, Y]
    batch.append(batch)
    return batch


def nested(value: Any, levels: int) -> Any:
    """A value in this many lists."""
    for _ in range(levels):
        value = [value]
    return value


ARRAYS = {"np": np, "check": check, "x": X, "y": Y, "itself": itself, "nested": nested}
"""What the calls of every framework use."""


def outcome(call: str, names: dict[str, Any]) -> str:
    """What a call gives: an error of the plugin's, a finding, or the model's own error."""
    try:
        report = eval(call, names)
    except InputError as error:
        return neutral(str(error))
    except Exception as error:
        raised = error
    else:
        finding = report.findings[0]
        return f"{finding.code} {finding.name} ({finding.severity}): {finding.message}"
    notes = getattr(raised, "__notes__", [""])
    assert "pytest-bncheck: raised in" in notes[-1], raised
    assert not shown(raised), shown(raised)
    return neutral(f"{type(raised).__name__}: {raised} {' '.join(notes)}")


def shown(error: Exception) -> list[str]:
    """The plugin's own frames that pytest would show of an error."""
    home = str(Path(pytest_bncheck.__file__).parent)
    return [
        f"{frame.f_code.co_filename}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename.startswith(home) and "__tracebackhide__" not in frame.f_locals
    ]
