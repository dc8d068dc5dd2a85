"""The model under test, and how it is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pytest_bncheck.adapters.keras import internals
from pytest_bncheck.adapters.keras.backends.base import Backend
from pytest_bncheck.adapters.keras.batch import Batch, has_custom_step
from pytest_bncheck.adapters.keras.state import in_mode
from pytest_bncheck.adapters.signatures import forwarded
from pytest_bncheck.types import Recipe


@dataclass(frozen=True)
class Subject:
    """The user's model and functions, on the backend that Keras runs on."""

    model: Any
    recipe: Recipe
    backend: Backend

    @property
    def trains_as_fit(self) -> bool:
        """Whether a training step is the one of ``fit``, and not the user's or the model's."""
        custom = self.recipe.loss is None and has_custom_step(self.model)
        return self.recipe.train_step is None and not custom

    def forward(self, batch: Batch, *, training: bool) -> Any:
        """The model's outputs, as ``fit`` or ``predict`` would compute them.

        The caller decides whether gradients are recorded.
        """
        __tracebackhide__ = True
        # The mode is passed only to a model whose call takes it.
        mode = training if internals.takes_mode(self.model) else None
        if self.recipe.forward is not None:
            with in_mode(self.model, mode):
                forward, whole = self.recipe.forward, batch.whole
                return forwarded(forward, self.model, whole, training=training)
        arguments = {} if mode is None else {"training": mode}
        return self.backend.call(self.model, batch.inputs, **arguments)
