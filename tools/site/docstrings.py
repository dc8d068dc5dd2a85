"""NumPy-style docstrings as Markdown."""

from __future__ import annotations

import inspect
import re
from typing import Any

TERMS = frozenset({"Attributes", "Parameters", "Raises", "Returns"})
"""Sections whose unindented lines are terms, each with its description below."""


def markdown(thing: Any, level: int = 2) -> str:
    """The docstring of a thing; its sections become headings of that level."""
    lines = (inspect.getdoc(thing) or "").splitlines()
    result: list[str] = []
    section = ""
    while lines:
        line = lines.pop(0)
        if lines and re.fullmatch(r"-{3,}", lines[0]):
            lines.pop(0)
            section = line
            result += ["", "#" * level + " " + line, ""]
        elif line.startswith(".. math::"):
            formula = [line.removeprefix(".. math::"), *_indented(lines)]
            result += ["", f"$${' '.join(part.strip() for part in formula)}$$", ""]
        elif line.endswith("::"):
            result += [_inline(line.removesuffix("::") + ":" if line != "::" else ""), ""]
            result += ["```python", *_dedented(_indented(lines)), "```", ""]
        elif section in TERMS and line:
            result += [f"**{line}**" if section == "Raises" else f"`{line}`", ""]
            result += [f":   {_inline(' '.join(part.strip() for part in _indented(lines)))}", ""]
        else:
            result.append(_inline(line))
    return "\n".join(result).strip() + "\n"


def _indented(lines: list[str]) -> list[str]:
    """Takes the indented block that comes next."""
    taken = []
    while lines and (not lines[0].strip() or lines[0].startswith(" ")):
        taken.append(lines.pop(0))
    return taken


def _dedented(lines: list[str]) -> list[str]:
    return inspect.cleandoc("\n" + "\n".join(lines)).splitlines()


def _inline(text: str) -> str:
    text = re.sub(r":math:`([^`]+)`", r"$\1$", text)
    text = re.sub(r":class:`(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    return text.replace("``", "`")
