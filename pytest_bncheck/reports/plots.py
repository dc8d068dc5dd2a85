"""Plots of a check as SVG that takes its colours from the page around it.

Every plot is drawn about as wide as a telephone shows it, so that its letters stay as large
there. Its colours are variables of the page's style, and so follow a light or dark theme.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import blended_transform_factory

from pytest_bncheck.wording import number

WIDTH, HEIGHT = 340, 200
"""Size of a plot in CSS pixels, before the page scales it."""

LEFT, RIGHT, TOP, BOTTOM = 46, 76, 10, 38
"""Margins around the axes. The right one holds the names of lines, beside their ends."""

LARGEST = 1e30
"""Beyond it a value is not drawn: axes compute with it."""

LINE = 13
"""Distance of two lines of text."""

# Colours that no plot would use by chance; each stands for a variable of the page's style.
INK, MUTED, GRID, TRAIN, BAD, GOOD = (f"#01020{k}" for k in range(1, 7))
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    TRAIN: "var(--train)",
    BAD: "var(--fail)",
    GOOD: "var(--pass)",
}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # letters stay letters, in the page's font
    "font.size": 10.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 1.0,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.markeredgewidth": 0.0,
}

DASHED, DOTTED = (0, (4, 3)), (0, (1, 2))

Series = Sequence[tuple[float, float]]
"""Points (x, y)."""


def training(losses: Sequence[Any], modes: Mapping[str, Any], salt: str) -> str:
    """The loss of every training step, and then of each mode.

    Parameters
    ----------
    losses, modes
        As in the JSON report; what is not a finite number is left out.
    salt
        Tells the plot's internal names from those of other plots of the page.
    """
    points = [(step, loss) for step, loss in enumerate(losses, 1) if drawable(loss)]
    ends = {name: loss for name, loss in modes.items() if drawable(loss)}
    values = [loss for _, loss in points] + list(ends.values())
    with _plot() as (figure, axes):
        last = len(losses) + 1
        axes.plot(*zip(*points, strict=True), color=TRAIN, marker="o" if len(points) == 1 else "")
        colours = {"training": TRAIN, "eval": BAD}
        for name, loss in ends.items():
            axes.plot([last], [loss], "o", color=colours.get(name, MUTED), clip_on=False)
        if min(values) > 0 and max(values) / min(values) > 30:
            _log_axis(axes)
        else:
            axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.margins(y=0.08)
        axes.set_xlim(0.5 if len(losses) == 1 else 1, last)
        ticks = MaxNLocator(5, integer=True).tick_values(1, len(losses))
        axes.set_xticks([tick for tick in ticks if 1 <= tick <= len(losses)])
        axes.set_xlabel("training step")
        _name_lines(
            axes,
            [(loss, name, colours.get(name, MUTED)) for name, loss in ends.items()],
        )
        return _svg(figure, salt)


def depth(distortions: Sequence[Any], limit: float, salt: str) -> str:
    """The distortion of each layer, in the order in which they run, with the limit."""
    finite = [value for value in distortions if drawable(value)]
    bottom, top = limit / 100, 1.6 * max([limit, *finite])
    size = max(2.0, min(5.0, 150 / max(len(distortions), 1)))
    with _plot() as (figure, axes):
        _log_axis(axes)
        axes.set_ylim(bottom, top)
        for over, colour in ((False, TRAIN), (True, BAD)):
            places, heights = [], []
            for place, value in enumerate(distortions, 1):
                if value is not None and over is not (drawable(value) and value <= limit):
                    places.append(place)
                    heights.append(min(max(value, bottom), top) if drawable(value) else top)
            axes.vlines(places, bottom, heights, color=colour, linewidth=0.3 * size, alpha=0.3)
            axes.plot(places, heights, "o", color=colour, markersize=size, clip_on=False)
        axes.axhline(limit, color=INK, linewidth=1.0, linestyle=DASHED)
        axes.set_xlim(0.5, max(len(distortions), 1) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.set_xlabel("layer, first to last")
        _name_lines(axes, [(limit, f"limit {_label(limit)}", INK)])
        return _svg(figure, salt)


def samples(drawn: Mapping[str, Any], salt: str) -> str:
    """Outputs of single samples, eval against training mode; equal ones lie on the diagonal."""
    same = drawn["same_decision"] or [True] * len(drawn["train"])
    points: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for kept, train, evaluated in zip(same, drawn["train"], drawn["eval"], strict=True):
        pairs = zip(train, evaluated, strict=True)
        points[kept] += [(x, y) for x, y in pairs if drawable(x) and drawable(y)]
    with _plot() as (figure, axes):
        for kept, colour in ((True, TRAIN), (False, BAD)):
            if points[kept]:
                axes.plot(
                    *zip(*points[kept], strict=True),
                    "o",
                    color=colour,
                    markersize=5,
                    alpha=0.6,
                )
        values = [value for some in points.values() for pair in some for value in pair] or [0.0]
        low, high = min(values), max(values)
        margin = 0.06 * (high - low) or abs(high) or 1.0
        bounds = low - margin, high + margin
        axes.set(xlim=bounds, ylim=bounds)
        axes.plot(bounds, bounds, color=INK, linewidth=1.0, linestyle=DASHED)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(4))
            axis.set_major_formatter(FuncFormatter(_label))
        axes.set_xlabel("output in training mode")
        axes.text(
            1.04,
            0.98,
            "output in\neval mode",
            transform=axes.transAxes,
            va="top",
            color=MUTED,
            linespacing=1.3,
        )
        return _svg(figure, salt)


def updates(points: Series, limit: float, floor: Any, chosen: int | None, salt: str) -> str:
    """The predicted gap against further updates, with the limit and the number that suffices."""
    points = sorted(points)
    with _plot() as (figure, axes):
        _gap_axis(axes, points, limit, floor)
        last = points[-1][0]
        axes.set_xlim(0, last)
        _mark(axes, points, chosen)
        ends = [end for end in (0, last) if chosen is None or abs(end - chosen) > last / 5]
        axes.set_xticks(ends if chosen is None else sorted([*ends, chosen]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
        _emphasise(axes, chosen)
        axes.set_xlabel("further updates")
        return _svg(figure, salt)


def momenta(
    points: Sequence[Mapping[str, Any]], limit: float, floor: Any, chosen: float | None, salt: str
) -> str:
    """The predicted gap against the momentum, had the same steps been made with it."""
    ordered = sorted(points, key=lambda point: point["update_rate"])
    line = [(place, point["gap"]) for place, point in enumerate(ordered)]
    names = [point["momentum"] for point in ordered]
    mark = names.index(chosen) if chosen in names else None
    with _plot() as (figure, axes):
        _gap_axis(axes, line, limit, floor)
        axes.set_xlim(-0.3, len(names) - 0.7)
        _mark(axes, line, mark)
        every = -(-len(names) // 6)  # labels that fit
        labelled = [k for k in range(len(names)) if k % every == 0 or k == mark]
        axes.set_xticks(labelled, [f"{names[k]:g}" for k in labelled])
        _emphasise(axes, mark)
        axes.set_xlabel("momentum, longest memory first")
        return _svg(figure, salt)


# parts ------------------------------------------------------------------------------------------


@contextmanager
def _plot() -> Iterator[tuple[Figure, Axes]]:
    """A figure with axes of the common style."""
    across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    place = LEFT / WIDTH, BOTTOM / HEIGHT, across / WIDTH, up / HEIGHT
    with mpl.rc_context(_style()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about ranges that odd numbers leave no room in
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72, facecolor="none")
        yield figure, figure.add_axes(place, facecolor="none")


def _log_axis(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(numticks=5))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(_label))


def _gap_axis(axes: Axes, line: Series, limit: float, floor: Any) -> None:
    """A line of gaps over their limit, and what converged statistics leave."""
    finite = [(x, y) for x, y in line if drawable(y)]
    names = [(limit, f"limit {_label(limit)}", INK)]
    if finite:
        axes.plot(*zip(*finite, strict=True), "o-", color=TRAIN, markersize=3.5, clip_on=False)
    axes.axhline(limit, color=INK, linewidth=1.0, linestyle=DASHED)
    if drawable(floor):
        axes.axhline(floor, color=MUTED, linewidth=1.0, linestyle=DOTTED)
        names.append((floor, "recalibrated", MUTED))
    axes.set_ylim(0, 1.1 * max([limit, *(y for _, y in finite)]))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(_label))
    _name_lines(axes, names)


def _mark(axes: Axes, points: Series, chosen: float | None) -> None:
    """The point that is proposed."""
    if chosen is None:
        return
    axes.axvline(chosen, color=GOOD, linewidth=1.2)
    heights = [y for x, y in points if x == chosen and drawable(y)]
    axes.plot([chosen] * len(heights), heights, "o", color=GOOD, markersize=7, clip_on=False)


def _emphasise(axes: Axes, place: float | None) -> None:
    for tick, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True):
        if tick == place:
            label.set(color=GOOD, fontweight="bold")


def _name_lines(axes: Axes, lines: Sequence[tuple[float, str, str]]) -> None:
    """Write the names of lines to the right of their ends, moved apart where they would touch."""
    low, high = axes.transData.transform([(0, y) for y in axes.get_ylim()])[:, 1]
    where = sorted(
        (float(axes.transData.transform((0, y))[1]), text, colour) for y, text, colour in lines
    )
    heights: list[float] = []
    for height, _, _ in where:
        heights.append(max([height, *(h + LINE for h in heights[-1:])]))
    excess = max(0.0, max(heights, default=0.0) - float(high))
    for (_, text, colour), height in zip(where, heights, strict=True):
        axes.text(
            1.04,
            (height - excess - low) / (high - low),
            text,
            transform=blended_transform_factory(axes.transAxes, axes.transAxes),
            color=colour,
            va="center",
        )


def _style() -> dict[Any, Any]:
    """All settings of Matplotlib, so that those of the user's other figures do not matter."""
    usual = {k: v for k, v in dict.items(mpl.rcParamsDefault) if not k.startswith("backend")}
    return {**usual, **STYLE}


def _svg(figure: Figure, salt: str) -> str:
    """The picture as an element to put into a page."""
    file = io.StringIO()
    with mpl.rc_context({**_style(), "svg.hashsalt": salt}):
        figure.savefig(file, format="svg", metadata=dict.fromkeys(["Date", "Creator", "Format"]))
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # the same in every plot
    text = re.sub(r" font-family: [^;]*;| transform=.rotate\(-0[^)]*\).", "", text)
    text = re.sub(r"\s*\n\s*", " ", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    return re.sub(
        r"<svg [^>]*>", f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true">', text, count=1
    )


def drawable(value: Any) -> bool:
    """Whether a value of the JSON report is a number that axes can hold."""
    return isinstance(value, (int, float)) and abs(value) <= LARGEST


def _label(value: float, place: int | None = None) -> str:
    """A number beside an axis; matplotlib gives its place among the ticks too."""
    return number(value, ".3g")
