"""What to paste where a Keras batch, model or loop cannot be understood."""

from __future__ import annotations

from typing import Any

import keras

from pytest_bncheck.adapters import hints
from pytest_bncheck.adapters.hints import UNKNOWN_LOSS, UNKNOWN_OUTPUTS
from pytest_bncheck.types import InputError

_TENSORFLOW = """\
    @pytest.fixture
    def bncheck_train_step():
        optimizer = keras.optimizers.Adam(1e-3)

        def train_step(model, batch):
            with tf.GradientTape() as tape:
                loss = {loss}
            weights = model.trainable_variables
            optimizer.apply(tape.gradient(loss, weights), weights)
            return loss

        return train_step
"""

_TORCH = """\
    @pytest.fixture
    def bncheck_train_step():
        optimizer = keras.optimizers.Adam(1e-3)

        def train_step(model, batch):
            model.zero_grad()
            loss = {loss}
            loss.backward()
            weights = model.trainable_variables
            gradients = [weight.value.grad for weight in weights]
            with torch.no_grad():
                optimizer.apply(gradients, weights)
            return loss

        return train_step
"""

_JAX = """\
    @pytest.fixture
    def bncheck_train_step():
        optimizer = keras.optimizers.Adam(1e-3)

        def train_step(model, batch):
            def compute(weights, others):
                with keras.StatelessScope(
                    [*zip(model.trainable_variables, weights),
                     *zip(model.non_trainable_variables, others)]
                ) as scope:
                    loss = {loss}
                rest = model.non_trainable_variables
                return loss, [scope.get_current_value(v) for v in rest]

            weights = [v.value for v in model.trainable_variables]
            others = [v.value for v in model.non_trainable_variables]
            compute = jax.value_and_grad(compute, has_aux=True)
            (loss, others), gradients = compute(weights, others)
            for variable, value in zip(model.non_trainable_variables, others):
                variable.assign(value)
            optimizer.apply(gradients, model.trainable_variables)
            return loss

        return train_step
"""

_STEPS = {"tensorflow": _TENSORFLOW, "torch": _TORCH, "jax": _JAX}


def no_step(problem: str, loss: str = UNKNOWN_LOSS) -> InputError:
    """The error where the training step has to come from the user."""
    return hints.error(problem, "bncheck_train_step", _step(loss))


def no_forward(problem: str, outputs: str = UNKNOWN_OUTPUTS) -> InputError:
    """The error where the call of the model has to come from the user."""
    return hints.error(problem, "bncheck_forward", hints.FORWARD.format(outputs=outputs))


def no_forward_and_step(
    problem: str, outputs: str = UNKNOWN_OUTPUTS, loss: str = UNKNOWN_LOSS
) -> InputError:
    """The error where the batch means something to the user alone."""
    forward = hints.FORWARD.format(outputs=outputs)
    return hints.error(problem, "bncheck_forward and bncheck_train_step", forward, _step(loss))


def no_loss(problem: str, outputs: Any = None, targets: Any = None) -> InputError:
    """The error where the loss has to come from the user; it is of what these hold."""
    arguments = f"{hints.part('targets', targets)}, {hints.part('outputs', outputs)}"
    loss = f"keras.losses.mean_squared_error({arguments})"
    return hints.error(problem, "bncheck_loss", hints.LOSS.format(loss=loss))


def _step(loss: str) -> str:
    return _STEPS[keras.backend.backend()].format(loss=loss)
