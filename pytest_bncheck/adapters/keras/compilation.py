"""Compiled forms of what a check computes, where they give the same as running it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from pytest_bncheck.adapters.keras import internals
from pytest_bncheck.adapters.keras.backends.base import Backend, Variable
from pytest_bncheck.adapters.keras.layers import Inventory
from pytest_bncheck.adapters.keras.state import Attributes, fingerprint
from pytest_bncheck.adapters.random_state import RandomState

Function: TypeAlias = Callable[[Any], Any]


def compiled(
    function: Function,
    variables: Sequence[Variable],
    inputs: Any,
    parts: Inventory,
    backend: Backend,
    *,
    once: bool = False,
) -> Function | None:
    """`function` of the inputs, traced once with `inputs`, or None where that would not do.

    What Python does in a call is done once, in the trace. So a function is not compiled if it draws
    random numbers of Python's or numpy's, changes an attribute of a layer, or cannot be traced.
    Whatever the trace left on layers is taken away again. `once` says that it runs a few times.
    """
    kept = [Attributes(layer) for layer, _ in parts.named]
    random, before = RandomState.capture(), fingerprint(())
    try:
        run = backend.compiled(function, variables, inputs, once=once)
        changed = set[str]().union(*(attributes.changed() for attributes in kept)) - internals.NOTES
        return run if not changed and before == fingerprint(()) else None
    except Exception:  # what is wrong, if anything is, shows when it is run
        return None
    finally:
        for attributes in kept:
            attributes.restore()
        random.restore()
