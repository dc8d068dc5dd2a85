"""Starts a new rule: its file, its example models, its place in the order, its row in the README.

    python tools/new_rule.py BN308 batch-too-large --severity warning

The tests of the new rule fail then: its bad model is healthy, and it finds nothing.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from string import Template

RULE = Template('''\
"""$code: what is wrong, in half a sentence."""

from __future__ import annotations

from collections.abc import Set

from pytest_bncheck.evidence import Evidence
from pytest_bncheck.rules._base import Rule
from pytest_bncheck.types import Finding


class $cls(Rule):
    """What is wrong, as a title.

    What it does
    ------------
    What is measured, and when the rule fires.

    Why it is bad
    -------------
    What a user notices, and what goes wrong later.

    Example
    -------
    ::

        nn.BatchNorm1d(64)

    Use instead
    -----------
    What does the same without the fault.

    References
    ----------
    Papers, documentation, issues.
    """

    code = "$code"
    name = "$name"
    severity = "$severity"

    def find(self, evidence: Evidence, explained: Set[str]) -> Finding | None:
        return None
''')

EXAMPLE = Template('''\
"""$code $name: what the bad model does."""

from __future__ import annotations

from case import Case, blobs
from nets import mlp


def bad() -> Case:
    """The fault, in the smallest model that has it."""
    return Case(mlp(), blobs())


def good() -> Case:
    """Its nearest healthy neighbour."""
    return Case(mlp(), blobs())
''')

NEXT = """\
Next:
- write {rule}: the page in its docstring, and find();
  needs = frozenset({{"watching"}}) if find() reads what only some adapters offer,
  intended = frozenset({{"..."}}) if users may declare that they want it so
- make the models in {examples} fire it and not;
  where it cannot apply, NOT_APPLICABLE = "why" stands instead of both
- move {cls}() in ORDER to its place: an earlier rule explains its layers
- say in {readme} when it fires
- pytest tests/rules/test_examples.py -k {code}
- BNCHECK_REWRITE=1 pytest tests/rules -k 'table or messages'"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("code", help="such as BN308")
    parser.add_argument("name", help="says the fault, in kebab-case")
    parser.add_argument("--severity", choices=("error", "warning"), default="error")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    args = parser.parse_args()
    if not re.fullmatch(r"BN\d{3}", args.code) or not re.fullmatch(r"[a-z]+(-[a-z]+)*", args.name):
        parser.error("a rule is, for example: BN308 batch-too-large")
    try:
        print(scaffold(args.root, args.code, args.name, args.severity))
    except FileExistsError as error:
        parser.error(str(error))


def scaffold(root: Path, code: str, name: str, severity: str) -> str:
    """Write everything; what comes next, as text."""
    cls = "".join(word.title() for word in name.split("-"))
    module = f"{code.lower()}_{name.replace('-', '_')}"
    package, examples = root / "pytest_bncheck" / "rules", root / "fixtures" / "rules"
    if others := [*package.glob(f"{code.lower()}_*.py")]:
        raise FileExistsError(f"{code} is taken by {others[0].name}")
    values = {"code": code, "name": name, "cls": cls, "severity": severity}
    (package / f"{module}.py").write_text(RULE.substitute(values), encoding="utf-8")
    for framework in ("torch", "keras"):
        path = examples / framework / f"{code.lower()}.py"
        path.write_text(EXAMPLE.substitute(values), encoding="utf-8")
    _register(package / "__init__.py", module, cls)
    _list(root / "README.md", code, f"| {code} | {name} | {severity} | when it fires |\n")
    rule, readme = package / f"{module}.py", root / "README.md"
    return NEXT.format(rule=rule, examples=examples, readme=readme, cls=cls, code=code)


def _register(path: Path, module: str, cls: str) -> None:
    """The import, in its alphabetical place, and the last place in the order."""
    text = path.read_text(encoding="utf-8")
    imports = re.findall(r"^from pytest_bncheck\.rules\.bn.*\n", text, re.MULTILINE)
    line = f"from pytest_bncheck.rules.{module} import {cls}\n"
    text = text.replace("".join(imports), "".join(sorted([*imports, line])))
    path.write_text(text.replace("(),\n)\n", f"(),\n    {cls}(),\n)\n", 1), encoding="utf-8")


def _list(path: Path, code: str, row: str) -> None:
    """A row in the table, by code."""
    text = path.read_text(encoding="utf-8")
    rows = re.findall(r"^\| BN\d+ \|.*\n", text, re.MULTILINE)
    path.write_text(text.replace("".join(rows), "".join(sorted([*rows, row]))), encoding="utf-8")


if __name__ == "__main__":
    main()
