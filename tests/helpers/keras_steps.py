"""Keras models with a ``train_step`` of their own, which alone knows the mode of the net inside."""

from __future__ import annotations

from typing import Any

import keras

from keras_nets import differentiated


class Inside(keras.Model):
    """Its call takes no mode; the step passes it to the net inside."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def call(self, x: Any) -> Any:
        return self.inner(x)

    def train_step(self, *arguments: Any) -> Any:
        if keras.backend.backend() == "jax":
            return self._stateless_step(*arguments)
        (x, y), weights = arguments[0], self.trainable_variables
        loss, gradients = differentiated(
            lambda: self.compute_loss(x, y, self.inner(x, training=True)), self
        )
        if keras.backend.backend() == "torch":
            import torch

            with torch.no_grad():
                self.optimizer.apply(gradients, weights)
            return {"loss": loss.detach()}
        self.optimizer.apply(gradients, weights)
        return {"loss": loss}

    def _stateless_step(self, state: Any, data: Any) -> Any:
        import jax

        weights, others, slots, metrics = state
        x, y = data

        def compute(weights: Any, others: Any) -> Any:
            outputs, others = self.inner.stateless_call(weights, others, x, training=True)
            return self.compute_loss(x, y, outputs), others

        (loss, others), gradients = jax.value_and_grad(compute, has_aux=True)(weights, others)
        weights, slots = self.optimizer.stateless_apply(slots, gradients, weights)
        return {"loss": loss}, (weights, others, slots, metrics)


class Told(Inside):
    """The same, but its call takes the mode."""

    def call(self, x: Any, training: bool | None = None) -> Any:
        return self.inner(x, training=training)
