"""The layers of a Keras model: their paths, their running statistics, and their description."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import keras

from pytest_bncheck.adapters.base import NO_STATISTICS
from pytest_bncheck.adapters.keras import internals
from pytest_bncheck.adapters.keras.backends.base import Backend, split
from pytest_bncheck.adapters.keras.places import Place, loose_variables, places
from pytest_bncheck.adapters.keras.state import (
    RESOLUTION,
    seed_variables,
    value_of,
    write_values,
)
from pytest_bncheck.adapters.keras.states import States
from pytest_bncheck.types import Dialect, Layer, Statistics

KerasLayer: TypeAlias = Any
Tensor: TypeAlias = Any
Variable: TypeAlias = Any

_DROPOUT = (
    keras.layers.Dropout,
    keras.layers.AlphaDropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
)
_FOREIGN = tuple(
    getattr(keras.layers, name)
    for name in ("TorchModuleWrapper", "JaxLayer", "FlaxLayer", "TFSMLayer")
    if hasattr(keras.layers, name)
)
_DENSE = (keras.layers.Dense, keras.layers.EinsumDense)  # take a mode, and only pass it on


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
    per_sample="GroupNormalization or LayerNormalization",
    shuffle="dataset.shuffle(...) before batch(...)",
    drop_last="dataset.batch(..., drop_remainder=True)",
    counter="optimizer.iterations",
    replica="replica",
    replicas="replicas",
    together=(
        "Normalise over all replicas together:\n"
        "keras.layers.BatchNormalization(..., synchronized=True)",
    ),
    running_in_eval="Let it use the moving statistics in eval mode (training=training)",
)


class Layers:
    """The layers of a model as they are built now, and those with running statistics.

    Parameters
    ----------
    model
        The user's model.
    backend
        The backend that Keras runs on.
    order
        Position of each layer in the order in which layers run, by its id; empty if unknown.
    strangers
        Ids of layers whose running statistics are not what they say; see `stock`.

    Attributes
    ----------
    named
        The model and every layer, each with its path.
    tracking, names
        Layers with running statistics, in the order in which they run, and their paths.
    dropouts
        Layers that add noise in training.
    moded
        They, and the other layers that take a mode, without those with running statistics.
    recurrent
        Recurrent layers of Keras.
    all_library
        Whether everything that the model does is code of Keras.
    same_on_path
        Whether, stochastic layers aside, its modes differ only in where batch normalization takes
        its statistics from.
    only_normalises
        Whether its modes differ only in where batch normalisation takes its statistics from.
    kernels
        Kernels of convolutions that only Keras and the optimizer use.
    seeds
        States of the layers' random generators.
    variables, buffers
        All other variables; by name, those of them that no optimizer moves.
    places
        Where the buffers are.
    states
        The floating ones among them that belong to no layer of `tracking`.
    owners
        All layers, and the modules of the backend inside them that have buffers.
    """

    def __init__(
        self,
        model: Any,
        backend: Backend,
        order: Mapping[int, int],
        strangers: Collection[int] = (),
    ) -> None:
        self._model, self._backend, self._order = model, backend, order
        self.named = paths(model)
        tracking = [(layer, name) for layer, name in self.named if has_statistics(layer)]
        tracking = [pair for pair in tracking if id(pair[0]) not in strangers]
        tracking.sort(key=lambda pair: order.get(id(pair[0]), len(order)))
        self.tracking = [layer for layer, _ in tracking]
        self.names = [name for _, name in tracking]

        everything = [layer for layer, _ in self.named]
        self.dropouts = [layer for layer in everything if is_dropout(layer)]
        self.moded = [
            layer
            for layer in everything[1:]
            if _minds_mode(layer) or (id(layer) in strangers and internals.takes_mode(layer))
        ]
        self.seeds = seed_variables(everything, backend)
        self.recurrent = [layer for layer in everything if _is_recurrent(layer)]
        lambdas = any(isinstance(layer, keras.layers.Lambda) for layer in everything)
        self.all_library = all(map(is_library, everything)) and not lambdas
        self.same_on_path = self.all_library and not any(map(_has_a_path, everything))
        self.only_normalises = self.all_library and all(map(_only_normalises, everything))
        self.kernels = _kernels(everything) if self.all_library else []
        seeds = {id(v) for v in self.seeds}
        self.variables = [v for v in model.variables if id(v) not in seeds]
        self.variables += loose_variables(everything, backend)
        self.places = places(self.named, backend)
        inside = {id(p.owner): p.owner for p in self.places}
        self.owners = list({**{id(layer): layer for layer in everything}, **inside}.values())
        known = {id(v) for v in self.running}
        own = [place for place in self.places if id(place.variable) not in known]
        self.states = States(sorted(own, key=self._when), backend)
        self.buffers = {place.name: place.variable for place in self.places}

    def _when(self, place: Place) -> int:
        """When the layer around a place ran."""
        layers = {path: id(layer) for layer, path in self.named}
        return self._order.get(layers.get(place.path, 0), len(self._order))

    def watched(self, *, statistics: bool) -> dict[str, Variable]:
        """The buffers, with or without running statistics."""
        running = {id(v) for v in self.running}
        return {n: v for n, v in self.buffers.items() if statistics or id(v) not in running}

    @property
    def weights(self) -> dict[str, Variable]:
        """Variables made to be trained: ``head.kernel``."""
        return {
            f"{path}.{variable.name}" if path else variable.name: variable
            for layer, path in self.named
            for variable in internals.trainable_variables(layer)
        }

    @property
    def kept_by_programs(self) -> list[Variable]:
        """The variables that a program reads and changes: all of Keras, also untracked ones."""
        return [v for v in (*self.variables, *self.seeds) if isinstance(v, keras.Variable)]

    def describe(self) -> list[Layer]:
        """What a report says about the layers with running statistics."""
        frozen = _frozen_until(self.named, self._order, self._model)
        counted = _counted(self._model)
        return [
            _describe(layer, name, frozen=id(layer) in frozen, counted=counted)
            for layer, name in zip(self.tracking, self.names, strict=True)
        ]

    def in_time(self) -> set[str]:
        """Names of the layers that run once for every step of a sequence: still one stream."""
        wrappers = [w for w, _ in self.named if isinstance(w, keras.layers.TimeDistributed)]
        inside = {id(layer) for wrapper in wrappers for layer in internals.flat_layers(wrapper)}
        pairs = zip(self.tracking, self.names, strict=True)
        return {name for layer, name in pairs if id(layer) in inside}

    # running statistics -----------------------------------------------------------------------

    @property
    def running(self) -> list[Variable]:
        """Mean and variance of the first layer with running statistics, of the second, ..."""
        return [v for layer in self.tracking for v in statistics_of(layer)]

    def packed(self) -> Tensor:
        """All running statistics, and the log of all states, in one tensor on the device.

        None without any.
        """
        values = [*map(value_of, self.running), *self.states.logged()]
        return self._backend.pack(values) if values else None

    def unpacked(self, packed: Tensor) -> Statistics:
        """The statistics in what `packed` laid end to end, on the host."""
        running = self.running
        if packed is None or not running:
            return NO_STATISTICS
        whole = sum(math.prod(v.shape) for v in running)
        values = split(packed[:whole], running)
        return Statistics(tuple(values[0::2]), tuple(values[1::2]))

    def read(self) -> Statistics:
        """The running statistics now. Keras stores the biased variance."""
        values = self._backend.to_host(list(map(value_of, self.running)))
        return Statistics(tuple(values[0::2]), tuple(values[1::2]))

    def write(self, statistics: Statistics) -> None:
        """Set the running statistics."""
        running = self.running
        if not running:
            return
        pairs = zip(statistics.mean, statistics.var, strict=True)
        values = [value for pair in pairs for value in pair]
        write_values(running, values, self._backend)


def paths(model: Any) -> list[tuple[KerasLayer, str]]:
    """The model, with an empty path, and every layer with its path: ``base/conv1_bn``.

    A path joins the names of the layers around a layer and its name.
    """
    named: dict[int, tuple[KerasLayer, str]] = {id(model): (model, "")}
    used: set[str] = set()

    def walk(parent: Any, prefix: str) -> None:
        for layer in internals.inner_layers(parent):
            if id(layer) in named:
                continue
            path, number = prefix + layer.name, 2
            while path in used:
                path, number = f"{prefix}{layer.name}#{number}", number + 1
            used.add(path)
            named[id(layer)] = layer, path
            walk(layer, path + "/")

    walk(model, "")
    return list(named.values())


def has_statistics(layer: KerasLayer) -> bool:
    """Whether the layer, once built, has running statistics and a momentum."""
    names = ("moving_mean", "moving_variance")
    return isinstance(getattr(layer, "momentum", None), (int, float)) and all(
        isinstance(getattr(layer, name, None), keras.Variable) for name in names
    )


def _counted(model: Any) -> int | None:
    """Steps that the model's optimizer has made; None where it has none, or made none."""
    optimizer = getattr(model, "optimizer", None)
    iterations = getattr(optimizer, "iterations", None)
    return None if iterations is None else int(iterations) or None


