"""The fixtures of the plugin, and how a test's place overrides them."""

from __future__ import annotations

import pytest

from pytest_bncheck.errors import InputError
from pytest_bncheck.plugin.internals import definition, parameters
from pytest_bncheck.plugin.marks import REQUESTED

FUNCTIONS = {
    "bncheck_loss": "loss(outputs, targets)",
    "bncheck_optimizer": "optimizer(params)",
    "bncheck_train_step": "train_step(model, batch)",
    "bncheck_forward": "forward(model, batch)",
}
"""The optional fixtures, and the function that each returns."""

INPUTS = ("bncheck_model", "bncheck_batch", "bncheck_batches", *FUNCTIONS)
"""The fixtures that users override."""


def batch_fixture(node: pytest.Item | pytest.Collector) -> str:
    """The one of `bncheck_batch` and `bncheck_batches` that is overridden nearer to `node`.

    Raises
    ------
    InputError
        If both are overridden in the same place.
    """
    one, many = _nearness(node, "bncheck_batch"), _nearness(node, "bncheck_batches")
    if one == many >= 0:
        raise InputError(
            "bncheck_batch and bncheck_batches are both overridden in the same place; "
            "remove one of them."
        )
    return "bncheck_batch" if one > many >= 0 else "bncheck_batches"


def input_names(node: pytest.Item | pytest.Collector) -> list[str]:
    """The fixtures that join a marked test.

    Raises
    ------
    InputError
        As `batch_fixture` does.
    """
    return ["bncheck_model", batch_fixture(node), "bncheck_report"]


def _nearness(node: pytest.Item | pytest.Collector, name: str) -> int:
    """How deep in the collection tree a fixture is overridden; -1 if it is not."""
    found = definition(node, name)
    if found is None or (found.module or "").startswith(f"{__package__}."):
        return -1
    # Not the length of the path: a conftest.py at the root may have "", ".", or another name.
    depths = [d for d, parent in enumerate(node.listchain()) if parent.nodeid == found.place]
    return depths[-1] if depths else 0


def require_functions(item: pytest.Item) -> None:
    """Refuse an optional fixture that was written as the function it should return.

    Raises
    ------
    InputError
        If there is one. The error of pytest would be that a fixture "outputs" is not found.
    """
    for name, signature in FUNCTIONS.items():
        found = definition(item, name)
        wanted = found.arguments if found is not None else ()
        known = {"request", *parameters(item)}
        unknown = [arg for arg in wanted if arg not in known and definition(item, arg) is None]
        if unknown:
            raise InputError(
                f"the fixture {name} asks for {', '.join(unknown)}, which is no fixture. It takes "
                f"no such arguments and returns the function {signature} instead:\n\n"
                f"    @pytest.fixture\n    def {name}():\n"
                f"        def {signature}:\n            ...\n"
                f"        return {signature.partition('(')[0]}\n"
            )


def without_inputs(item: pytest.Item, names: list[str]) -> list[str]:
    """The fixtures of a test that will fail before its body, without the expensive ones."""
    ours = {*INPUTS, *REQUESTED}
    return [name for name in names if name not in ours and definition(item, name) is not None]


def inputs_and_what_they_need(item: pytest.Item) -> frozenset[str]:
    """The names of all fixtures that a model or a batch is built from."""
    names: set[str] = set()
    queue = list(INPUTS)
    while queue:
        name = queue.pop()
        found = definition(item, name)
        if name not in names and found is not None:
            names.add(name)
            queue += found.arguments
    return frozenset(names)
