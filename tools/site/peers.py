"""Tables of other tools on the same models, from what `benchmarks/peers.py` measured."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parents[2] / "benchmarks" / "peers.json"
SIGNS = {"detected": "●", "symptom only": "○", "silent": "·", "no answer": "?"}


def filled(markdown: str) -> str:
    """A page with the tables in the place of its comments ``<!-- peers: ... -->``."""
    for name, make in _TABLES.items():
        mark = f"<!-- peers: {name} -->"
        if mark in markdown:
            markdown = markdown.replace(mark, make(_read()))
    return markdown


def _read() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    return found


def _counts(suite: str) -> Callable[[dict[str, Any]], str]:
    def table(result: dict[str, Any]) -> str:
        tools = result["tools"].values()
        bad, good = (sum(next(iter(tools))["summary"][suite][w].values()) for w in ("bad", "good"))
        heads = [f"{bad} faults: detected", *list(SIGNS)[1:], f"{good} healthy: false alarm"]
        rows = [["tool", *heads]]
        for tool in tools:
            counts = tool["summary"][suite]
            cells = [counts["bad"].get(name, 0) for name in SIGNS]
            cells += [counts["good"].get("false alarm", 0)]
            rows.append([tool["title"], *map(str, cells)])
        return _markdown(rows)

    return table


def _cases(suite: str) -> Callable[[dict[str, Any]], str]:
    def table(result: dict[str, Any]) -> str:
        tools = result["tools"]
        found: dict[str, dict[str, str]] = {}
        for key, tool in tools.items():
            for case in tool["cases"]:
                if case["suite"] != suite:
                    continue
                cell = found.setdefault(case["name"], dict.fromkeys(tools, ""))
                if case["which"] == "bad":
                    cell[key] = SIGNS[case["outcome"]] + cell[key]
                elif case["outcome"] == "false alarm":
                    cell[key] += "!"
        head = "".join(f"<th>{html.escape(tool['title'])}</th>" for tool in tools.values())
        rows = [
            f"<tr><td>{name}</td>" + "".join(f"<td>{cell}</td>" for cell in cells.values())
            for name, cells in found.items()
        ]
        table = [f"<table><thead><tr><th></th>{head}</tr></thead>", *rows, "</table>"]
        return "\n".join(['<div class="matrix">', *table, "</div>"])

    return table


def _versions(result: dict[str, Any]) -> str:
    rows = [["tool", "version", "used"]]
    rows += [[t["title"], t["version"] or "–", t["used"]] for t in result["tools"].values()]
    return f"Measured on {result['date']}.\n\n{_markdown(rows)}"


def _markdown(rows: list[list[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body])


_TABLES = {
    "tools": _versions,
    "rules": _counts("rules"),
    "own norms": _counts("own norms"),
    "theirs": _counts("theirs"),
    "each rule": _cases("rules"),
    "each of theirs": _cases("theirs"),
}
