"""Private names of pytest: the plugin reaches for no others, and says which one is missing."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_bncheck import InputError
from pytest_bncheck.plugin import internals

FILE = Path(internals.__file__)
OTHERS = sorted({*FILE.parent.glob("*.py")} - {FILE})


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.name)
def test_the_plugin_reaches_into_nothing_else(path):
    code = re.sub(r'"""[\s\S]*?"""', "", path.read_text())
    assert re.findall(r"(?<!\bself)\._[a-z]\w*", code) == []


def test_a_missing_name_is_an_error_with_the_versions():
    node = SimpleNamespace(session=SimpleNamespace(), nodeid="")
    message = rf"pytest {pytest.__version__} is not supported by pytest-bncheck \S+; it lacks _fix"
    with pytest.raises(InputError, match=message):
        internals.definition(node, "bncheck_model")
