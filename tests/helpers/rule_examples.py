"""The example models of the rules, and the checks of them, each made once."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pytest_bncheck import check
from pytest_bncheck.report import Report
from pytest_bncheck.reports.watch import view
from pytest_bncheck.watch.ledger import Ledger

EXAMPLES = Path(__file__).parents[2] / "fixtures" / "rules"
NOT_ALONE = ("NOT_APPLICABLE", "ELSEWHERE", "WATCHED", "TWO_DEVICES")
"""What a module says of an example that no check alone, on one device, can show."""
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
def watch(framework: str, code: str, which: str) -> dict[str, Any] | None:
    """What watching an example finds, or None if it is no example of watch mode."""
    module = load(framework, code)
    if not hasattr(module, "WATCHED"):
        return None
    if framework == "keras":
        skip_on_other_backends(module)
    ledger = Ledger()
    patches = importlib.import_module(f"pytest_bncheck.watch.{framework}.patches").Patches(
        str(EXAMPLES)
    )
    patches.observer.active = True
    try:
        getattr(module, which)()
        ledger.add("test_trainer.py::test_fit", [patches.observer.end_test()])
    finally:
        patches.remove()
    assert not ledger.problem
    return view(ledger.to_dict(), (), {})


@functools.cache
def examine(framework: str, code: str, which: str) -> Report | None:
    """The report on an example model, or None if the rule does not apply there, or not alone."""
    module = load(framework, code)
    if any(hasattr(module, name) for name in NOT_ALONE):
        return None
    if framework == "keras":
        skip_on_other_backends(module)
    case = getattr(module, which)()
    return check(case.model, case.batch, **case.options)


def skip_on_other_backends(module: ModuleType) -> None:
    """Skip what is written for one backend of Keras only; otherwise begin anew."""
    import keras

    needed = getattr(module, "BACKEND", keras.backend.backend())
    if needed != keras.backend.backend():
        pytest.skip(f"the example is written for {needed}")
    keras.backend.clear_session()  # or the numbers in the layers' names go on
