"""Normalisation by hand, in many ways: what it averages, where it keeps that, how it says its rate.

Three choices make a layer: a rule of `RULES`, a place of `PLACES`, a convention of `CONVENTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

EPS = 1e-5

Values = tuple[Tensor, ...]


# what is averaged -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """What a layer measures in training, keeps a running average of, and divides by.

    Attributes
    ----------
    starts
        The state before training: a number for each of its parts.
    measure
        From the values, a row for each channel, and the state: what the average moves towards.
    apply
        Normalises with measured or with running values.
    used
        What training normalises with, if it is not what it measures.
    names
        Of the parts, in public code.
    """

    starts: tuple[float, ...]
    measure: Callable[[Tensor, Values], Values]
    apply: Callable[[Tensor, Values], Tensor]
    names: tuple[tuple[str, ...], ...]
    used: Callable[[Tensor, Values, Values], Tensor] | None = None


def _row(statistic: Tensor, x: Tensor) -> Tensor:
    return statistic.reshape(1, -1, *[1] * (x.dim() - 2))


def _rows(x: Tensor) -> Tensor:
    """The values of each channel."""
    return x.transpose(0, 1).flatten(1)


def _moments(v: Tensor, state: Values) -> Values:
    return v.mean(1), v.var(1, unbiased=False)


def _by_variance(x: Tensor, state: Values) -> Tensor:
    return (x - _row(state[0], x)) / (_row(state[1], x).clamp_min(0) + EPS).sqrt()


def _by_deviation(x: Tensor, state: Values) -> Tensor:
    return (x - _row(state[0], x)) / (_row(state[1], x) + 1e-3)


def _by_second_moment(x: Tensor, state: Values) -> Tensor:
    return _by_variance(x, (state[0], state[1] - state[0].square()))


def _unbiased(v: Tensor, state: Values) -> Values:
    return v.mean(1), v.var(1)


def _around_running_mean(v: Tensor, state: Values) -> Values:
    return v.mean(1), (v - state[0][:, None]).square().mean(1)


def _batch_variance(x: Tensor, measured: Values, state: Values) -> Tensor:
    return _by_variance(x, _moments(_rows(x), state))


def _renorm(x: Tensor, measured: Values, state: Values) -> Tensor:
    """Batch renormalisation: training reads the state."""
    deviation, running = ((var + EPS).sqrt() for var in (measured[1], state[1]))
    r = (deviation / running).detach().clamp(1 / 3, 3)
    d = ((measured[0] - state[0]) / running).detach().clamp(-5, 5)
    return _row(r, x) * (x - _row(measured[0], x)) / _row(deviation, x) + _row(d, x)


def _running_in_training(x: Tensor, measured: Values, state: Values) -> Tensor:
    """An observation normaliser: both modes use the state."""
    return _by_variance(x, state)


def _covariance(v: Tensor, state: Values) -> Values:
    centred = v - v.mean(1, keepdim=True)
    return v.mean(1), centred @ centred.T / v.shape[1]


def _whitened(x: Tensor, state: Values) -> Tensor:
    centred = x - _row(state[0], x)
    shrunk = state[1].reshape(len(state[0]), -1) + 0.1 * torch.eye(len(state[0]))
    half: Tensor = torch.linalg.cholesky(shrunk)
    flat = torch.linalg.solve_triangular(half, _rows(centred), upper=False)
    return flat.reshape(x.transpose(0, 1).shape).transpose(0, 1)


def _evo(x: Tensor, state: Values) -> Tensor:
    """Divides by the larger of a running deviation and one of the sample."""
    own = (x.flatten(1).var(1) + EPS).sqrt().reshape(-1, *[1] * (x.dim() - 1))
    return x / torch.maximum((_row(state[0], x) + EPS).sqrt(), 0.2 * own)


RULES = {
    "moments": Rule(
        (0.0, 1.0),
        _moments,
        _by_variance,
        (
            ("running_mean", "running_var"),
            ("moving_mean", "moving_variance"),
            ("mu", "sigma2"),
            ("glob_mean", "glob_var"),
            ("ema_m", "ema_v"),
        ),
    ),
    "unbiased": Rule((0.0, 1.0), _unbiased, _by_variance, (("mean", "variance"),), _batch_variance),
    "deviation": Rule(
        (0.0, 1.0),
        lambda v, state: (v.mean(1), v.std(1)),
        _by_deviation,
        (("running_mean", "running_std"), ("avg", "std")),
    ),
    "second moment": Rule(
        (0.0, 1.0),
        lambda v, state: (v.mean(1), v.square().mean(1)),
        _by_second_moment,
        (("m1", "m2"),),
    ),
    "power": Rule(
        (1.0,),
        lambda v, state: (v.square().mean(1),),
        lambda x, state: x / (_row(state[0], x) + EPS).sqrt(),
        (("running_phi",), ("quadratic_mean",)),
    ),
    "mean only": Rule(
        (0.0,),
        lambda v, state: (v.mean(1),),
        lambda x, state: x - _row(state[0], x),
        (("center",), ("running_mean",)),
    ),
    "absolute deviation": Rule(
        (0.0, 1.0),
        lambda v, state: (m := v.mean(1), (v - m[:, None]).abs().mean(1)),
        _by_deviation,
        (("l1_mean", "l1_scale"),),
    ),
    "median": Rule(
        (0.0, 1.0),
        lambda v, state: (m := v.median(1).values, (v - m[:, None]).abs().mean(1)),
        _by_deviation,
        (("location", "spread"),),
    ),
    "log variance": Rule(
        (0.0, 0.0),
        lambda v, state: (v.mean(1), (v.var(1, unbiased=False) + EPS).log()),
        lambda x, state: (x - _row(state[0], x)) / _row((0.5 * state[1]).exp(), x),
        (("mean", "log_var"),),
    ),
    "range": Rule(
        (0.0, 1.0),
        lambda v, state: (v.amin(1), v.amax(1)),
        lambda x, state: 4 * (x - _row(state[0], x)) / (_row(state[1] - state[0], x).abs() + 0.1),
        (("min_val", "max_val"),),
    ),
    "largest": Rule(
        (1.0,),
        lambda v, state: (v.abs().amax(1),),
        lambda x, state: 3 * x / (_row(state[0], x) + EPS),
        (("amax",),),
    ),
    "evolved": Rule(
        (1.0,), lambda v, state: (v.var(1, unbiased=False),), _evo, (("running_var",),)
    ),
    "coupled": Rule(
        (0.0, 1.0),
        _around_running_mean,
        _by_variance,
        (("running_mean", "running_var"), ("mean_ema", "var_ema")),
        _batch_variance,
    ),
    "whitening": Rule((0.0, 1.0), _covariance, _whitened, (("running_mean", "running_cov"),)),
    "renorm": Rule((0.0, 1.0), _moments, _by_variance, (("running_avg", "running_sq"),), _renorm),
    "observer": Rule(
        (0.0, 1.0), _moments, _by_variance, (("obs_mean", "obs_var"),), _running_in_training
    ),
}

READS = {"renorm", "observer"}
"""Rules whose training output depends on the state."""


# where it is kept -------------------------------------------------------------------------------

PLACES = (
    "in place",  # buffers
    "reassigned",  # buffers, new tensors in each update
    "data",  # buffers whose `.data` is exchanged
    "stacked",  # one buffer for all
    "attribute",  # tensors that are no buffers
    "list",
    "tuple",
    "dict",
    "helper",  # an object that is no module
    "namespace",  # such an object of the standard library
    "children",  # modules that are never called
    "parameter",  # without gradient
    "not saved",  # buffers with persistent=False
)


class Tracker:
    """Holds what it is given."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        vars(self).update(values)


