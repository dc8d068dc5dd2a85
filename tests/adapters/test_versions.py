"""Names looked up in other packages, and the refusal of a version that lacks some."""

from __future__ import annotations

import pytest

import pytest_bncheck
from pytest_bncheck import InputError
from pytest_bncheck.adapters.versions import find, require


def test_what_is_there_is_found():
    assert find("os.path.join") is __import__("os").path.join
    assert find("os.path.nothing") is None
    assert find("no_such_package.module") is None
    require("Python", "3.99", [])


def test_missing_names_are_refused_with_both_versions():
    with pytest.raises(InputError) as error:
        require("Python", "3.99", ["os.nothing", "os.path.none"])
    assert str(error.value) == (
        f"Python 3.99 is not supported by pytest-bncheck {pytest_bncheck.__version__}; "
        "it lacks os.nothing, os.path.none."
    )
