"""Objects that cannot be put back."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_bncheck.adapters import graph


class Refusing:
    """Its undo fails after `refuse`; its slot gives it a state to undo."""

    __slots__ = ("value",)


def refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the undo of every `Refusing` fail."""

    def failing(item: Any) -> Any:
        def undo() -> None:
            raise OSError("cannot be put back")

        return undo if isinstance(item, Refusing) else None

    usual = graph.remember
    monkeypatch.setattr(graph, "remember", lambda item: failing(item) or usual(item))
