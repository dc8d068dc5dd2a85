"""A check outside pytest: in a notebook or a script."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from pytest_bncheck.errors import InputError

if TYPE_CHECKING:
    from pytest_bncheck.report import Report

HELD = 32
"""Mini-batches that a check takes and keeps in memory."""


def check(
    model: Any,
    batch: Any = None,
    *,
    batches: Iterable[Any] | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    optimizer: Any = None,
    train_step: Callable[[Any, Any], Any] | None = None,
    forward: Callable[[Any, Any], Any] | None = None,
    **options: Any,
) -> Report:
    """Train a model briefly and compare its predictions in eval mode with those of training.

    The model is as before afterwards.

    Parameters
    ----------
    model
        A PyTorch or Keras model.
    batch
        ``(inputs, targets)``, or whatever `train_step` and `forward` understand.
    batches
        Instead of `batch`: several mini-batches, from a list, a DataLoader, a tf.data dataset, a
        PyDataset or any other iterable, which may be endless. The first 32 are taken and trained
        on in turn; on the first 8 the verdict is taken.
    loss
        ``loss(outputs, targets)``; inferred from the model and the targets if not given.
    optimizer
        ``optimizer(params)`` or an optimizer of the framework; Adam(1e-3) if not given.
    train_step
        ``train_step(model, batch)``: the whole step; returns the loss.
    forward
        ``forward(model, batch)``: returns the outputs.
    **options
        `steps`, `planned_updates`, `device`, `seed`, `select`, `ignore`, `gap_tolerance`,
        `distortion_tolerance`, `strict`, `intended`, `restore`: see the documentation.

    Returns
    -------
    Report
        Findings are in it; they raise nothing.

    Raises
    ------
    InputError
        If something handed over cannot be used.

    Examples
    --------
    >>> report = check(model, (images, labels), steps=5)  # doctest: +SKIP
    >>> report.ok, report.verdict  # doctest: +SKIP
    (False, 'fail')
    """
    from pytest_bncheck import adapters, settings
    from pytest_bncheck.experiment import engine

    given = settings.layer(
        dict(loss=loss, optimizer=optimizer, train_step=train_step, forward=forward, **options),
        "call",
    )
    merged = settings.merge(given)
    adapter = adapters.find(model)
    gathered = gather(batch, batches, merged.seed)
    return engine.run(model, gathered, merged, settings.recipe(given), adapter)


def gather(batch: Any, batches: Iterable[Any] | None, seed: int) -> list[Any]:
    """The batches of a check as a list.

    Parameters
    ----------
    batch, batches
        Exactly one of them; the other is None. Of `batches` the first `HELD` are taken.
    seed
        For loaders that shuffle; the random state, also a loader's own, is as before afterwards.

    Raises
    ------
    InputError
        If both or none are given, there is no batch, or `batches` is nothing to take batches from.
    """
    if (batch is None) == (batches is None):
        raise InputError(
            "a check needs either batch=(inputs, targets) or batches=[...]; "
            f"{'neither was' if batch is None else 'both were'} given."
        )
    if batches is None:
        return [batch]
    from pytest_bncheck.adapters.random_state import seeded

    with seeded(seed), _own_state(batches):
        gathered = list(islice(_each(batches), HELD))
    if not gathered:
        raise InputError("batches is empty; a check needs at least one batch.")
    if any(item is None for item in gathered):
        raise InputError(
            "batch: it is None; expected (inputs, targets). Does the function that makes it "
            "return it?"
        )
    return gathered


@contextmanager
def _own_state(loader: Any) -> Iterator[None]:
    """Put back the state of a loader's own random generator."""
    generator: Any = getattr(loader, "generator", None)
    if not hasattr(generator, "get_state") or not hasattr(generator, "set_state"):
        yield
        return
    state = generator.get_state()
    try:
        yield
    finally:
        generator.set_state(state)


def _each(batches: Any) -> Iterator[Any]:
    if isinstance(batches, (str, bytes, Mapping)) or hasattr(batches, "shape"):
        raise InputError(
            f"batches is of type {type(batches).__name__}; allowed is a list, a loader or another "
            "iterable of batches. For a single batch use batch=, or bncheck_batch."
        )
    if hasattr(batches, "num_batches") and hasattr(batches, "__getitem__"):  # a Keras PyDataset
        count = batches.num_batches
        return (batches[index] for index in range(HELD if count is None else count))
    try:
        iterator: Iterator[Any] = iter(batches)
    except TypeError:
        raise InputError(
            f"batches is of type {type(batches).__name__}; allowed is a list, a loader or another "
            "iterable of batches."
        ) from None
    return iterator
