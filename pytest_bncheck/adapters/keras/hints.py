"""What to paste where a Keras batch, model or loop cannot be understood."""

from __future__ import annotations

import keras

from pytest_bncheck.adapters.hints import Hints

_TENSORFLOW = """\
    @pytest.fixture
    def bncheck_train_step({arguments}):
        optimizer = {optimizer}

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
    def bncheck_train_step({arguments}):
        optimizer = {optimizer}

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
    def bncheck_train_step({arguments}):
        optimizer = {optimizer}

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

hints = Hints(
    _STEPS.get(keras.backend.backend(), _TENSORFLOW),  # `own_backend` refuses every other one
    "keras.optimizers.Adam(1e-3)",
    "bncheck_model.trainable_variables",
    "keras.losses.mean_squared_error({targets}, {outputs})",
)
