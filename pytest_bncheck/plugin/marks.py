"""The mark that asks for a check: which tests carry it, and the options that it gives."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_bncheck import settings
from pytest_bncheck.errors import InputError

MARKER = "bn_consistency"

SIGNATURE = (
    f"{MARKER}({', '.join(settings.OPTIONS)}): "
    "train the model of the fixture bncheck_model briefly on bncheck_batch and check that it "
    "predicts in eval mode what it learned in training mode; all arguments are optional keywords"
)
"""What ``--markers`` prints."""

REQUESTED = frozenset({"bncheck", "bncheck_report"})
"""The fixtures that users request, which marks their tests."""


def may_concern(collector: pytest.Module | pytest.Class, function: Any) -> bool:
    """Whether a function may become a test that makes checks.

    Nearly every function of a suite ends here, at a tenth of the time that its signature takes.
    """
    own = vars(function)  # its marks, if there are any
    return bool(own or "bncheck_report" in function.__code__.co_varnames or is_marked(collector))


def is_marked(node: pytest.Item | pytest.Collector) -> bool:
    """Whether a test, or something around it, carries the mark."""
    around: Any = node
    while around is not None:  # `get_closest_marker` takes four times as long, for every test
        for mark in around.own_markers:
            if mark.name == MARKER:
                return True
        around = around.parent
    return False


def sources(item: pytest.Item) -> tuple[settings.Source, ...]:
    """The options of a test's marks: the nearest node first, and in it the last mark first.

    Within a node `iter_markers` gives the lower decorator before the upper one, and the base
    class's mark before the subclass's: the last is the one that users mean.

    Raises
    ------
    InputError
        If a mark has an argument that cannot be used.
    """
    by_node: dict[Any, list[settings.Source]] = {}
    for node, mark in item.iter_markers_with_node(MARKER):
        if mark.args:
            raise InputError(
                f"{MARKER} takes keywords only, but got {mark.args[0]!r} without one; "
                f"for example {MARKER}(steps=50)."
            )
        by_node.setdefault(node, []).insert(0, settings.source(mark.kwargs, "marker"))
    return tuple(source for of_node in by_node.values() for source in of_node)
