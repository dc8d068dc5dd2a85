"""Layers of a Keras model: their paths, what they are, and their description for reports."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, TypeAlias

import keras

from pytest_bncheck.adapters.keras import internals
from pytest_bncheck.adapters.keras.backends.base import Backend
from pytest_bncheck.adapters.keras.state import host_arrays, seed_variables, untracked_variables
from pytest_bncheck.types import Dialect, Layer

KerasLayer: TypeAlias = Any
Variable: TypeAlias = Any

_RESOLUTION = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
_DROPOUT = (
    keras.layers.Dropout,
    keras.layers.AlphaDropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
)


def _momentum_of(rate: float) -> float:
    return round(1.0 - rate, 6)


def _set_momentum(layer_type: str, rate: float) -> str:
    prefix = "keras.layers." if hasattr(keras.layers, layer_type) else ""
    return f"{prefix}{layer_type}(momentum={_momentum_of(rate):g})"


DIALECT = Dialect(
    set_momentum=_set_momentum,
    recalibrate="for inputs, _ in batches:  # several times over; no weights move\n"
    "    model(inputs, training=True)",
    momentum_of=_momentum_of,
    training_mode="model(x, training=True)",
    mode="training",
    reset="layer.moving_mean.assign(keras.ops.zeros_like(layer.moving_mean))\n"
    "layer.moving_variance.assign(keras.ops.ones_like(layer.moving_variance))",
    copy_statistics="copy.set_weights(model.get_weights())  # not trainable_weights alone",
    freeze="Freeze layers instead of variables, which stops the statistics too:\n"
    "layer.trainable = False",
    running_in_eval="Let it use the moving statistics in eval mode (training=training)",
)


class Inventory:
    """The parts of a model.

    Parameters
    ----------
    model
        The user's model.
    places
        For each layer that ran, by its id, the place at which it did.
    backend
        The backend's own part.

    Attributes
    ----------
    named
        The model and every layer with their paths.
    layers, names
        Layers with running statistics, in the order in which they ran, and their paths.
    dropouts
        Layers that add noise in training.
    recurrent
        Recurrent layers of Keras.
    is_all_library
        Whether all that the model does is code of Keras.
    only_normalises
        Whether its modes differ in nothing but where batch normalisation takes its statistics from.
    kernels
        Kernels of convolutions that nobody but Keras and the optimizer looks at.
    seeds
        States of the layers' random generators.
    variables, buffers
        All others, and, by name, those among them that no optimizer moves.
    """

    def __init__(self, model: Any, places: dict[int, int], backend: Backend) -> None:
        self._model = model
        self._places = places
        self.named = paths(model)
        found = [(layer, name) for layer, name in self.named if has_statistics(layer)]
        found.sort(key=lambda pair: places.get(id(pair[0]), len(places)))
        self.layers = [layer for layer, _ in found]
        self.names = [name for _, name in found]

        everything = [layer for layer, _ in self.named]
        self.dropouts = [layer for layer in everything if is_dropout(layer)]
        self.seeds = seed_variables(everything, backend)
        self.recurrent = [layer for layer in everything if _is_recurrent(layer)]
        lambdas = any(isinstance(layer, keras.layers.Lambda) for layer in everything)
        self.is_all_library = all(map(is_library, everything)) and not lambdas
        seeds = {id(v) for v in self.seeds}
        self.only_normalises = self.is_all_library and all(map(_only_normalises, everything))
        self.kernels = _kernels(everything) if self.is_all_library else []
        self.variables = [v for v in model.variables if id(v) not in seeds]
        self.variables += untracked_variables(everything, backend)
        self.buffers = _buffers(self.named, backend)

    def watched(self, *, statistics: bool) -> dict[str, Variable]:
        """The buffers, with or without running statistics."""
        own = {id(v) for layer in self.layers for v in statistics_of(layer)}
        return {name: v for name, v in self.buffers.items() if statistics or id(v) not in own}

    def describe(self) -> list[Layer]:
        """What a report says about the layers with running statistics."""
        frozen = _frozen_until(self.named, self._places, self._model)
        trained = _trained(self.layers)
        return [
            _describe(layer, name, trained=id(layer) in trained, frozen=id(layer) in frozen)
            for layer, name in zip(self.layers, self.names, strict=True)
        ]


def paths(model: Any) -> list[tuple[KerasLayer, str]]:
    """The model, with an empty path, and every layer with the names of those around it and its own.

    As Keras' summary shows them: ``base/conv1_bn``.
    """
    found: dict[int, tuple[KerasLayer, str]] = {id(model): (model, "")}
    taken: set[str] = set()

    def walk(parent: Any, prefix: str) -> None:
        for layer in internals.inner_layers(parent):
            if id(layer) in found:
                continue
            path, again = prefix + layer.name, 2
            while path in taken:
                path, again = f"{prefix}{layer.name}#{again}", again + 1
            taken.add(path)
            found[id(layer)] = layer, path
            walk(layer, path + "/")

    walk(model, "")
    return list(found.values())


def has_statistics(layer: KerasLayer) -> bool:
    """Whether the layer, once built, has running statistics and a momentum."""
    names = ("moving_mean", "moving_variance")
    return isinstance(getattr(layer, "momentum", None), (int, float)) and all(
        isinstance(getattr(layer, name, None), keras.Variable) for name in names
    )


def _trained(layers: Sequence[KerasLayer]) -> set[int]:
    """Ids of the layers whose scale or offset differ from their initial 1 and 0."""
    initial = [
        (layer, variable, start)
        for layer in layers
        for variable, start in zip(affine_of(layer), (1.0, 0.0), strict=True)
        if variable is not None
    ]
    values = host_arrays([variable for _, variable, _ in initial])
    return {
        id(layer)
        for (layer, _, start), value in zip(initial, values, strict=True)
        if (value != start).any()
    }


def _describe(layer: KerasLayer, name: str, *, trained: bool, frozen: bool) -> Layer:
    dtype = keras.backend.standardize_dtype(layer.moving_variance.dtype)
    return Layer(
        name=name,
        type=type(layer).__name__,
        momentum=float(layer.momentum),
        update_rate=round(1.0 - float(layer.momentum), 12),
        eps=float(getattr(layer, "epsilon", 0.0)),
        frozen=not layer.trainable,
        stock=is_stock(layer),
        trained=trained,
        resolution=_RESOLUTION.get(dtype, 2.0**-23),
        dtype=dtype,
        frozen_parameters=frozen,
    )


def statistics_of(layer: KerasLayer) -> tuple[Any, Any]:
    """The variables that hold the running mean and variance."""
    return layer.moving_mean, layer.moving_variance


def affine_of(layer: KerasLayer) -> tuple[Any, Any]:
    """The variables that hold the learned scale and offset, None where there are none."""
    return getattr(layer, "gamma", None), getattr(layer, "beta", None)


def in_time(parts: Inventory) -> set[str]:
    """Names of the layers that are called once for every step of a sequence: still one stream."""
    wrappers = [w for w, _ in parts.named if isinstance(w, keras.layers.TimeDistributed)]
    inside = {id(layer) for wrapper in wrappers for layer in internals.flat_layers(wrapper)}
    pairs = zip(parts.layers, parts.names, strict=True)
    return {name for layer, name in pairs if id(layer) in inside}


def is_stock(layer: KerasLayer) -> bool:
    """Whether the layer is Keras' own, with the formula of batch normalization."""
    return type(layer) is keras.layers.BatchNormalization and not getattr(layer, "renorm", False)