def _describe(layer: KerasLayer, name: str, *, frozen: bool, counted: int | None) -> Layer:
    dtype = keras.backend.standardize_dtype(layer.moving_variance.dtype)
    return Layer(
        name=name,
        type=type(layer).__name__,
        momentum=float(layer.momentum),
        update_rate=round(1.0 - float(layer.momentum), 12),
        eps=float(getattr(layer, "epsilon", 0.0)),
        frozen=not layer.trainable,
        stock=is_stock(layer),
        resolution=RESOLUTION.get(dtype, 2.0**-23),
        dtype=dtype,
        frozen_parameters=frozen,
        counted=counted,
    )


def statistics_of(layer: KerasLayer) -> tuple[Any, Any]:
    """The variables that hold the running mean and variance."""
    return layer.moving_mean, layer.moving_variance


def affine_of(layer: KerasLayer) -> tuple[Any, Any]:
    """The variables that hold the learned scale and offset, None where there are none."""
    return getattr(layer, "gamma", None), getattr(layer, "beta", None)


def is_stock(layer: KerasLayer) -> bool:
    """Whether the layer is the batch normalization of Keras, with its formula."""
    return type(layer) is keras.layers.BatchNormalization and not getattr(layer, "renorm", False)


def trains_unless_told(layer: KerasLayer) -> bool:
    """Whether the layer trains where nobody gives it a mode."""
    return isinstance(layer, keras.layers.TorchModuleWrapper)


