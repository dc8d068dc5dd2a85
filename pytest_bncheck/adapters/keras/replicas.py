"""The replicas of a model that TensorFlow trains on several devices: MirroredStrategy.

A check trains and predicts with the first, as on one device, and leaves the others alone. What
each would have made of the statistics is told by its share of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pytest_bncheck.adapters.keras.backends.base import Backend, Variable, to_numpy
from pytest_bncheck.adapters.keras.internals import set_value, uncast_value
from pytest_bncheck.types import Statistics


class Replicas:
    """The replicas of one model.

    Parameters
    ----------
    model
        A built model.
    backend
        The backend that Keras runs on.

    Attributes
    ----------
    count
        Replicas, at least 1.
    """

    def __init__(self, model: Any, backend: Backend) -> None:
        optimizer = getattr(model, "optimizer", None)
        variables = [*model.variables, *model.metrics_variables]
        variables += getattr(optimizer, "variables", [])
        wholes = [(v, uncast_value(v)) for v in variables]
        each = [(v, whole, backend.replicas_of(whole)) for v, whole in wholes]
        # A strategy of one device has variables of its own kind too.
        self._each = {id(v): (v, whole, held) for v, whole, held in each if held[0] is not whole}
        self.count = max((len(held) for _, _, held in self._each.values()), default=1)

    def first_alone(self) -> Callable[[bool], None]:
        """Let the variables be those of the first replica.

        Returns the way back. With `spread` the others get what the first got in the meantime.
        """
        before = []
        for variable, whole, held in self._each.values():
            before.append((variable, whole, held, to_numpy(held[0]).tobytes()))
            set_value(variable, held[0])

        def back(spread: bool) -> None:
            for variable, whole, held, bits in before:
                set_value(variable, whole)
                if spread and to_numpy(held[0]).tobytes() != bits:
                    for other in held[1:]:
                        other.assign(to_numpy(held[0]))

        return back

    def statistics(self, running: Sequence[Variable]) -> list[Statistics]:
        """The running statistics of each replica; empty where there is one."""
        found = []
        for k in range(self.count if self.count > 1 else 0):
            held = [self._each[id(v)][2][k] if id(v) in self._each else v for v in running]
            values = [to_numpy(v).astype("float64").reshape(-1) for v in held]
            found.append(Statistics(tuple(values[0::2]), tuple(values[1::2])))
        return found


def after_shares(
    trained: Statistics, shares: Sequence[Statistics], layers: Sequence[Any], steps: int
) -> list[Statistics]:
    """The running statistics of each replica, had it seen its share of the batch in every step.

    Apart from those of layers with ``synchronized=True``, which normalise over all replicas.

    Parameters
    ----------
    trained
        The statistics after the training with whole batches.
    shares
        Batch statistics of each replica's share.
    """
    found = []
    for share in shares:
        rows: dict[str, list[Any]] = {"mean": [], "var": []}
        for k, layer in enumerate(layers):
            taken_in = 0.0 if getattr(layer, "synchronized", False) else 1 - layer.momentum**steps
            for key, own in rows.items():
                mine = getattr(share, key)[k]
                usual = sum(getattr(each, key)[k] for each in shares) / len(shares)
                own.append(getattr(trained, key)[k] + taken_in * (mine - usual))
        found.append(Statistics(tuple(rows["mean"]), tuple(rows["var"])))
    return found
