"""The plots of the concept pages, drawn with the formulas that the checks use."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from pytest_bncheck.maths import attribution, distances, predictions, running, settling, verdict
from pytest_bncheck.types import Statistics

INK = "#808080"
"""Readable on a light and on a dark page."""

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pytest-bncheck",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "legend.frameon": False,
}
EPS = 1e-5


def all_plots() -> dict[str, str]:
    """Every plot as SVG, by its path."""
    draws = (forgetting, distortion, projection, judged, shares, starts)
    return {f"plots/{draw.__name__}.svg": _svg(draw) for draw in draws}


def _svg(draw: Callable[[Any], None]) -> str:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        draw(figure.add_subplot())
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue()


def forgetting(axes: Any) -> None:
    """Weight of the initial value against updates."""
    updates = np.unique(np.geomspace(1, 1000, 200).astype(int))
    for rate, label in ((0.01, "Keras 0.99, torch 0.01"), (0.1, "Keras 0.9, torch 0.1")):
        weights = [running.remaining_weight(rate, int(t)) for t in updates]
        (line,) = axes.plot(updates, weights, label=label)
        settled = running.updates_until(rate, running.SETTLED)
        axes.axvline(settled, color=line.get_color(), linestyle=":", linewidth=1)
        axes.text(settled, 0.7, f" {settled}", color=line.get_color())
    weight = running.remaining_weight(0.01, 5)
    axes.plot(5, weight, "o", color="C0")
    axes.annotate(f"5 updates: {100 * weight:.1f} %", (5, weight), (6, 0.97), color="C0")
    axes.set(xscale="log", xlabel="updates", ylabel="weight of the initial value")
    axes.legend(loc="lower left")


def distortion(axes: Any) -> None:
    """Distortion of one channel while its running statistics leave 0 and 1."""
    updates = np.arange(1, 601)
    start, batch = _channel(0.0, 1.0), _channel(3.0, 4.0)
    for rate, label in ((0.01, "α = 0.01"), (0.1, "α = 0.1")):
        found = [
            distances.distortion(
                running.project(start, batch, [running.remaining_weight(rate, int(t))]),
                batch,
                [EPS],
            )[0]
            for t in updates
        ]
        axes.plot(updates, found, label=label)
    axes.axhline(0.1, color=INK, linestyle=":", linewidth=1)
    axes.text(600, 0.11, "limit 0.10", ha="right", va="bottom")
    axes.set(yscale="log", xlabel="updates", ylabel="distortion D (standard deviations)")
    axes.set(ylim=(1e-3, 4))
    axes.legend()


def projection(axes: Any) -> None:
    """Statistics measured after 5 updates, projected to more of them."""
    rate, measured = 0.01, 5
    start, batch = _channel(0.0, 1.0), _channel(3.0, 4.0)
    now = running.project(start, batch, [running.remaining_weight(rate, measured)])
    planned = np.arange(measured, 801)
    for k, name in enumerate(("mean", "variance")):
        values = [
            (p.mean if k == 0 else p.var)[0][0]
            for p in (
                running.project(
                    now, batch, [running.remaining_share(rate, measured, int(t) - measured)]
                )
                for t in planned
            )
        ]
        (line,) = axes.plot(planned, values, label=f"running {name}")
        axes.plot(measured, values[0], "o", color=line.get_color())
        axes.axhline(values[-1], color=line.get_color(), linestyle=":", linewidth=1)
    axes.annotate("measured after 5 updates", (measured, 0.2), (60, 0.1))
    axes.set(xlabel="planned updates P", ylabel="running statistic")
    axes.legend(loc="center right")


def judged(axes: Any) -> None:
    """The verdict over gap and distortion, where the decisions suffer."""
    grid = np.geomspace(0.01, 3, 160)
    levels = {"healthy": 0, "degraded": 1, "broken": 2}
    converged = verdict.Scores(gap=0.0, distortion=0.0, accuracy=1.0)
    field = np.array(
        [
            [
                levels[
                    verdict.judge(
                        verdict.Scores(gap=g, distortion=d, excess=g, accuracy=0.93),
                        converged,
                        0.25,
                        0.1,
                    )
                ]
                for g in grid
            ]
            for d in grid
        ]
    )
    axes.contourf(
        *(grid, grid, field),
        levels=[-0.5, 0.5, 1.5, 2.5],
        colors=["#b9dfbb", "#ffe3a3", "#f5b5b2"],  # behind black text on any page
    )
    for text, x, y in (("healthy", 0.02, 0.02), ("degraded", 0.02, 0.5), ("broken", 0.8, 0.5)):
        axes.text(x, y, text, color="black")
    axes.set(xscale="log", yscale="log", xlabel="gap", ylabel="distortion D")


def shares(axes: Any) -> None:
    """How the gap of a small net grows on the way from training to eval mode."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(3.0, 2.0, (64, 8))
    weights = [rng.normal(0.0, 0.6, (8, 8)), rng.normal(0.0, 0.6, (8, 3))]

    def moments(values: Any) -> tuple[Any, Any]:
        return values.mean(axis=0), values.var(axis=0)

    def normal(values: Any, mean: Any, var: Any) -> Any:
        return (values - mean) / np.sqrt(var + EPS)

    def net(statistics: Statistics) -> Any:
        hidden = np.maximum(normal(inputs, statistics.mean[0], statistics.var[0]) @ weights[0], 0)
        return normal(hidden, statistics.mean[1], statistics.var[1]) @ weights[1]

    first = moments(inputs)
    second = moments(np.maximum(normal(inputs, *first) @ weights[0], 0))
    batch = Statistics((first[0], second[0]), (first[1], second[1]))
    start = Statistics((np.zeros(8), np.zeros(8)), (np.ones(8), np.ones(8)))
    after = running.project(start, batch, [0.6, 0.6])
    target = {"output": net(batch)}
    alphas = np.linspace(0.0, 1.0, 41)

    def gap(statistics: Statistics) -> float | None:
        return predictions.gap({"output": net(statistics)}, target)

    def only(layer: int, statistics: Statistics) -> Statistics:
        kept = [statistics if k == layer else batch for k in range(2)]
        return Statistics(
            tuple(each.mean[k] for k, each in enumerate(kept)),
            tuple(each.var[k] for k, each in enumerate(kept)),
        )

    way = [attribution.along(after, batch, [EPS, EPS], float(a)) for a in alphas]
    axes.plot(alphas, [gap(s) for s in way], label="both layers")
    for k in range(2):
        axes.plot(alphas, [gap(only(k, s)) for s in way], "--", label=f"layer {k + 1} alone")
    axes.set(xlabel="share α of the distortion", ylabel="gap")
    axes.legend()


def _channel(mean: float, variance: float) -> Statistics:
    return Statistics((np.array([mean]),), (np.array([variance]),))


def starts(axes: Any) -> None:
    """State after a training pass against the state before it, and what three starts tell."""
    batch, state = 2.0, 0.6
    before = np.linspace(-0.2, 2.6, 50)
    axes.plot(before, before, color=INK, linestyle=":", label="settled")
    for color, alpha in (("C0", 0.5), ("C1", 0.1)):
        after = before + alpha * (batch - before)
        some = [np.array([s]) for s in (state, 0.0, float(settling.away(np.array([state]))[0]))]
        ends = [s + alpha * (batch - s) for s in some]
        rate = settling.rate(some, ends, 1e-7)
        label = "no average" if rate is None else f"measured rate {rate:.2g}"
        axes.plot(before, after, color=color, label=label)
        axes.plot(np.concatenate(some), np.concatenate(ends), "o", color=color)
        if rate is not None:
            reached = settling.settled(some[0], ends[0], rate)
            axes.plot(reached, reached, "s", color=INK)
    axes.set(xlabel="state before a training pass", ylabel="state after it")
    axes.legend(loc="upper left")
