"""All code and all output in README and documentation is run.

Every block names its file in a comment on its first line. Where that is a file of this
repository, the block is a part of it, word for word. Any other file is written into the page's
own folder, where the console blocks that follow it run, and what they print is compared; ``...``
stands for anything. Of a console block without output, the command must succeed.
"""

from __future__ import annotations

import doctest
import importlib.util
import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from forked import pytest_in
from pytest_bncheck import __version__
from pytest_bncheck.rules import RULES

sybil = pytest.importorskip("sybil", reason="needs Sybil")
yaml = pytest.importorskip("yaml", reason="needs PyYAML")
parsers = pytest.importorskip("sybil.parsers.markdown")

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
STORY = README.read_text(encoding="utf-8").partition("```text\n")[2].partition("```")[0]
INSTALLED = ("pip ", "python -m pip ", "tox", "pre-commit ")
"""What starts so installs something; the environments of tox do that."""

KEPT_OUT = ("PYTEST_ADDOPTS", "GITHUB_")
"""Variables under which pytest or the plugin prints something else."""

SAME = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
SECONDS = re.compile(r"=+ (.*) in \d+\.\d+s(?: \(.*\))? =+|(\d \w+.*) in \d+\.\d+s")
"""The last line of a run, whose length changes with its seconds."""


