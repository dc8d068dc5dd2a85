"""Normalisation by hand in Keras, in many ways: the twin of `own_layers`.

Three choices make a layer: a rule of `RULES`, a place of `PLACES`, a convention of `CONVENTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import keras
from keras import layers, ops

EPS = 1e-3

Values = tuple[Any, ...]


# what is averaged -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """What a layer measures in training, keeps running averages of, and divides by."""

    starts: tuple[float, ...]
    measure: Callable[[Any, list[int]], Values]
    apply: Callable[[Any, Values], Any]
    names: tuple[tuple[str, ...], ...]


RULES = {
    "moments": Rule(
        (0.0, 1.0),
        lambda x, axes: (ops.mean(x, axes), ops.var(x, axes)),
        lambda x, s: (x - s[0]) / ops.sqrt(ops.maximum(s[1], 0.0) + EPS),
        (("mu", "sigma2"), ("ema_m", "ema_v"), ("moving_mean", "moving_variance")),
    ),
    "deviation": Rule(
        (0.0, 1.0),
        lambda x, axes: (ops.mean(x, axes), ops.std(x, axes)),
        lambda x, s: (x - s[0]) / (s[1] + EPS),
        (("avg", "std"), ("running_mean", "running_std")),
    ),
    "second moment": Rule(
        (0.0, 1.0),
        lambda x, axes: (ops.mean(x, axes), ops.mean(ops.square(x), axes)),
        lambda x, s: (x - s[0]) / ops.sqrt(ops.maximum(s[1] - ops.square(s[0]), 0.0) + EPS),
        (("first", "second"),),
    ),
    "range": Rule(
        (0.0, 1.0),
        lambda x, axes: (ops.mean(x, axes), ops.max(x, axes) - ops.min(x, axes)),
        lambda x, s: (x - s[0]) / (s[1] + EPS),
        (("centre", "extent"),),
    ),
    "power": Rule(
        (1.0,),
        lambda x, axes: (ops.mean(ops.square(x), axes),),
        lambda x, s: x / ops.sqrt(ops.maximum(s[0], 0.0) + EPS),
        (("power",), ("rms2",)),
    ),
    "absolute": Rule(
        (0.0, 1.0),
        lambda x, axes: (ops.mean(x, axes), ops.mean(ops.abs(x - ops.mean(x, axes)), axes)),
        lambda x, s: (x - s[0]) / (s[1] + EPS),
        (("middle", "deviation"),),
    ),
}


# where it is kept -------------------------------------------------------------------------------


class _Weights:
    """Weights of the layer that do not train."""

    def __init__(self, layer: Any, names: tuple[str, ...], starts: tuple[float, ...], n: int):
        self._variables = [
            layer.add_weight(
                shape=(n,),
                initializer=keras.initializers.Constant(start),
                trainable=False,
                name=name,
            )
            for name, start in zip(names, starts, strict=True)
        ]
        self.put(layer, names)

    def put(self, layer: Any, names: tuple[str, ...]) -> None:
        for name, variable in zip(names, self._variables, strict=True):
            setattr(layer, name, variable)

    def read(self) -> Values:
        return tuple(ops.convert_to_tensor(variable) for variable in self._variables)

    def move(self, values: Values) -> None:
        for variable, value in zip(self._variables, values, strict=True):
            variable.assign(value)


class _Added(_Weights):
    """The same, moved by what is added to them."""

    def move(self, values: Values) -> None:
        for variable, value in zip(self._variables, values, strict=True):
            variable.assign_add(value - variable)


class _InDict(_Weights):
    """Weights that hang in a dict of the layer."""

    def put(self, layer: Any, names: tuple[str, ...]) -> None:
        layer.statistics = dict(zip(names, self._variables, strict=True))


class _Untracked(_Weights):
    """Variables in an object in which Keras looks for nothing."""

    def __init__(self, layer: Any, names: tuple[str, ...], starts: tuple[float, ...], n: int):
        self._variables = [
            keras.Variable(ops.full((n,), start), trainable=False) for start in starts
        ]
        layer.kept = SimpleNamespace(**dict(zip(names, self._variables, strict=True)))


class _Stacked(_Weights):
    """One weight that holds all of them."""

    def __init__(self, layer: Any, names: tuple[str, ...], starts: tuple[float, ...], n: int):
        self._variable = layer.add_weight(
            shape=(len(starts), n),
            initializer=lambda shape, dtype=None: ops.array(
                [[start] * n for start in starts], dtype
            ),
            trainable=False,
            name="stats",
        )
        layer.stats = self._variable

    def read(self) -> Values:
        return tuple(ops.unstack(ops.convert_to_tensor(self._variable)))

    def move(self, values: Values) -> None:
        self._variable.assign(ops.stack(values))


class _InPart(_Weights):
    """Weights of a small layer inside."""

    def __init__(self, layer: Any, names: tuple[str, ...], starts: tuple[float, ...], n: int):
        layer.average = layers.Layer(name="average")
        super().__init__(layer.average, names, starts, n)
        layer.average.built = True


PLACES = {
    "weights": _Weights,
    "added to": _Added,
    "dict": _InDict,
    "untracked": _Untracked,
    "stacked": _Stacked,
    "layer inside": _InPart,
}


# how the rate is said ---------------------------------------------------------------------------

CONVENTIONS: dict[str, tuple[str, Callable[[float], Any], Callable[[Any], float]]] = {
    "momentum": ("momentum", lambda a: 1.0 - a, lambda m: 1.0 - m),
    "momentum of the new": ("momentum", lambda a: a, lambda m: m),
    "decay": ("decay", lambda a: 1.0 - a, lambda d: 1.0 - d),
    "window": ("horizon", lambda a: 1.0 / a, lambda h: 1.0 / h),
    "no name": ("_c", lambda a: (1.0 - a,), lambda c: 1.0 - c[0]),
}


class OwnNorm(layers.Layer):
    """Normalises with what it measures in training, and with running averages else.

    Parameters
    ----------
    rate
        α of an update; None averages over all updates.
    rule, place, convention
        Names of `RULES`, `PLACES` and `CONVENTIONS`.
    spelling
        Which of the rule's names the state has.
    every
        The averages move at every so many calls.
    prior
        Without a rate: updates that the initial value counts for.
    """

    def __init__(
        self,
        rate: float | None = 0.1,
        rule: str = "moments",
        place: str = "weights",
        convention: str = "momentum",
        spelling: int = 0,
        every: int = 1,
        prior: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.rule, self.place, self.every, self.prior = RULES[rule], place, every, prior
        self.names = self.rule.names[spelling % len(self.rule.names)]
        name, to, self._from = CONVENTIONS[convention]
        self._by_rate = None if rate is None else name
        if rate is not None:
            setattr(self, name, to(rate))

    def build(self, shape: Any) -> None:
        self.keeper = _Hidden(PLACES[self.place](self, self.names, self.rule.starts, shape[-1]))
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")
        if self.every > 1 or self._by_rate is None:
            self.count = self.add_weight(
                shape=(), initializer=keras.initializers.Constant(self.prior), trainable=False
            )

    def call(self, x: Any, training: bool | None = None) -> Any:
        if not training:
            return self.scale * self.rule.apply(x, self.keeper.inner.read())
        measured = self.rule.measure(x, list(range(len(x.shape) - 1)))
        rate = self._rate()
        old = self.keeper.inner.read()
        self.keeper.inner.move(
            tuple(a + rate * (ops.stop_gradient(b) - a) for a, b in zip(old, measured, strict=True))
        )
        return self.scale * self.rule.apply(x, measured)

    def _rate(self) -> Any:
        """α of this call."""
        if self._by_rate is None:
            self.count.assign(self.count + 1.0)
            return 1.0 / self.count
        rate = self._from(getattr(self, self._by_rate))
        if self.every == 1:
            return rate
        self.count.assign(self.count + 1.0)
        due = ops.equal(ops.mod(self.count, float(self.every)), 0.0)
        return rate * ops.cast(due, "float32")


class _Hidden:
    """Keeps Keras from looking at what the place holds, which the layer holds already."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner


class Twice(layers.Layer):
    """Normalises, adds, and normalises again by the same layer: two updates a step."""

    def __init__(self, norm: Any, **options: Any) -> None:
        super().__init__(**options)
        self.norm = norm

    def call(self, x: Any, training: bool | None = None) -> Any:
        x = self.norm(x, training=training)
        return self.norm(x + 0.5 * ops.relu(x), training=training)
