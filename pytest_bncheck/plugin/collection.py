"""How the inputs join a test that makes checks.

A marked test names neither the model nor the batch; the plugin makes it use their fixtures, in
one of two ways:

* While pytest makes a test of a function, the function carries one more mark, ``usefixtures``.
  pytest then knows the inputs at collection, so that a parametrized ``bncheck_model`` gives a test
  for each of its parameters.
* A test that is marked later, by another plugin or by a hook of a ``conftest.py``, has the fixtures
  added to its names before its setup. By then it is too late to parametrize them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pytest_bncheck.errors import InputError
from pytest_bncheck.plugin import definitions, internals, marks
from pytest_bncheck.plugin.marks import MARKER


def wants_inputs(collector: pytest.Module | pytest.Class, name: str, function: Any) -> bool:
    """Whether the inputs join the test that `collector` makes of a function.

    Raises
    ------
    Collector.CollectError
        If a function that is not a test carries the mark.
    """
    marked = any(getattr(mark, "name", None) == MARKER for mark in internals.marks(function))
    if internals.is_test(collector, function, name):
        requested = inspect.signature(function).parameters
        automatic = (marked or marks.is_marked(collector)) and "bncheck" not in requested
        return automatic or "bncheck_report" in requested
    if marked:
        raise collector.CollectError(
            f"{MARKER} marks {name}, which is not a test. Does a mark say {MARKER}({name})? "
            f"It takes keywords only, for example {MARKER}(loss={name})."
        )
    return False


@contextmanager
def using_inputs(collector: pytest.Module | pytest.Class, function: Any) -> Iterator[None]:
    """Put a usefixtures mark on a test function while pytest makes its items.

    Only for that while: a function can be collected several times, for example from a mixin, and
    the other classes need not be marked.
    """
    try:
        names = definitions.input_names(collector)
    except InputError:  # Raised again when the test is set up: one test fails, not the whole file.
        names = ["bncheck_report"]
    with internals.added_mark(function, pytest.mark.usefixtures(*names).mark):
        yield
