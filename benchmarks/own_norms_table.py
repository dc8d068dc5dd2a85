"""How `own_norms.py` and `own_norms_keras.py` judge the check's answers, and their table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Truth:
    """What plain code measures of a case.

    Attributes
    ----------
    state
        ``"broken"``, ``"healthy"``, or empty where it lies between.
    rates, weights
        Of each layer by hand, where it is broken: α of an update, and what is left of the initial
        value.
    """

    state: str
    rates: dict[str, float | None]
    weights: dict[str, float]


@dataclass
class Row:
    """What came out for one design and memory."""

    right: int = 0
    tried: int = 0
    out: int = 0
    rate: float = 0.0
    weight: float = 0.0


def judge(report: Any, truth: Truth, row: Row) -> str:
    """What is wrong with the check's answer; empty if nothing is."""
    row.tried += 1
    codes = [f"{f.code} ({f.severity})" for f in report.findings]
    if truth.state == "healthy":
        wrong = f"healthy, but {', '.join(codes)}" if codes else ""
    elif codes != ["BN101 (error)"]:
        wrong = f"broken, but {', '.join(codes) or report.verdict}"
    else:
        wrong = _numbers(report, truth, row)
    row.right += not wrong
    return wrong


def _numbers(report: Any, truth: Truth, row: Row) -> str:
    """Whether the layers have the rates and the weights that plain code measures."""
    wrong = []
    for name, weight in truth.weights.items():
        layers = [layer for layer in report.layers if _is_in(layer.name, name)]
        if not layers:
            wrong.append(f"no row for {name}")
        for layer in layers:
            off = abs((layer.initial_weight or 0.0) - weight)
            row.weight = max(row.weight, off)
            if off > 0.02:
                wrong.append(f"{name}: weight {layer.initial_weight}, truth {weight:.4f}")
            rate = truth.rates[name]
            if rate is None:
                continue
            far = abs((layer.update_rate or 0.0) / rate - 1)
            row.rate = max(row.rate, far)
            if far > 0.02:
                wrong.append(f"{name}: rate {layer.update_rate}, truth {rate:.5f}")
    found = report.findings[0]
    missed = [name for name in truth.weights if not any(_is_in(o, name) for o in found.layers)]
    if missed:
        wrong.append(f"{', '.join(missed)} not named")
    return "; ".join(wrong)


def _is_in(name: str, owner: str) -> bool:
    """Whether a layer is this one or a part of it, in PyTorch's and in Keras' way of naming."""
    inside, around = (f".{path}.".replace("/", ".") for path in (name, owner))
    return around in inside


def table(rows: dict[tuple[str, str], Row], fewest: int) -> int:
    """Print a row for each design and memory; 1 where one is wrong, or where they are too few."""
    columns = "{:<32}{:>9}{:>8}{:>8}{:>10}{:>10}{:>10}"
    print(columns.format("design", "memory", "tried", "right", "left out", "rate off", "w0 off"))
    for (name, memory), row in rows.items():
        numbers = f"{row.rate:.4f}", f"{row.weight:.4f}"
        print(columns.format(name, memory, row.tried, row.right, row.out, *numbers))
    tried = sum(row.tried for row in rows.values())
    right = sum(row.right for row in rows.values())
    kinds = sum(row.tried > 0 for row in rows.values())
    print(f"{right} of {tried} right, {kinds} designs and memories")
    return int(right < tried or kinds < fewest)
