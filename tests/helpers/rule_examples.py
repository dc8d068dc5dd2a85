"""The example models of the rules, and the checks of them, each made once."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pytest_bncheck import check
from pytest_bncheck.report import Report

EXAMPLES = Path(__file__).parents[2] / "fixtures" / "rules"
REWRITE = bool(os.environ.get("BNCHECK_REWRITE"))
"""Whether to write what is made from the examples, instead of comparing it."""


def load(framework: str, code: str) -> ModuleType:
    """The example module of a rule; its own folder is importable while it loads."""
    folders = [str(EXAMPLES), str(EXAMPLES / framework)]
    sys.path[:0] = folders
    try:
        for shared in ("nets", code.lower()):
            sys.modules.pop(shared, None)
        return importlib.import_module(code.lower())
    finally:
        for folder in folders:
            sys.path.remove(folder)


@functools.cache
def examine(framework: str, code: str, which: str) -> Report | None:
    """The report on an example model, or None if the rule does not apply there, or not alone."""
    module = load(framework, code)
    if hasattr(module, "NOT_APPLICABLE") or hasattr(module, "ELSEWHERE"):
        return None
    if framework == "keras":
        import keras

        needed = getattr(module, "BACKEND", keras.backend.backend())
        if needed != keras.backend.backend():
            pytest.skip(f"the example is written for {needed}")
        keras.backend.clear_session()  # or the numbers in the layers' names go on
    case = getattr(module, which)()
    return check(case.model, case.batch, **case.options)
