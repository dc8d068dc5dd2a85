"""What TensorFlow does not promise to keep, for `backends.tensorflow` alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from pytest_bncheck.adapters import versions
from pytest_bncheck.adapters.switches import Switch, variable

PATHS = (
    "tensorflow.python.eager.context.context",
    "tensorflow.python.eager.context.Context._internal_operation_seed",
    "tensorflow.python.eager.context.Context.clear_kernel_cache",
    "tensorflow.python.eager.context.global_seed",
    "tensorflow.python.eager.context.set_global_seed",
    "tensorflow.python.framework.ops.gradient_registry._registry",
)
"""What `adapters.random_state` needs is among them."""

_context, _gradients = versions.find(PATHS[0]), versions.find(PATHS[-1])


def require() -> None:
    """Refuse a version of TensorFlow that lacks one of the names.

    Raises
    ------
    InputError
        With the names that are missing.
    """
    missing = [path for path in PATHS if versions.find(path) is None]
    versions.require("TensorFlow", tf.__version__, missing)


_VARIABLES = (
    ("tensorflow.python.data.ops.debug_mode", "DEBUG_MODE"),
    ("tensorflow.python.autograph.utils.ag_logging", "verbosity_level"),
)
_NUMERICS = versions.find("tensorflow.python.debug.lib.check_numerics_callback._state")


def switches() -> Iterator[Switch]:
    """Switches of the process without a public name; those that a version lacks are left alone."""
    context = _context()
    held = [(versions.find(owner), name) for owner, name in _VARIABLES]
    yield from (
        variable(o, name) for o, name in (*held, (context, "scope_name")) if hasattr(o, name)
    )
    if _NUMERICS is not None:
        yield lambda: hasattr(_NUMERICS, "check_numerics_callback"), _check_numerics
    options = getattr(context, "_optimizer_experimental_options", None)
    if options is not None:
        yield lambda: dict(options), lambda before: _set_options(options, before)


def _check_numerics(on: bool) -> None:
    change = tf.debugging.enable_check_numerics if on else tf.debugging.disable_check_numerics
    change()


def _set_options(options: dict[str, Any], before: dict[str, Any]) -> None:
    options.clear()
    tf.config.optimizer.set_experimental_options(before)


@contextlib.contextmanager
def noting_draws(note: Callable[[str], None]) -> Iterator[None]:
    """Call `note` from inside each eager random operation, by a class-wide patch."""
    context_type = type(_context())
    original = context_type._internal_operation_seed

    def noted(context: Any) -> Any:
        note("")
        return original(context)

    context_type._internal_operation_seed = noted
    try:
        yield
    finally:
        context_type._internal_operation_seed = original


def forget_gradients(graph: Any) -> None:
    """Let go of the custom gradients of a graph, which holds all that needed them.

    TensorFlow registers each of them for good, and with it the graph, at every tracing.
    """
    for operation in graph.get_operations():
        with contextlib.suppress(ValueError):  # it has the gradient of its type of operation
            _gradients.pop(operation.get_attr("_gradient_op_type").decode(), None)


def items_of(table: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The keys and values of a mutable table, without the two keys that mark empty places."""
    keys, values = (tensor.numpy() for tensor in table.export())
    present = np.ones(len(keys), bool)
    for name in ("_empty_key", "_deleted_key"):
        marker = getattr(table, name, None)
        if marker is not None:
            present &= (keys != np.asarray(marker)).reshape(len(keys), -1).any(axis=1)
    return keys[present], values[present]