class Average(nn.Module):
    """A value in a module of its own, which is told what to do by methods."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", start)


# how the rate is said ---------------------------------------------------------------------------

CONVENTIONS: dict[str, tuple[str, bool]] = {
    "momentum": ("momentum", False),
    "momentum of the past": ("momentum", True),
    "decay": ("decay", True),
    "alpha": ("alpha", False),
    "buffer": ("rate", False),
    "none": ("", False),
    "lie": ("", False),  # an attribute `momentum` that nothing reads
}
"""The attribute, and whether it is the weight of the past."""


class OwnNorm(nn.Module):
    """Normalisation by hand.

    Parameters
    ----------
    rate
        α of one update; None for a cumulative average.
    every
        Only each such call updates the state.
    prior
        Updates that a cumulative average believes to have had before.
    """

    share: float
    """Of a new value, where the code has it and no attribute."""

    def __init__(
        self,
        channels: int,
        rule: str = "moments",
        place: str = "in place",
        convention: str = "momentum",
        rate: float | None = 0.1,
        *,
        spelling: int = 0,
        every: int = 1,
        prior: int = 0,
    ) -> None:
        super().__init__()
        self.rule, self.place = RULES[rule], place
        self.names = self.rule.names[spelling % len(self.rule.names)]
        self.every, self.called, self.tracks, self.convention = every, 0, True, convention
        self.scale = nn.Parameter(torch.ones(channels))
        self.offset = nn.Parameter(torch.zeros(channels))
        starts = [torch.full((channels,), start) for start in self.rule.starts]
        if rule == "whitening":
            starts[1] = torch.eye(channels)
        self._keep(starts)
        if rate is None:
            self.seen: Any = prior
        elif convention == "buffer":
            self.register_buffer("rate", torch.tensor(rate))
        else:
            self.set_rate(rate)
        if convention == "lie":
            self.momentum = 0.99 if rate == 0.1 else 0.1

    # the rate

    def set_rate(self, rate: float) -> None:
        key, past = CONVENTIONS[self.convention]
        if key:
            setattr(self, key, 1 - rate if past else rate)
        else:
            type(self).share = rate

    def new_share(self) -> Any:
        if hasattr(self, "seen"):
            self.seen += 1
            return 1 / self.seen
        key, past = CONVENTIONS[self.convention]
        value = getattr(self, key) if key else type(self).share
        return 1 - value if past else value

    # the state

    def _keep(self, starts: list[Tensor]) -> None:
        named = dict(zip(self.names, starts, strict=True))
        match self.place:
            case "stacked":
                self.register_buffer("stats", torch.stack(starts))
            case "list":
                self.stats = starts
            case "tuple":
                self.stats = tuple(starts)
            case "dict":
                self.stats = named
            case "helper":
                self.tracker: Any = Tracker(named)
            case "namespace":
                self.tracker = SimpleNamespace(**named)
            case "attribute":
                for name, start in named.items():
                    setattr(self, name, start)
            case "parameter":
                for name, start in named.items():
                    setattr(self, name, nn.Parameter(start, requires_grad=False))
            case "children":
                for name, start in named.items():
                    setattr(self, name, Average(start))
            case _:
                for name, start in named.items():
                    self.register_buffer(name, start, persistent=self.place != "not saved")

    def state(self) -> Values:
        match self.place:
            case "stacked" | "list" | "tuple":
                return tuple(self.stats)
            case "dict":
                return tuple(self.stats[name] for name in self.names)
            case "helper" | "namespace":
                return tuple(getattr(self.tracker, name) for name in self.names)
            case "children":
                return tuple(getattr(self, name).value for name in self.names)
        return tuple(getattr(self, name) for name in self.names)

    def move(self, state: Values) -> None:
        """Take over a new state, in the way of the place."""
        match self.place:
            case "stacked":
                self.stats = torch.stack(state)
            case "list":
                self.stats[:] = state
            case "tuple":
                self.stats = state
            case _:
                for name, new in zip(self.names, state, strict=True):
                    self._move_one(name, new)

    def _move_one(self, name: str, new: Tensor) -> None:
        match self.place:
            case "dict":
                self.stats[name] = new
            case "helper" | "namespace":
                setattr(self.tracker, name, new)
            case "children":
                getattr(self, name).value.copy_(new)
            case "data":
                getattr(self, name).data = new
            case "in place":
                getattr(self, name).copy_(new)
            case "parameter":
                getattr(self, name).data.copy_(new)
            case _:
                setattr(self, name, new)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        self.called += 1
        if not self.tracks or self.called % self.every:
            return
        share, values, moved = self.new_share(), _rows(x.detach()), list(self.state())
        for k in range(len(moved)):  # one after the other: the second may read the first
            new = self.rule.measure(values, tuple(moved))[k]
            moved[k] = (1 - share) * moved[k] + share * new
        self.move(tuple(moved))

    # the layer

    def forward(self, x: Tensor) -> Tensor:
        state = tuple(each.clone() for each in self.state())
        if not self.training:
            y = self.rule.apply(x, state)
        else:
            measured = self.rule.measure(_rows(x), state)
            y = (self.rule.used or _as_measured(self.rule))(x, measured, state)
            self.update(x)
        return _row(self.scale, x) * y + _row(self.offset, x)


def _as_measured(rule: Rule) -> Callable[[Tensor, Values, Values], Tensor]:
    return lambda x, measured, state: rule.apply(x, measured)


def own_norm(name: str, **choices: Any) -> Callable[[int], OwnNorm]:
    """A class of this name; it makes a layer of so many channels."""
    made = type(name, (OwnNorm,), {})
    return lambda channels: made(channels, **choices)
