"""Nothing is unpickled or evaluated, hostile names are text, and reports appear in one piece."""

from __future__ import annotations

import ast
import html.parser
import importlib
import importlib.util
import json
import threading
from pathlib import Path
from xml.etree import ElementTree

import pytest

import pytest_bncheck
from pytest_bncheck.reports import wire

HTML = all(importlib.util.find_spec(name) for name in ("jinja2", "matplotlib"))
if HTML:  # once: pytester forgets modules that a run inside it imports first
    importlib.import_module("pytest_bncheck.reports.html")

PACKAGE = Path(pytest_bncheck.__file__).parent
MODULES = {
    "pickle",
    "cPickle",
    "marshal",
    "shelve",
    "dill",
    "joblib",
    "subprocess",
    "yaml",
    "ctypes",
}
FUNCTIONS = {"eval", "exec", "compile", "__import__"}
METHODS = {
    "os": {"system", "popen", "execv", "execvp", "spawnl", "spawnv", "posix_spawn", "fork"},
    "torch": {"load"},
    "yaml": {"load"},
    "pty": {"spawn"},
}


# the source -------------------------------------------------------------------------------------


def dangers(tree: ast.AST) -> list[str]:
    """What code imports or calls that could run what a file or a user's text says."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if (node.module or "").split(".")[0] in MODULES else []
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            home, _, method = name.rpartition(".")
            found += [name] if name in FUNCTIONS or method in METHODS.get(home, ()) else []
            found += [k.arg for k in node.keywords if k.arg in ("shell", "allow_pickle")]
    return found


def test_the_package_evaluates_nothing() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 50
    parsed = {file: ast.parse(file.read_text(encoding="utf-8")) for file in files}
    assert {str(file): found for file, tree in parsed.items() if (found := dangers(tree))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from subprocess import run",
        "eval(text)",
        "os.system(text)",
        "torch.load(file)",
        "np.load(file, allow_pickle=True)",
        "run(text, shell=True)",
    ],
)
def test_the_search_finds_what_it_is_for(line: str) -> None:
    assert dangers(ast.parse(line))
    assert not dangers(ast.parse("model.eval(); re.compile(text); json.load(file)"))


# hostile names ----------------------------------------------------------------------------------

MARKUP = "</script><script>bad()</script><img src=x onerror=bad()>&amp;\"'`]]>--><!--"
CONTROL = "\x1b]0;title\x07\x1b[2J\x00\r\n::error::bad\n## bad"
HOSTILE = f"{MARKUP}{CONTROL}\ud800\u202e"

PROJECT = f"""
import dataclasses
import pytest
from toy import ToyAdapter, ToyModel, toy_batch

HOSTILE = {HOSTILE!r}

class Adapter(ToyAdapter):
    framework = backend = HOSTILE

    def layers(self):
        return [dataclasses.replace(x, name=HOSTILE, type=HOSTILE) for x in super().layers()]

class Model(ToyModel): ...

@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_bncheck_adapters(model):
    return Adapter if isinstance(model, Model) else None
"""

TESTS = """
import pytest
from conftest import HOSTILE, Model
from toy import toy_batch

@pytest.mark.parametrize("name", [HOSTILE], ids=[MARKUP])
def test_layer(bncheck, name):
    bncheck(Model(0.01), toy_batch(), steps=5, ignore={"BN104": HOSTILE})

def test_label(bncheck):
    inputs, labels = toy_batch()
    def loss(outputs, targets):
        raise ValueError(HOSTILE)
    bncheck(Model(), (inputs, labels), loss=loss)
"""


class Elements(html.parser.HTMLParser):
    """The elements of a page, and the attributes that run code."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


@pytest.fixture
def hostile(project, monkeypatch):
    """The files and the terminal's text of a run in which every name is hostile."""
    conftest = project.path / "conftest.py"
    conftest.write_text(conftest.read_text() + PROJECT)
    project.pytester.makepyfile(TESTS.replace("MARKUP", repr(MARKUP)))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project.path / "summary.md"))
    extra = ["--bncheck-html=report.html"] if HTML else []
    result = project.run("--bncheck", "--bncheck-json=r.json", "--junitxml=r.xml", *extra)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    return project, result


def test_hostile_names_are_text_in_every_report(hostile) -> None:
    project, _ = hostile
    checks = project.report("r.json")["checks"]
    assert {check["verdict"] for check in checks} == {"fail", "error"}
    assert MARKUP in json.dumps([check["layers"] for check in checks], ensure_ascii=False).replace(
        '\\"', '"'
    )
    tree = ElementTree.parse(project.path / "r.xml")
    assert {e.tag for e in tree.iter()} <= {
        "testsuites", "testsuite", "testcase", "failure", "error", "properties", "property",
        "system-out", "system-err",
    }  # fmt: skip
    page = project.path / "report.html"
    if page.exists():
        elements = Elements(page.read_text(encoding="utf-8"))
        assert elements.names.count("script") == 1
        assert not elements.handlers


def test_hostile_names_do_not_steer_the_terminal(hostile) -> None:
    _, result = hostile
    section = result.stdout.str().partition("= bncheck =")[2].partition("\n===")[0]
    assert "FAIL " in section
    assert not {"\x1b", "\x07", "\x00", "\r", "\u202e"} & set(section)
    assert not [
        line for line in section.splitlines() if line.startswith(("::error::bad", "## bad"))
    ]


def test_hostile_names_make_no_commands_for_github(hostile) -> None:
    project, result = hostile
    commands = [line for line in result.outlines if line.startswith("::")]
    assert not [line for line in commands if line.startswith("::error::bad")]
    summary = project.path / "summary.md"
    text = summary.read_text(encoding="utf-8") if summary.exists() else ""
    assert not [line for line in text.splitlines() if line.startswith("## bad")]
    assert "<script>" not in text


# files ------------------------------------------------------------------------------------------


def test_a_reader_never_sees_half_a_report(tmp_path: Path) -> None:
    path, done, broken = tmp_path / "report.json", threading.Event(), []
    texts = ["a" * 500_000, "b" * 700_000]
    wire.write_text(path, texts[0])

    def read() -> None:
        while not done.is_set():
            if path.read_text(encoding="utf-8") not in texts:
                broken.append(1)

    reader = threading.Thread(target=read)
    reader.start()
    for k in range(60):
        wire.write_text(path, texts[k % 2])
    done.set()
    reader.join()
    assert not broken
    assert [each.name for each in tmp_path.iterdir()] == ["report.json"]


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    def no_space(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", no_space)
    with pytest.raises(OSError, match="No space"):
        wire.write_text(path, "new")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["report.json"]


def test_half_a_character_is_written_as_its_number(tmp_path: Path) -> None:
    wire.write_text(tmp_path / "report.html", "a\ud800b")
    assert (tmp_path / "report.html").read_bytes() == b"a\\ud800b"
