"""Runs of pytest in processes of their own, forked from one that has imported PyTorch.

Importing it takes seconds; inside this process its compiled parts cannot be imported twice.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "torch._dynamo"])


def pytest_in(folder: Path, *args: str) -> tuple[int | None, str]:
    """Exit code and text of pytest in a folder."""
    output = folder / ".output"
    process = CONTEXT.Process(target=_run, args=(str(folder), args, str(output)))
    process.start()
    process.join(timeout=300)
    return process.exitcode, output.read_text(encoding="utf-8")


def _run(folder: str, args: tuple[str, ...], output: str) -> None:
    import pytest

    os.chdir(folder)
    with open(output, "w", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.argv = ["pytest", *args]
    code = pytest.main(list(args))
    sys.stdout.flush()
    os._exit(code)
