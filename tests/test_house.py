"""How the package is built: imports point down, files stay short, the map names every module."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pytest_bncheck"
FLOORS = (
    {"pytest_bncheck", "dialect", "errors", "exact", "wording"},  # the package itself: its version
    {"types"},
    {"maths"},
    {"evidence"},
    {"rules", "adapters"},
    {"settings", "reports"},
    {"report"},
    {"experiment", "watch"},
    {"api", "testing"},
    {"plugin"},
)
"""The rooms of the package from the ground up; one imports from the floors below only."""
CLIMBS: dict[tuple[str, str], str] = {}
"""Imports from one room to another that go up all the same, each with its reason."""
LONGEST = 450


class Arrow(NamedTuple):
    """One import of a module by another, and whether it waits for a call."""

    source: str
    target: str
    late: bool


def name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(node: ast.AST, late: bool = False) -> Iterator[tuple[str, bool]]:
    """Every module that a piece of code imports, but for the sake of types alone."""
    for part in ast.iter_child_nodes(node):
        if isinstance(part, ast.If) and "TYPE_CHECKING" in ast.unparse(part.test):
            continue
        if isinstance(part, ast.Import):
            yield from ((alias.name, late) for alias in part.names)
        elif isinstance(part, ast.ImportFrom):
            assert part.module, "relative imports are not followed"
            for alias in part.names:
                inside = f"{part.module}.{alias.name}"
                yield (inside if inside in FILES else part.module), late
        else:
            inside_a_call = isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from imports(part, late or inside_a_call)


ARROWS = [
    Arrow(source, target, late)
    for source, path in FILES.items()
    for target, late in imports(ast.parse(path.read_text(encoding="utf-8")))
    if target in FILES and target != source
]


def room(module: str) -> str:
    return [*module.split("."), module][1] if "." in module else module


def floor(module: str) -> int:
    """How high the room of a module lies."""
    found = [number for number, rooms in enumerate(FLOORS) if room(module) in rooms]
    assert found, f"{room(module)} is in none of FLOORS"
    return found[0]


def test_imports_are_found() -> None:
    assert Arrow("pytest_bncheck.types", "pytest_bncheck.errors", False) in ARROWS
    assert any(arrow.late for arrow in ARROWS)
    source = "if TYPE_CHECKING:\n    import a\nclass B:\n    def c(self):\n        import d"
    assert list(imports(ast.parse(source))) == [("d", True)]


def test_imports_point_down() -> None:
    up = {
        f"{arrow.source} imports {arrow.target}"
        for arrow in ARROWS
        if room(arrow.source) != room(arrow.target)
        and (room(arrow.source), room(arrow.target)) not in CLIMBS
        and floor(arrow.source) <= floor(arrow.target)
    }
    assert not up, "\n".join(sorted(up))


def test_no_exception_is_left_over() -> None:
    assert set(CLIMBS) <= {(room(arrow.source), room(arrow.target)) for arrow in ARROWS}


def test_no_modules_import_each_other() -> None:
    graph: dict[str, set[str]] = {module: set() for module in FILES}
    for arrow in ARROWS:
        if not arrow.late:
            graph[arrow.source].add(arrow.target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]), pytrace=False)


def test_no_file_is_long() -> None:
    lines = {module: len(path.read_text().splitlines()) for module, path in FILES.items()}
    assert {module: count for module, count in lines.items() if count > LONGEST} == {}


def test_the_map_names_every_module() -> None:
    """By its path, or by its file's name in the row of its folder; rules by their folder."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = text.partition("## The map of the house\n")[2].partition("\n## ")[0].splitlines()
    named = [set(re.findall(r"`([\w./]+)`", row)) for row in rows]
    paths = [path.relative_to(PACKAGE) for path in FILES.values()]
    missing = []
    for path in paths:
        folder = f"{path.parent}/" if path.parent.name else ""
        is_folder = path.name == "__init__.py" or re.match(r"bn\d{3}_", path.name)
        wanted = {folder} if is_folder else {folder, path.name}
        if not any(f"{path}" in names or wanted - {""} <= names for names in named):
            missing.append(str(path))
    missing = [path for path in missing if path != "__init__.py"]
    assert not missing, f"CONTRIBUTING.md does not name {', '.join(missing)}"
