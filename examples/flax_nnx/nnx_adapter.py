"""An adapter for Flax NNX: everything that pytest-bncheck asks of a framework.

NNX keeps running statistics as variables of kind ``BatchStat``, its momentum is the weight of the
past, and its stored variance is biased. A module's mode is an attribute of each layer,
``use_running_average`` or ``deterministic``, which ``train()`` and ``eval()`` set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from pytest_bncheck import InputError
from pytest_bncheck.adapters.base import Adapter, Mode, Pass
from pytest_bncheck.types import Calls, Dialect, Layer, Prediction, Recipe, Statistics

MODES = ("use_running_average", "deterministic")
RANDOM = (nnx.RngCount, nnx.RngKey)


class NNXAdapter(Adapter):
    framework = "flax"
    backend = "jax"
    dialect = Dialect(
        set_momentum=lambda name, rate: f"nnx.{name}(..., momentum={1 - rate:g})",
        recalibrate="model.train()\nfor inputs, _ in batches:  # several times; no weights move\n"
        "    model(inputs)",
        momentum_of=lambda rate: 1 - rate,
        training_mode="model.train()",
        mode="use_running_average",
        freeze="Give the frozen layers use_running_average=True.",
    )

    def __init__(
        self, model: nnx.Module, batches: Sequence[Any], recipe: Recipe, device: str | None
    ) -> None:
        here = jax.default_backend()
        if device not in (None, "auto", here):
            raise InputError(f"device={device!r}: JAX runs on {here} here.")
        self.device = here
        self.model = model
        self.recipe = recipe
        self.batches = [jax.tree.map(jnp.asarray, batch) for batch in batches]
        self.batch_size = len(jax.tree.leaves(self.batches[0])[0])
        self._norms = {name: layer for name, layer in _modules(model) if _is_norm(layer)}
        self._optimizer: nnx.Optimizer | None = None

    # before -----------------------------------------------------------------------------------

    def save(self) -> None:
        self._saved = jax.tree.map(jnp.copy, nnx.state(self.model))
        self._modes = [
            (layer, name, getattr(layer, name))
            for _, layer in _modules(self.model)
            for name in MODES
            if hasattr(layer, name)
        ]

    def restore(self, *, keep_weights: bool = False) -> None:
        if not keep_weights:
            nnx.update(self.model, self._saved)
        for layer, name, value in self._modes:
            setattr(layer, name, value)

    # training ---------------------------------------------------------------------------------

    def begin(self) -> None:
        self.model.train()

    def step(self, index: int) -> Any:
        drawn = self._random_state()
        if self.recipe.train_step is not None:
            loss = self.recipe.train_step(self.model, self.batches[index])
        else:
            loss = self._own_step(self.batches[index])
        self.stochastic |= drawn != self._random_state()
        return loss

    def _own_step(self, batch: Any) -> jax.Array:
        """Gradients of a copy of the model, as pure functions want it."""
        if self._optimizer is None:
            make = self.recipe.optimizer or (lambda _: optax.adam(1e-3))
            found = make(nnx.state(self.model, nnx.Param))
            self._optimizer = nnx.Optimizer(self.model, found, wrt=nnx.Param)
        graph, parameters, rest = nnx.split(self.model, nnx.Param, ...)

        def loss_of(parameters: Any) -> tuple[jax.Array, Any]:
            copy = nnx.merge(graph, parameters, rest, copy=True)
            loss = self._loss(self._forward(copy, batch), batch)
            return loss, nnx.state(copy, nnx.Not(nnx.Param))

        (loss, state), gradients = jax.value_and_grad(loss_of, has_aux=True)(parameters)
        nnx.update(self.model, state)
        self._optimizer.update(self.model, gradients)
        return loss

    def _forward(self, model: nnx.Module, batch: Any) -> Any:
        if self.recipe.forward is not None:
            return self.recipe.forward(model, batch)
        return model(batch[0])

    def _loss(self, outputs: Any, batch: Any) -> jax.Array:
        targets = batch[1]
        if self.recipe.loss is not None:
            return self.recipe.loss(outputs, targets)
        if jnp.issubdtype(targets.dtype, jnp.integer):
            return optax.softmax_cross_entropy_with_integer_labels(outputs, targets).mean()
        return jnp.mean((outputs - targets) ** 2)

    # looking ----------------------------------------------------------------------------------

    def layers(self) -> list[Layer]:
        return [
            Layer(
                name=name,
                type=type(layer).__name__,
                momentum=layer.momentum,
                update_rate=1 - layer.momentum,
                eps=layer.epsilon,
                stock=type(layer) is nnx.BatchNorm,
                resolution=float(jnp.finfo(layer.mean[...].dtype).eps),
                dtype=str(layer.mean[...].dtype),
            )
            for name, layer in self._norms.items()
        ]

    def read(self, *, exact: bool = False) -> Statistics:
        return Statistics(
            tuple(np.asarray(layer.mean[...], float) for layer in self._norms.values()),
            tuple(np.asarray(layer.var[...], float) for layer in self._norms.values()),
        )

    def write(self, statistics: Statistics, *, exact: bool = False) -> None:
        for layer, mean, var in zip(
            self._norms.values(), statistics.mean, statistics.var, strict=True
        ):
            layer.mean[...] = jnp.asarray(mean, layer.mean[...].dtype)
            layer.var[...] = jnp.asarray(var, layer.var[...].dtype)

    # passes -----------------------------------------------------------------------------------

    def run(self, index: int, mode: Mode, *, observe: bool = True) -> Pass:
        if mode is Mode.TRAINING_PATH:
            return Pass(None)  # NNX has no mode that user code could ask for but the layers' own
        if mode is Mode.TRAINING:
            self.model.train()
        else:
            self.model.eval()
        batch = self.batches[index]
        return Pass(self._predict(batch)) if mode is Mode.EVAL else self._normalising(batch)

    def _normalising(self, batch: Any) -> Pass:
        """A pass in which every normalisation uses batch statistics."""
        own, watch = self.read(), Watch()
        for layer in self._norms.values():
            layer.use_running_average = False
        try:
            prediction = self._predict(batch, watch)
        finally:
            self.write(own)
        found = [watch.statistics(name) for name in self._norms]
        mean = tuple(seen[0] if seen else m for seen, m in zip(found, own.mean, strict=True))
        var = tuple(seen[1] if seen else v for seen, v in zip(found, own.var, strict=True))
        return Pass(prediction, Statistics(mean, var), watch.calls(self._norms))

    def _predict(self, batch: Any, watch: Watch | None = None) -> Prediction:
        chosen, watch = watch, watch or Watch()
        before, drawn = nnx.to_flat_state(nnx.state(self.model)), self._random_state()
        before = [(path, np.asarray(leaf[...])) for path, leaf in before if _is_buffer(leaf)]
        with watch.over(self.model):
            outputs = self._forward(self.model, batch)
        after = {
            path: np.asarray(leaf[...])
            for path, leaf in nnx.to_flat_state(nnx.state(self.model))
            if _is_buffer(leaf)
        }
        mutated = [
            ".".join(map(str, path))
            for path, value in before
            if not np.array_equal(value, after[path], equal_nan=True)
        ]
        arrays = {
            jax.tree_util.keystr(path) or "output": np.asarray(leaf, float)
            for path, leaf in jax.tree_util.tree_leaves_with_path(outputs)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
        }
        return Prediction(
            outputs=arrays,
            structure=str(jax.tree.map(jnp.shape, outputs)),
            random=drawn != self._random_state(),
            mutated=() if chosen else tuple(mutated),
            in_training=() if chosen else tuple(watch.in_training),
            **self._scores(outputs, batch),
        )

    def _scores(self, outputs: Any, batch: Any) -> dict[str, float | None]:
        """Loss, loss of the mean prediction, and accuracy, where the targets are classes."""
        if not isinstance(batch, tuple):
            return {}
        mean = jax.tree.map(lambda y: jnp.broadcast_to(y.mean(0), y.shape), outputs)
        found: dict[str, float | None] = {
            "loss": float(self._loss(outputs, batch)),
            "constant_loss": float(self._loss(mean, batch)),
        }
        if jnp.issubdtype(batch[1].dtype, jnp.integer):
            found["accuracy"] = float((outputs.argmax(-1) == batch[1]).mean())
        return found

    def _random_state(self) -> list[Any]:
        states = nnx.to_flat_state(nnx.state(self.model, nnx.RngCount))
        return [np.asarray(leaf[...]).tolist() for _, leaf in states]


class Watch:
    """What the normalisation layers of a model do, call by call."""

    def __init__(self) -> None:
        self._training: dict[str, int] = {}
        self._inference: dict[str, int] = {}
        self._values: dict[str, int] = {}
        self._seen: dict[str, list[tuple[Any, Any]]] = {}

    @contextmanager
    def over(self, model: nnx.Module) -> Iterator[None]:
        """Look at every call of a layer of the model."""
        names = {id(layer): name for name, layer in _modules(model) if _is_norm(layer)}
        original = nnx.BatchNorm.__call__

        def call(
            layer: nnx.BatchNorm, x: Any, use_running_average: bool | None = None, **kwargs: Any
        ) -> Any:
            name = names.get(id(layer))
            inference = layer.use_running_average
            if use_running_average is not None:
                inference = use_running_average
            if name is not None:
                self._note(name, layer, x, bool(inference))
            return original(layer, x, use_running_average, **kwargs)

        nnx.BatchNorm.__call__ = call
        try:
            yield
        finally:
            nnx.BatchNorm.__call__ = original

    def _note(self, name: str, layer: nnx.BatchNorm, x: Any, inference: bool) -> None:
        if inference:
            self._inference[name] = self._inference.get(name, 0) + 1
            return
        self._training[name] = self._training.get(name, 0) + 1
        channels = jnp.moveaxis(x, layer.axis, -1).reshape(-1, layer.num_features)
        self._values[name] = len(channels)
        if not isinstance(x, jax.core.Tracer):
            seen = np.asarray(channels, float)
            self._seen.setdefault(name, []).append((seen.mean(0), seen.var(0)))

    @property
    def in_training(self) -> list[str]:
        """Layers that used batch statistics."""
        return list(self._training)

    def statistics(self, name: str) -> tuple[Any, Any] | None:
        """Mean and variance of what the layer normalised, over its calls; None if it did not."""
        seen = self._seen.get(name)
        if not seen:
            return None
        return tuple(np.mean(part, axis=0) for part in zip(*seen, strict=True))

    def calls(self, names: Any) -> Calls:
        """The calls of the layers with these names."""
        return Calls(
            tuple(self._training.get(name, 0) for name in names),
            tuple(self._inference.get(name, 0) for name in names),
            tuple(self._values.get(name) for name in names),
        )


def _modules(model: nnx.Module) -> list[tuple[str, Any]]:
    return [(".".join(map(str, path)), module) for path, module in nnx.iter_modules(model)]


def _is_norm(module: Any) -> bool:
    return isinstance(module, nnx.BatchNorm)


def _is_buffer(leaf: Any) -> bool:
    return not isinstance(leaf, (nnx.Param, *RANDOM))
