"""Nothing is unpickled or evaluated, hostile names are text, and reports appear in one piece."""

from __future__ import annotations

import ast
import html.parser
import importlib
import importlib.util
import json
import re
import threading
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import pytest_bncheck
from pytest_bncheck.reports import wire

HTML = importlib.util.find_spec("jinja2") is not None
if HTML:  # once: pytester forgets modules that a run inside it imports first
    importlib.import_module("pytest_bncheck.reports.html")
PYTEST_HTML = importlib.util.find_spec("pytest_html") is not None

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
CONTROL = "\x1b]0;title\x07\x1b[2J\x00\x9b2J\r\n::error::bad\n## bad"
STEERING = set("\x1b\x07\x00\x9b\r\u202e")
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
    bncheck(Model(0.01), toy_batch(), steps=5)

def test_reason(bncheck):
    bncheck(Model(0.01), toy_batch(), steps=5, ignore={"BN101": HOSTILE})

def test_label(bncheck):
    inputs, labels = toy_batch()
    def loss(outputs, targets):
        raise ValueError(HOSTILE)
    bncheck(Model(), (inputs, labels), loss=loss)
"""


class Page(html.parser.HTMLParser):
    """The elements of HTML, the attributes that run code, and the text that is shown."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def handlers(self) -> list[str]:
        return [name for name, _ in self.attributes if name.startswith("on")]


@pytest.fixture
def hostile(project, monkeypatch):
    """The files and the terminal's text of a run in which every name is hostile."""
    conftest = project.path / "conftest.py"
    conftest.write_text(conftest.read_text() + PROJECT)
    project.pytester.makepyfile(TESTS.replace("MARKUP", repr(MARKUP)))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project.path / "summary.md"))
    extra = ["--bncheck-html=report.html"] if HTML else []
    extra += ["--html=tests.html", "--self-contained-html"] if PYTEST_HTML else []
    result = project.run("--bncheck", "--bncheck-json=r.json", "--junitxml=r.xml", *extra)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    return project, result


def text_of(project: Any, name: str) -> str:
    return (project.path / name).read_text(encoding="utf-8")


def test_json(hostile) -> None:
    project, _ = hostile
    checks = project.report("r.json")["checks"]
    error, failed, passed = sorted(checks, key=lambda check: check["verdict"])
    assert [c["verdict"] for c in (error, failed, passed)] == ["error", "fail", "pass"]
    assert MARKUP in failed["layers"][0]["name"]
    assert MARKUP in failed["framework"]
    assert MARKUP in passed["suppressed"][0]["reason"]
    assert MARKUP in error["error"]
    assert "bad()" in failed["nodeid"]


def test_junit(hostile) -> None:
    project, _ = hostile
    tree = ElementTree.parse(project.path / "r.xml")
    assert {e.tag for e in tree.iter()} <= {
        "testsuites", "testsuite", "testcase", "failure", "error", "properties", "property",
        "system-out", "system-err",
    }  # fmt: skip
    assert any("bad()" in case.get("name", "") for case in tree.iter("testcase"))
    assert MARKUP in "".join(tree.getroot().itertext())


@pytest.mark.skipif(not HTML, reason="needs Jinja and Matplotlib")
def test_html(hostile) -> None:
    page = Page(text_of(hostile[0], "report.html"))
    assert page.names.count("script") == 1
    assert "img" not in page.names or all(
        (value or "").startswith("data:image/") for key, value in page.attributes if key == "src"
    )
    assert not page.handlers
    assert page.text.count(MARKUP) >= 3
    assert not STEERING & set(page.text)


@pytest.mark.skipif(not PYTEST_HTML, reason="needs pytest-html")
def test_pytest_html(hostile) -> None:
    """The log of a test, which its page puts into itself as HTML."""
    blob = dict(Page(text_of(hostile[0], "tests.html")).attributes)["data-jsonblob"]
    logs = [test[0]["log"] for test in json.loads(blob or "")["tests"].values()]
    assert len(logs) == 3
    for log in map(Page, logs):
        assert set(log.names) <= {"span"}
        assert not log.handlers
        assert MARKUP in log.text


def test_terminal(hostile) -> None:
    _, result = hostile
    section = result.stdout.str().partition("= bncheck =")[2].partition("\n===")[0]
    assert "FAIL " in section
    assert "<script>" in section
    assert not STEERING & set(section)
    assert not [
        line for line in section.splitlines() if line.startswith(("::error::bad", "## bad"))
    ]


def test_message_of_a_failure(hostile) -> None:
    """What pytest shows of a failing check: the report, with the layer's name."""
    reports = hostile[1].reprec.getreports("pytest_runtest_logreport")
    (text,) = (r.longreprtext for r in reports if r.failed and "bad" in r.nodeid)
    message = "\n".join(line for line in text.split("\n") if line.startswith("E "))
    assert "bad()" in message
    assert not STEERING & set(message)


def test_annotations_of_github(hostile) -> None:
    _, result = hostile
    commands = [line for line in result.outlines if line.startswith("::")]
    assert len(commands) == 2
    for command in commands:
        properties, _, message = command.removeprefix("::error ").partition("::")
        assert re.fullmatch(r"file=[^,:]+,line=\d+,title=[^,:]+", properties), command
        assert "bad" in message


def test_summary_of_github(hostile) -> None:
    text = text_of(hostile[0], "summary.md")
    assert not [line for line in text.splitlines() if line.startswith(("## bad", "::"))]
    page = Page(text)
    assert set(page.names) <= {"code", "br", "details", "summary", "pre"}
    assert not page.handlers
    assert page.text.count("bad()") >= 3
    assert not STEERING & set(page.text)


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
