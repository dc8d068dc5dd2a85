"""Tensors that training moves besides the statistics of known layers: log, read, write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pytest_bncheck.adapters.attributes import PlainAttributes
from pytest_bncheck.adapters.random_state import RandomState, seed_everything
from pytest_bncheck.adapters.states import MOST_LOGGED
from pytest_bncheck.adapters.torch.buffers import (
    Buffers,
    Place,
    assign,
    held,
    parameter_places,
    places,
)
from pytest_bncheck.adapters.torch.data import dense, dtype_name, fill, on_host
from pytest_bncheck.adapters.torch.layers import Layers
from pytest_bncheck.adapters.torch.modes import Watch
from pytest_bncheck.adapters.torch.state import equal, is_readable, is_sharded, overwrite
from pytest_bncheck.maths.settling import SELDOM
from pytest_bncheck.types import Moved, Prediction, State

if TYPE_CHECKING:
    from pytest_bncheck.types import Array


class States:
    """What a forward can change, of no known layer: buffers, attributes, what containers hold.

    Parameters
    ----------
    model, layers
        The user's model, and its known layers.
    paths
        The path of each module in the model.
    """

    def __init__(self, model: nn.Module, layers: Layers, paths: Mapping[nn.Module, str]) -> None:
        self._model, self._layers, self._paths = model, layers, paths
        self._places: list[Place] = []
        self._log: list[list[Tensor]] = []
        self._moved: list[list[Tensor]] = []
        self._calls: Counter[nn.Module] = Counter()
        self._rehearsed: dict[str, Tensor] = {}
        self._as_rehearsed: dict[str, Tensor] = {}

    def begin(self) -> None:
        """Remember the values before the first training step."""
        self._places = self._candidates()
        self._log, self._moved, self._calls = [self._now()], [], Counter()
        self._keeps = sum(tensor.numel() for tensor in self._log[0]) <= MOST_LOGGED

    def add(self, ran: Watch) -> None:
        """Log a training step, without a transfer from the device."""
        self._calls.update(ran.calls)
        if not self._moved:
            self._add_new()
        now, before = self._now(), self._log[-1]
        names = [name for name, _, _ in self._places]
        self._as_rehearsed = {
            name: equal_if_alike(value, self._rehearsed[name])
            for name, value in zip(names, now, strict=True)
            if name in self._rehearsed
        }
        self._rehearsed = {}
        self._moved.append([~equal_if_alike(a, b) for a, b in zip(now, before, strict=True)])
        if self._keeps or len(self._log) == 1:
            self._log.append(now)
        else:
            self._log[-1] = now

    def rehearsed(self) -> None:
        """Remember what a pass before the next training step made of the states."""
        names = (name for name, _, _ in self._places)
        self._rehearsed = dict(zip(names, self._now(), strict=True))

    def _add_new(self) -> None:
        """Take in what the first step made; its values then count as those at the start."""
        known = {name for name, _, _ in self._places}
        for name, owner, key in self._candidates():
            if name not in known:
                self._places.append((name, owner, key))
                self._log[0].append(held(owner, key).detach().clone())

    def _candidates(self) -> list[Place]:
        """Where floating tensors are, without the statistics of PyTorch's own layers."""
        own = {
            (id(owner), key)
            for name, owner, key in self._layers.places()
            if self._layers.rates.is_stock(name.rpartition(".")[0])
        }
        frozen = [
            place for place in parameter_places(self._model) if not held(*place[1:]).requires_grad
        ]
        if sum(held(*place[1:]).numel() for place in frozen) > MOST_LOGGED:
            frozen = []  # a backbone
        return [
            (name, owner, key)
            for name, owner, key in (*places(self._model), *frozen)
            if _floats(held(owner, key)) and (id(owner), key) not in own
        ]

    def seldom(self) -> list[str]:
        """Names of the known layers whose statistics did not move in every few steps.

        What they do in one call tells nothing then, and they are no known layers.
        """
        steps, moves = len(self._moved), self._moves()
        counts = {name: moved for (name, _, _), moved in zip(self._places, moves, strict=True)}
        return [
            name
            for name in self._layers.modules
            if 1 < counts.get(f"{name}.running_mean", 0) < SELDOM * steps
        ]

    def found(self) -> list[State]:
        """The states that training moved; without training all of them."""
        known = {(id(owner), key) for _, owner, key in self._layers.places()}
        moves = self._moves()
        found = [
            k
            for k, (_, owner, key) in enumerate(self._places)
            if (id(owner), key) not in known
            and (moves[k] or not self._moved)
            and _floats(held(owner, key))
            and held(owner, key).shape == self._log[0][k].shape
        ]
        names = [self._places[k][0] for k in found]
        logs = self._logs(found)
        as_in_pass = self._repeated(names)
        return [
            self._state(k, moves[k], log, name in as_in_pass)
            for k, name, log in zip(found, names, logs, strict=True)
        ]

    def _logs(self, found: Sequence[int]) -> list[list[Array]]:
        """The values of some states at the start, after each step if they are kept, and now."""
        now = {k: held(*self._places[k][1:]) for k in found}
        rows = [[*(step[k] for step in self._log), now[k]] for k in found]
        values = iter(on_host([dense(tensor).reshape(-1) for row in rows for tensor in row]))
        return [[next(values) for _ in row] for row in rows]

    def _repeated(self, names: Collection[str]) -> set[str]:
        """Those of some states that the pass before the last step moved as the step did."""
        compared = [name for name in names if name in self._as_rehearsed]
        same = on_host([self._as_rehearsed[name] for name in compared])
        return {name for name, each in zip(compared, same, strict=True) if each}

    def _moves(self) -> list[int]:
        if not self._moved or not self._places:
            return [0] * len(self._places)
        home = self._log[0][0].device
        flags = torch.stack([torch.stack([f.to(home) for f in step]) for step in self._moved])
        return [int(count) for count in flags.sum(0).tolist()]

    def _state(self, k: int, moved: int, values: list[Array], as_in_pass: bool) -> State:
        name, owner, key = self._places[k]
        module, dtype = self._owner(name, owner), held(owner, key).dtype
        return State(
            name=name,
            owner=self._paths.get(module, ""),
            type=type(module).__name__,
            start=values[0] if self._moved else None,
            stop=values[-1],
            log=values[1:-1] if self._moved and self._keeps else (),
            moves=moved,
            calls=self._calls[module],
            as_in_pass=as_in_pass,
            resolution=torch.finfo(dtype).eps,
            dtype=dtype_name(dtype),
        )

    def _owner(self, name: str, owner: object) -> nn.Module:
        """The module that a state hangs on, perhaps through containers."""
        if isinstance(owner, nn.Module):
            return owner
        inside = [m for m, path in self._paths.items() if not path or name.startswith(f"{path}.")]
        return max(inside, key=lambda module: len(self._paths[module]), default=self._model)

    # values ---------------------------------------------------------------------------------------

    def read(self, names: Collection[str] | None = None) -> dict[str, Array]:
        """Values of some states now, or of all."""
        wanted = self._with_tensors(names)
        values = on_host([dense(held(owner, key)).reshape(-1) for _, owner, key in wanted])
        return {name: row for (name, _, _), row in zip(wanted, values, strict=True)}

    def write(self, values: Mapping[str, Array]) -> None:
        """Set some states."""
        wanted = self._with_tensors(values)
        tensors = [held(owner, key) for _, owner, key in wanted]
        fill(tensors, [values[name] for name, _, _ in wanted])

    def _with_tensors(self, names: Collection[str] | None) -> list[Place]:
        """The places of some states, or of all, that still hold one: a step can delete a buffer."""
        return [
            place
            for place in self._places
            if (names is None or place[0] in names) and isinstance(held(*place[1:]), Tensor)
        ]

    def run(
        self,
        one: Callable[[], Prediction | None],
        states: Mapping[str, Array] | None,
        passes: int,
        seed: int,
    ) -> Moved:
        """See `Stateful.train_from`; `one` is a pass, and `seed` is sown before the first."""
        __tracebackhide__ = True
        random, watch, prediction = RandomState.capture(), Watch(), None
        try:
            with self.kept():
                self.write(states or {})
                seed_everything(seed)
                with watch.open():
                    for _ in range(passes):
                        prediction = one()
                ends = self.read()
        finally:
            random.restore()
        calls = {name: watch.calls[self._owner(name, owner)] for name, owner, _ in self._places}
        return Moved(prediction, ends, {name: n // passes for name, n in calls.items()})

    def trained(self) -> Callable[[], None]:
        """What gives the model its parameters and all that training moved, after a restore."""
        tensors = [
            (owner, key, held(owner, key).detach().clone())
            for _, owner, key in (*places(self._model), *parameter_places(self._model))
        ]
        moved = {self._owner(name, owner) for name, owner, _ in self._places}
        rows = [(module, path) for module, path in self._paths.items() if module in moved]
        plain = PlainAttributes(rows, without={"training"})

        def put() -> None:
            for owner, key, values in tensors:
                now = held(owner, key)
                if isinstance(now, Tensor) and now.shape == values.shape:
                    overwrite(now.data, values)
                else:
                    assign(owner, key, values)
            plain.put_back()

        return put

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Every tensor and plain attribute ends as it began."""
        plain = PlainAttributes(self._paths.items(), without={"training"})
        with self.tensors_kept():
            try:
                yield
            finally:
                plain.put_back()

    @contextmanager
    def tensors_kept(self) -> Iterator[None]:
        """Every tensor ends as it began."""
        tensors = Buffers((*places(self._model), *parameter_places(self._model)))
        try:
            yield
        finally:
            tensors.put_back()

    def _now(self) -> list[Tensor]:
        """Copies of all values; nothing where a place holds no tensor any more."""
        return [
            value.detach().clone() if _floats(value := held(owner, key)) else torch.empty(0)
            for _, owner, key in self._places
        ]


def equal_if_alike(one: Tensor, other: Tensor) -> Tensor:
    """Whether two tensors hold the same, still on the device; never where the shapes differ."""
    if one.shape != other.shape:
        return torch.zeros((), dtype=torch.bool, device=one.device)
    return equal(one, other)


def _floats(value: object) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point() or is_sharded(value):
        return False
    return value.layout is torch.strided and is_readable(value) and value.numel() > 0