class Project:
    """The folder that a page's blocks make, and what was last printed in it."""

    def __init__(self, page: Path, folder: Path) -> None:
        self.page = page
        self.folder = folder
        self.waiting: set[str] = set()
        self.printed = ""

    def file(self, example: sybil.Example) -> None:
        """A block that names its file."""
        found = re.match(r"(?:#|//) (\S+)\n", example.parsed)
        assert found, "the block names no file"
        name, text = found[1], example.parsed[found.end() :]
        if (ROOT / name).is_file():
            assert text in (ROOT / name).read_text(encoding="utf-8"), f"{name} has other text"
            return
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        if target.suffix in (".yml", ".yaml"):
            assert yaml.safe_load(text)
        else:
            self.waiting.add(name)

    def console(self, example: sybil.Example) -> None:
        """Commands after ``$``, each with what it prints."""
        for part in re.split(r"^\$ ", example.parsed, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            command = command.partition("  #")[0].strip()
            if not command.startswith(INSTALLED):
                self._run(command, shown)

    def _run(self, command: str, shown: str) -> None:
        program, *args = shlex.split(command)
        if program == "python":
            if (ROOT / args[0]).is_file():
                args[0] = str(ROOT / args[0])
            command = [sys.executable, *args]
            done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
            code, printed = done.returncode, done.stdout
        else:
            assert program == "pytest", f"{program} is not run here"
            code, printed = pytest_in(self.folder, "-p", "no:cacheprovider", *args)
        assert "INTERNALERROR" not in printed
        self.printed = lasting(printed)
        if shown.strip():
            compare(lasting(shown), self.printed, whole=program == "python")
        elif not self._is_shown_below(command):
            assert code == 0, printed
        self.waiting.clear()

    def _is_shown_below(self, command: str) -> bool:
        text = self.page.read_text(encoding="utf-8")
        return f"$ {command}\n```\n\n```text\n" in text

    def text(self, example: sybil.Example) -> None:
        """What the last command printed, from somewhere in the middle on."""
        if example.parsed == STORY:  # the run of that repo holds it
            return
        compare(lasting(example.parsed), self.printed, whole=False)


def lasting(text: str) -> str:
    """A text without the seconds, and without spaces at the ends of lines."""
    text = "\n".join(line.rstrip() for line in text.splitlines())
    return SECONDS.sub(lambda found: found[1] or found[2], text).strip()


def compare(shown: str, printed: str, whole: bool) -> None:
    """Whether this was printed, as the whole or as a part."""
    wanted = re.sub(r"\n\.\.\.\n", "...\n", shown if whole else f"...{shown}...")
    checker = doctest.OutputChecker()
    same = checker.check_output(wanted + "\n", printed + "\n", SAME) or rounded(wanted, printed)
    assert same, f"shown:\n{shown}\n\nprinted:\n{printed}"


FIGURE = re.compile(r"\b\d+\.\d\d\b|-?\b\d+(?= %)|(?<![\w.-])\d{3,}(?![\w-])")
"""What another processor may round otherwise: two decimals, whole percents, large numbers."""


def rounded(wanted: str, printed: str) -> bool:
    """Whether the same was printed but for the last digit of figures, or a hundredth."""
    words = [re.escape(part).replace(re.escape("..."), "[^\0]*?") for part in FIGURE.split(wanted)]
    pattern = r"\s*" + rf"({FIGURE.pattern})".join(
        re.sub(r"(\\\s|\s)+", lambda _: r"\s+", part) for part in words
    )
    found = re.fullmatch(pattern + r"\s*", printed)
    if found is None:
        return False
    pairs = zip(FIGURE.findall(wanted), found.groups(), strict=True)
    return all(
        abs(float(a) - float(b)) <= (0.011 if "." in a else max(1.0, 0.01 * float(a)))
        for a, b in pairs
    )


@pytest.mark.parametrize(
    ("wanted", "printed", "same"),
    [
        ("gap 0.12,  68 %", "gap 0.11,\n 69 %", True),
        ("gap 0.12...", "gap 0.14 and more", False),
        ("...gap 0.12 ...", "the\ngap 0.13 is", True),
        ("BN101 0.12", "BN102 0.12", False),
        ("after 5 updates", "after 6 updates", False),
        ("after 487 updates", "after 490 updates", True),
        ("after 487 updates", "after 493 updates", False),
    ],
)
def test_a_figure_may_be_rounded_otherwise(wanted, printed, same):
    assert rounded(wanted, printed) is same


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page(page, tmp_path, monkeypatch):
    text = page.read_text(encoding="utf-8")
    needed = "tensorflow" if "keras" in page.name else "torch"
    if "```console" in text and importlib.util.find_spec(needed) is None:
        pytest.skip(f"needs {needed}")
    for name in [*(name for name in os.environ if name.startswith(KEPT_OUT)), "CI"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # files are written anew within a second
    project = Project(page, tmp_path)
    languages = {
        **dict.fromkeys(("python", "ini", "toml", "yaml"), project.file),
        "console": project.console,
        "text": project.text,
    }
    fences = [parsers.CodeBlockParser(name, run) for name, run in languages.items()]
    document = sybil.Sybil(parsers=fences).parse(page)
    unknown = set(re.findall(r"^ *```(\w+)", text, re.MULTILINE)) - languages.keys()
    assert not unknown, f"blocks that nothing runs: {unknown}"
    for example in document:
        example.evaluate()
    assert not project.waiting, f"files that nothing runs: {project.waiting}"


def test_the_readme_lists_all_rules():
    rows = re.findall(r"^\| (BN\d+) \| (\S+) \| (.+?) \|", README.read_text(encoding="utf-8"), re.M)
    assert rows == [(code, rule.name, rule.severities) for code, rule in RULES.items()]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_links_outside_of_the_site(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        assert (ROOT / path).exists(), target
        assert path or anchor in anchors, target


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    wheels = [re.findall(r"pytest_bncheck-(.+?)-py3", page.read_text("utf-8")) for page in PAGES]
    assert {*itertools.chain(*wheels)} == {__version__}


@pytest.mark.parametrize(
    "path",
    [*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml"],
    ids=lambda path: path.name,
)
def test_configuration_can_be_read(path):
    assert yaml.safe_load(path.read_text(encoding="utf-8"))


def test_an_issue_on_a_verdict_brings_the_json_report():
    form = ROOT / ".github" / "ISSUE_TEMPLATE" / "wrong-verdict.yml"
    fields = yaml.safe_load(form.read_text(encoding="utf-8"))["body"]
    (report,) = (field for field in fields if field["id"] == "json")
    assert "--bncheck-json" in report["attributes"]["description"]
    assert report["validations"]["required"]


def test_pre_commit_has_the_versions_of_the_other_environments():
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    pinned = set(re.findall(r"\[(\w+==\S+)\]", text))
    assert pinned
    assert pinned <= set((ROOT / "constraints.txt").read_text(encoding="utf-8").split())
