"""A check outside pytest: in a notebook or a script."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_bncheck.report import Report


def check(
    model: Any,
    batch: Any = None,
    *,
    batches: Iterable[Any] | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    optimizer: Any = None,
    train_step: Callable[[Any, Any], Any] | None = None,
    forward: Callable[..., Any] | None = None,
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
        PyDataset or any other iterable, which may be endless. The first 32 are used,
        one a step in turn; the verdict is about the first 8.
    loss
        ``loss(outputs, targets)``, or a loss of Keras, which takes the targets first; by default
        inferred from the model and the targets.
    optimizer
        ``optimizer(params)`` or an optimizer of the framework; by default Adam(1e-3).
    train_step
        ``train_step(model, batch)``: the whole step; returns the loss.
    forward
        ``forward(model, batch)``: returns the outputs; a third parameter, ``training``, is told
        the mode of each pass.
    **options
        `steps`, `planned_updates`, `device`, `seed`, `select`, `ignore`, `gap_tolerance`,
        `distortion_tolerance`, `strict`, `intended`, `restore`: see the documentation.

    Returns
    -------
    Report
        Holds the findings; they raise no exception.

    Raises
    ------
    InputError
        If an argument cannot be used.

    Examples
    --------
    >>> report = check(model, (images, labels), steps=5)  # doctest: +SKIP
    >>> report.ok, report.verdict  # doctest: +SKIP
    (False, 'fail')
    """
    __tracebackhide__ = True
    from pytest_bncheck import adapters, settings
    from pytest_bncheck.experiment import engine
    from pytest_bncheck.experiment.batches import gather

    given = settings.source(
        dict(loss=loss, optimizer=optimizer, train_step=train_step, forward=forward, **options),
        "call",
    )
    merged = settings.merge(given)
    adapter = adapters.find(model)
    gathered = gather(batch, batches, merged.seed)
    return engine.run(model, gathered, merged, settings.recipe(given), adapter)
