"""Loads the example models of the rules."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

EXAMPLES = Path(__file__).parents[2] / "fixtures" / "rules"


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