def is_library(layer: KerasLayer) -> bool:
    """Whether the layer's ``call`` is code of Keras, and of nobody else."""
    if isinstance(layer, _FOREIGN):
        return False
    return str(type(layer).call.__module__).split(".")[0] == "keras"


def _kernels(layers: Sequence[KerasLayer]) -> list[Variable]:
    """Kernels of the convolutions in two and three dimensions."""
    kernels = (
        layer.kernel
        for layer in layers
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Conv3D))
        and layer.built
        and layer.data_format == "channels_last"
    )
    return list({id(v): v for v in kernels if isinstance(v, keras.Variable)}.values())


def _only_normalises(layer: KerasLayer) -> bool:
    """Whether the layer uses the mode only to pass it on, or to normalise."""
    passes_on = isinstance(layer, (keras.Model, *_DENSE))
    return is_stock(layer) or passes_on or not internals.takes_mode(layer)


def _has_a_path(layer: KerasLayer) -> bool:
    """Whether a layer of Keras does something else in training, and draws no random numbers."""
    spectral = isinstance(layer, keras.layers.SpectralNormalization)
    return spectral or (has_statistics(layer) and not is_stock(layer))


def _minds_mode(layer: KerasLayer) -> bool:
    """Whether the layer adds noise, or takes a mode for anything but running statistics."""
    takes = internals.takes_mode(layer) and not isinstance(layer, _DENSE)
    return is_dropout(layer) or (takes and not has_statistics(layer))


def _is_recurrent(layer: KerasLayer) -> bool:
    """Whether this is a recurrent layer with nothing but code of Keras inside."""
    inner = internals.flat_layers(layer)
    return isinstance(layer, keras.layers.RNN) and all(map(is_library, inner))


def is_dropout(layer: KerasLayer) -> bool:
    """Whether the layer adds noise in training."""
    strength = getattr(layer, "rate", getattr(layer, "stddev", 0.0))
    return isinstance(layer, _DROPOUT) and strength != 0


def _frozen_until(
    named: Collection[tuple[KerasLayer, str]], places: Mapping[int, int], model: Any
) -> set[int]:
    """Ids of the layers with weights that run before the first layer with a trained weight."""
    trained = {id(v) for v in model.trainable_weights}
    frozen: set[int] = set()
    ran = [
        layer
        for layer, path in named
        if path and id(layer) in places and not internals.inner_layers(layer)
    ]
    for layer in sorted(ran, key=lambda layer: places[id(layer)]):
        weights = internals.trainable_variables(layer)
        if any(id(v) in trained for v in weights):
            break
        if weights:
            frozen.add(id(layer))
    return frozen
