"""Checks on their way: between processes as one string, and to the JSON file."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Iterable, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import IO, Any

import pytest_bncheck
from pytest_bncheck.reports.sentences import WORST_FIRST

SCHEMA = 1

UNWRITABLE = "backslashreplace"
"""What becomes of half a character, which UTF-8 cannot hold: names can come from anywhere."""

_DISTRIBUTIONS = ("pytest", "numpy", "torch", "keras", "tensorflow", "jax")
_COUNTS = {"pass": "passed", "warn": "warned", "fail": "failed", "error": "errored"}


def dumps(checks: Sequence[dict[str, Any]]) -> str:
    """Checks as one string of exact type str, the only thing that leaves a worker process.

    A subclass of a builtin, a numpy scalar for one, breaks the connection between pytest-xdist's
    processes: the failing test vanishes and the run is green.

    Parameters
    ----------
    checks
        From `Report.to_dict`, which holds exact builtins only.
    """
    return json.dumps(checks, allow_nan=False)


def loads(text: str) -> list[dict[str, Any]]:
    """The checks in a string of `dumps`."""
    checks: list[dict[str, Any]] = json.loads(text)
    return checks


def properties(checks: Sequence[dict[str, Any]]) -> list[tuple[str, str | float]]:
    """What JUnit shows of a test's checks: the worst verdict, all codes, the largest gap."""
    if not checks:
        return []
    verdict = min((check["verdict"] for check in checks), key=WORST_FIRST.index)
    codes = dict.fromkeys(found["code"] for check in checks for found in check["findings"])
    gaps = [check["predictions"]["gap"] for check in checks]
    result: list[tuple[str, str | float]] = [("bncheck_verdict", verdict)]
    if codes:
        result.append(("bncheck_codes", " ".join(codes)))
    if any(gap is not None for gap in gaps):
        result.append(("bncheck_gap", max((g for g in gaps if g is not None), key=_size)))
    return result


def _size(gap: float | str) -> float:
    """For sorting: "nan" is no number, and as bad as infinity."""
    return float("inf") if isinstance(gap, str) else gap


def in_order(texts: Iterable[str]) -> list[dict[str, Any]]:
    """All checks in strings of `dumps`, one for each run of a test, sorted by test and index.

    Of several runs of the same test, the worst comes first.
    """
    runs = sorted(filter(None, map(loads, texts)), key=_rank)
    checks = [(check["nodeid"], k, check) for k, run in enumerate(runs) for check in run]
    checks.sort(key=lambda place: (place[0], place[1], place[2]["index"]))
    return [check for _, _, check in checks]


def _rank(run: Sequence[dict[str, Any]]) -> int:
    return min(WORST_FIRST.index(check["verdict"]) for check in run)


def document(
    checks: Sequence[dict[str, Any]], watch: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The whole JSON report, schema 1; with what watching found, in watch mode."""
    summary = {"checks": len(checks)} | dict.fromkeys(_COUNTS.values(), 0)
    for check in checks:
        summary[_COUNTS[check["verdict"]]] += 1
    return {
        "schema": SCHEMA,
        "plugin": pytest_bncheck.__version__,
        "environment": environment(),
        "summary": summary,
        "checks": list(checks),
        **({} if watch is None else {"watch": watch}),
    }


def schema() -> dict[str, Any]:
    """The JSON Schema of the report, draft 2020-12."""
    text = resources.files(__package__).joinpath("schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def environment() -> dict[str, str]:
    """Versions of what is installed; asked of the metadata, so that nothing is imported."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file; see `write_text`."""
    write_text(path, json.dumps(content, allow_nan=False, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file in one piece: whoever reads it sees the old report or the new one.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    target = path.resolve()
    if target.exists() and not target.is_file():  # A pipe or a device must not be replaced.
        with open_at_once(target, "w") as file:
            file.write(text)
        return
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".bncheck.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors=UNWRITABLE) as file:
            file.write(text)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def open_at_once(path: str | Path, mode: str) -> IO[str]:
    """Open a file for text; a pipe that nobody reads is an error and not waited for."""

    def opener(name: str, flags: int) -> int:
        handle = os.open(name, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
        os.set_blocking(handle, True)
        return handle

    waits = hasattr(os, "O_NONBLOCK")
    return open(path, mode, encoding="utf-8", errors=UNWRITABLE, opener=opener if waits else None)


def reason(error: Exception) -> str:
    """An error in one line: what the system says, or the first line of any other."""
    if isinstance(error, OSError):
        return str(error)
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first}".removesuffix(": ")


def _umask() -> int:
    """The umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def why_not_writable(path: Path) -> str | None:
    """Why a file cannot be written here, or None if it can."""
    try:
        return _why_not_a_file(path)
    except (OSError, RuntimeError, ValueError) as error:
        return f"the system refuses this path: {reason(error)}; choose another"


def _why_not_a_file(path: Path) -> str | None:
    try:
        os.stat(path)  # unlike `Path.is_dir`, the same in every version of Python
    except FileNotFoundError:
        pass
    except NotADirectoryError:
        return f"{path.parent} is a file and no directory"
    if path.is_dir():
        return "it is a directory; name a file in it"
    if not path.parent.is_dir():
        if path.parent.exists():
            return f"{path.parent} is a file and no directory"
        return f"the directory {path.parent} does not exist; make it first"
    target = path.resolve()
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            return None
    except OSError:  # what it says depends on the system: "No such file or directory" in /proc
        return f"no file can be made in the directory {path.parent}; choose another"
