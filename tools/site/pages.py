"""The reference: pages made from the code that they describe."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docstrings import markdown
from option_examples import EXAMPLES, FLAGS

from pytest_bncheck import report, settings, types
from pytest_bncheck.plugin import fixtures, hookspecs, options
from pytest_bncheck.rules import INTENDED, ORDER, RULES
from pytest_bncheck.rules._base import Rule

ROOT = Path(__file__).parents[2]
FRAMEWORKS = {"torch": "PyTorch", "keras": "Keras"}
PUBLIC = (
    "pytest_bncheck.check",
    "pytest_bncheck.report.Report",
    "pytest_bncheck.report.CheckFailed",
    "pytest_bncheck.errors.InputError",
)
ADAPTERS = (
    "pytest_bncheck.testing",
    "pytest_bncheck.adapters.base",
    "pytest_bncheck.adapters.capabilities",
    "pytest_bncheck.types",
)
"""What the reference shows with signatures and types, as mkdocstrings finds them."""


def all_pages() -> dict[str, str]:
    """Text of every page that is made, by its path."""
    return {
        "reference/options.md": options_page(),
        "reference/fixtures.md": fixtures_page(),
        "reference/hooks.md": hooks_page(),
        "reference/python.md": python_page(),
        "reference/adapters.md": adapters_page(),
        "reference/json.md": json_page(),
        **rule_pages(),
    }


def rule_pages() -> dict[str, str]:
    """The table of rules, and one page for each."""
    pages = {f"rules/{code.lower()}.md": rule_page(rule) for code, rule in RULES.items()}
    return {"rules/index.md": rules_page(), **pages}


# options ----------------------------------------------------------------------------------------


@dataclasses.dataclass
class Declared:
    """What the plugin declares to pytest: flags of the command line, and ini options."""

    flags: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    ini: dict[str, str] = dataclasses.field(default_factory=dict)

    def getgroup(self, *_: str) -> Declared:
        return self

    def addoption(self, flag: str, **options: Any) -> None:
        self.flags[flag] = options

    def addini(self, name: str, help: str, **_: Any) -> None:
        self.ini[name] = help


def options_page() -> str:
    declared = Declared()
    options.add(declared)  # type: ignore[arg-type]
    parts = [
        "# Options",
        "Each option can be given in several places. The call wins over the marker, then come "
        "fixtures, the command line, the ini file and the default. `ignore` and `intended` add up "
        "over all places. Every message that quotes a limit says where it came from.",
    ]
    for name, option in settings.OPTIONS.items():
        parts += _option(name, option, declared)
    parts += ["## Command line and ini file only"]
    rest = [flag for flag in declared.flags if _key(flag) not in settings.OPTIONS]
    for flag in rest:
        entry = declared.flags[flag]
        ini = flag.removeprefix("--").replace("-", "_")
        rows = [("command line", f"`{flag}{_value(FLAGS.get(flag))}`")]
        if "action" in entry and flag not in FLAGS:
            rows[0] = ("command line", f"`{flag}`, `--no-{flag.removeprefix('--')}`")
        rows += [("ini", f"`{ini} = {FLAGS.get(flag, 'true')}`" if ini in declared.ini else "")]
        parts += [f"### {flag}", _prose(entry["help"]), _table(rows)]
    parts += ["## Designs that can be declared", _designs()]
    return "\n\n".join(parts) + "\n"


def _key(flag: str) -> str:
    return flag.removeprefix("--bncheck-").replace("-", "_")


def _option(name: str, option: settings.Option, declared: Declared) -> Iterator[str]:
    example = EXAMPLES[name]
    flag, ini = f"--bncheck-{name.replace('_', '-')}", f"bncheck_{name}"
    line = f"`{flag}{_value(example.typed)}`"
    if not option.metavar:
        line = f"`{flag}`, `--no-{flag.removeprefix('--')}`"
    if option.repeatable:
        line += ", repeatable"
    yield f"## {name}"
    yield _prose(option.help)
    if example.code:
        yield f"```python\n{example.code}\n```"
    rows = [
        ("call", f"`check(model, batch, {name}={example.value})`"),
        ("marker", f"`@pytest.mark.bn_consistency({name}={example.value})`"),
        ("fixture", f"`{ini}`" if name in settings.RECIPE else ""),
        ("command line", line if flag in declared.flags else ""),
        ("ini", f"`{ini} = {example.typed.strip(QUOTE)}`" if ini in declared.ini else ""),
        ("allowed", option.allowed.replace("|", r"\|")),
        ("default", _default(name)),
    ]
    yield _table(rows)
    if example.more:
        yield f"More: {example.more}."


def _value(metavar: str | None) -> str:
    return f" {metavar}" if metavar else ""


def _default(name: str) -> str:
    owner = types.Recipe if name in settings.RECIPE else types.Settings
    (found,) = (each for each in dataclasses.fields(owner) if each.name == name)
    if name in settings.RECIPE:
        return "inferred"
    value = found.default
    if value is dataclasses.MISSING or value in ((), None):
        return "none"
    return f"`{value!r}`".replace("'", '"')


QUOTE = "'\""
"""What a shell needs around a value, and an ini file does not."""


def _prose(text: str) -> str:
    return re.sub(r"--[a-z-]+", lambda flag: f"`{flag[0]}`", text)


def _table(rows: list[tuple[str, str]]) -> str:
    lines = [f"| {place} | {text.replace('N|auto', 'N or auto')} |" for place, text in rows if text]
    return "\n".join(["| where | how |", "| --- | --- |", *lines])


def _designs() -> str:
    rows = [
        f"| `{design}` | {', '.join(_link(code) for code in sorted(codes))} |"
        for design, codes in INTENDED.items()
    ]
    return "\n".join(
        ["| `intended` | silences, as far as it is about it |", "| --- | --- |", *rows]
    )


def _link(code: str, folder: str = "../rules/") -> str:
    return f"[{code} {RULES[code].name}]({folder}{code.lower()}.md)"


# fixtures, hooks, functions -----------------------------------------------------------------------


def fixtures_page() -> str:
    parts = [
        "# Fixtures and the marker",
        "## @pytest.mark.bn_consistency",
        "Makes a test check `bncheck_model` before its body, which may be empty. Takes "
        "[options](options.md) as keywords. Marks merge: for each keyword the mark nearest to the "
        "test wins. Requesting `bncheck` or `bncheck_report` marks a test by itself, so "
        "`-m bn_consistency` selects it too.",
    ]
    for name, text in inspect.getmembers(fixtures, _is_fixture):
        if not name.startswith("_"):
            parts += [f"## {name}", markdown(text, 3)]
    return "\n\n".join(parts) + "\n"


def _is_fixture(thing: Any) -> bool:
    before_pytest_8_4 = hasattr(thing, "_pytestfixturefunction")
    return before_pytest_8_4 or type(thing).__name__ == "FixtureFunctionDefinition"


def hooks_page() -> str:
    parts = ["# Hooks"]
    for name, hook in inspect.getmembers(hookspecs, inspect.isfunction):
        if name.startswith("pytest_bncheck"):
            parts += [
                f"## {name}({', '.join(inspect.signature(hook).parameters)})",
                markdown(hook, 3),
            ]
    return "\n\n".join(parts) + "\n"


def python_page() -> str:
    """What tests and scripts call."""
    intro = "The attributes of a report are the keys of the [JSON report](json.md)."
    return "\n\n".join(["# In Python", intro, *map("::: {}".format, PUBLIC)]) + "\n"


def adapters_page() -> str:
    """What an adapter implements, and the records that it speaks in."""
    intro = "How an adapter is written: [another framework](../how-to/another-framework.md)."
    return "\n\n".join(["# Adapters", intro, *map("::: {}".format, ADAPTERS)]) + "\n"


# the JSON report ----------------------------------------------------------------------------------


def json_page() -> str:
    parts = [
        "# JSON report",
        "`--bncheck-json PATH` writes one object with `schema`, `plugin`, `environment`, "
        "`summary` and `checks`, sorted by test. Each check is a `Report`, as below. Absent "
        "numbers are null, those that are not finite the strings `nan`, `inf` and `-inf`, so the "
        "file is strict JSON. In watch mode `watch` holds what was seen: the schema below has "
        "its keys.",
    ]
    for name, kind in inspect.getmembers(report, dataclasses.is_dataclass):
        rows = [
            f"| `{each.name}` | {str(each.type).replace('|', 'or')} |"
            for each in dataclasses.fields(kind)
        ]
        parts += [f"## {name}", markdown(kind, 3)]
        parts += ["\n".join(["| key | type |", "| --- | --- |", *rows])]
    schema = ROOT / "pytest_bncheck" / "reports" / "schema.json"
    if schema.exists():
        text = json.dumps(json.loads(schema.read_text(encoding="utf-8")), indent=2)
        parts += ["## Schema", f"```json\n{text}\n```"]
    return "\n\n".join(parts) + "\n"


# rules --------------------------------------------------------------------------------------------


def rules_page() -> str:
    rows = [
        f"| {_link(code, '')} | {rule.severities} | {_title(rule)} |"
        for code, rule in RULES.items()
    ]
    order = " · ".join(rule.code for rule in ORDER)
    return "\n".join(
        [
            "# Rules\n",
            "Codes and names are accepted wherever a rule is named, prefixes such as `BN3` too. "
            "`pytest --bncheck-explain BN101` prints a rule's page.\n",
            "| rule | severity | finds |",
            "| --- | --- | --- |",
            *rows,
            "",
            "What is caught in which framework: [rules and frameworks](../rules.md).\n",
            "One root cause gives one finding: the first rule, in this order, that explains a "
            f"layer keeps later ones from reporting it. {order}",
        ]
    )


def _title(rule: Rule) -> str:
    return (inspect.getdoc(type(rule)) or "").partition("\n")[0]


def rule_page(rule: Rule) -> str:
    designs = [f"`{design}`" for design, codes in INTENDED.items() if rule.code in codes]
    facts = f"`{rule.code}` · `{rule.name}` · {rule.severities}"
    if designs:
        facts += f" · silenced by [intended](../reference/options.md#intended) {', '.join(designs)}"
    parts = [f"# {rule.code} {rule.name}", facts, markdown(type(rule)), "## As a test has it"]
    for folder, framework in FRAMEWORKS.items():
        path = ROOT / "fixtures" / "rules" / folder / f"{rule.code.lower()}.py"
        if path.exists():
            code = path.read_text(encoding="utf-8").strip()
            parts += [f'=== "{framework}"', _indent(f"```python\n{code}\n```")]
    parts += [
        "`bad()` must fire the rule and `good()` must stay silent; the test suite runs both. What "
        "they share lies in `fixtures/rules`."
    ]
    return "\n\n".join(parts) + "\n"


def _indent(text: str) -> str:
    return "\n".join("    " + line if line else "" for line in text.splitlines())
