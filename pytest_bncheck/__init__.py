"""Checks that a model predicts in eval mode what it learned in training mode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_bncheck.api import check
    from pytest_bncheck.errors import InputError
    from pytest_bncheck.report import CheckFailed, Report

__version__ = "0.2.0"

__all__ = ["CheckFailed", "InputError", "Report", "__version__", "check"]

# Loaded on first use: every pytest run imports this package, few need it.
_HOMES = {"check": "api", "CheckFailed": "report", "Report": "report", "InputError": "types"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