def is_library(layer: KerasLayer) -> bool:
    """Whether what the layer does is code of Keras."""
    return str(type(layer).call.__module__).split(".")[0] == "keras"


def _kernels(layers: Sequence[KerasLayer]) -> list[Variable]:
    """Kernels of the convolutions, one spatial dimension aside."""
    own = (
        layer.kernel
        for layer in layers
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Conv3D))
        and layer.built
        and layer.data_format == "channels_last"
    )
    return list({id(v): v for v in own if isinstance(v, keras.Variable)}.values())


def _only_normalises(layer: KerasLayer) -> bool:
    """Whether the layer itself does not mind the mode, but to pass it on or to normalise."""
    passes_on = isinstance(layer, (keras.Model, keras.layers.Dense, keras.layers.EinsumDense))
    return is_stock(layer) or passes_on or not internals.takes_mode(layer)


def _is_recurrent(layer: KerasLayer) -> bool:
    """Whether it is a recurrent layer that is all Keras' own."""
    inner = internals.flat_layers(layer)
    return isinstance(layer, keras.layers.RNN) and all(map(is_library, inner))


def is_dropout(layer: KerasLayer) -> bool:
    """Whether the layer adds noise in training."""
    strength = getattr(layer, "rate", getattr(layer, "stddev", 0.0))
    return isinstance(layer, _DROPOUT) and strength != 0


def _buffers(named: Collection[tuple[KerasLayer, str]], backend: Backend) -> dict[str, Variable]:
    """Variables that no optimizer moves, seeds aside: ``base/bn.moving_mean``.

    A layer that is frozen keeps its weights out of them: Keras lists a variable by what it was
    made for.
    """
    found: dict[int, tuple[str, Variable]] = {}
    for layer, path in named:
        prefix = path and path + "."
        for variable in internals.non_trainable_variables(layer):
            found.setdefault(id(variable), (prefix + variable.name, variable))
        for name, value in vars(layer).items():
            for variable in backend.own_variables(value):
                found.setdefault(id(variable), (prefix + name, variable))
    names: dict[str, Variable] = {}
    for name, variable in found.values():
        again = name if name not in names else f"{name}#{len(names)}"
        names[again] = variable
    return names


def _frozen_until(
    named: Collection[tuple[KerasLayer, str]], places: dict[int, int], model: Any
) -> set[int]:
    """Ids of the layers that have weights, none of which is trained, like all that ran before."""
    trained = {id(v) for v in model.trainable_weights}
    frozen: set[int] = set()
    ran = [
        layer
        for layer, path in named
        if path and id(layer) in places and not internals.inner_layers(layer)
    ]
    for layer in sorted(ran, key=lambda layer: places[id(layer)]):
        own = internals.trainable_variables(layer)
        if any(id(v) in trained for v in own):
            break
        if own:
            frozen.add(id(layer))
    return frozen
