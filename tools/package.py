"""Builds wheel and sdist, looks into both, and runs the README's quick start from the wheel.

The quick start runs in a new environment that holds nothing but the wheel and PyTorch.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"

DATA = {
    "pytest_bncheck/py.typed",
    "pytest_bncheck/reports/schema.json",
    "pytest_bncheck/reports/templates/report.html",
    "pytest_bncheck/reports/templates/report.css",
    "pytest_bncheck/reports/templates/report.js",
}
"""What is no Python and has to be in the wheel."""

SOURCES = ("tests", "fixtures", "docs", "benchmarks", "examples", "tools")
"""What the sdist has and the wheel has not."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        wheel, sdist = build(Path(folder, "dist"))
        run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
        look_into_wheel(wheel)
        look_into_sdist(sdist)
        quick_start(wheel, Path(folder))
    print("wheel, sdist and quick start are as they should be.")


def build(folder: Path) -> tuple[Path, Path]:
    """The wheel is built from the sdist, so the sdist is complete."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def look_into_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        (metadata,) = (name for name in names if name.endswith("/METADATA"))
        text = file.read(metadata).decode()
    tops = {name.partition("/")[0] for name in names}
    expect(len(tops) == 2, f"only the package and its metadata, found {sorted(tops)}")
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "pytest_bncheck").rglob("*.py")}
    missing = (modules | DATA) - names
    expect(not missing, f"the wheel lacks {sorted(missing)}")
    expect("Classifier: Framework :: Pytest\n" in text, "the classifier for pytest")
    expect("Classifier: Typing :: Typed\n" in text, "the classifier for types")


def look_into_sdist(sdist: Path) -> None:
    with tarfile.open(sdist) as file:
        names = [name.partition("/")[2] for name in file.getnames()]
    for folder in SOURCES:
        expect(any(name.startswith(f"{folder}/") for name in names), f"{folder} in the sdist")
    unwanted = [name for name in names if "__pycache__" in name or "build/" in name]
    expect(not unwanted, f"nothing built in the sdist, found {unwanted[:3]}")


def quick_start(wheel: Path, folder: Path) -> None:
    """Word for word: the files of the section, and the commands after them."""
    environment, project = folder / "environment", folder / "project"
    venv.create(environment, with_pip=True)
    project.mkdir()
    python = environment / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    run(
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-compile",
        "-c",
        constraints,
        f"{wheel}[torch]",
    )
    section = README.read_text(encoding="utf-8").partition("\n## Quick start\n")[2]
    section = section.partition("\n## ")[0]
    ran = 0
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", section, re.M | re.S):
        if language == "python":
            named = re.fullmatch(r"# (\S+)\n(.*)", block, re.S)
            if named is None:
                sys.exit(f"a block of Python without the name of its file:\n{block}")
            (project / named[1]).write_text(named[2], encoding="utf-8")
        elif block.startswith("$ pytest "):
            command = block.partition("\n")[0].split()[1:]
            run(environment / "bin" / command[0], *command[1:], cwd=project)
            ran += 1
    expect(ran > 0, "a command in the quick start")


def run(*command: object, cwd: Path = ROOT) -> None:
    subprocess.run([*map(str, command)], cwd=cwd, check=True)


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise SystemExit(f"not as expected: {what}")


if __name__ == "__main__":
    main()
