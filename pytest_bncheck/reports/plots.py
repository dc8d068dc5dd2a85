"""Plots of a check as shapes in pixels, which the page's template writes as SVG.

Every plot is about as wide as a telephone shows it, so that its letters stay as large there.
A shape has words of the page's style for its colour and stroke, and so follows a light or dark
theme.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from pytest_bncheck.wording import number

WIDTH, HEIGHT = 340, 200
"""Size of a plot in CSS pixels, before the page scales it."""

LEFT, RIGHT, TOP, BOTTOM = 46, 264, 10, 162
"""Edges of the axes. To the right of them stand the names of lines, beside their ends."""

LARGEST = 1e30
"""Beyond it a value is not drawn: axes compute with it."""

LINE = 13
"""Distance of two lines of text."""

Points = Iterable[tuple[float, float]]
"""Pairs (x, y)."""


class Scale(NamedTuple):
    """An axis: from values to pixels.

    Attributes
    ----------
    low, high
        The values at its ends; both above 0 if it is logarithmic.
    start, end
        The pixels there.
    is_log
        Whether equal ratios lie equally far apart, and not equal differences.
    """

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    @classmethod
    def around(
        cls, values: Iterable[float], start: float, end: float, *, margin: float, is_log: bool
    ) -> Scale:
        """An axis over all values, and a share of their range more at both ends."""
        inner = [math.log10(value) if is_log else value for value in values]
        low, high = min(inner), max(inner)
        room = margin * (high - low)
        if room <= 1e-9 * max(abs(low), abs(high)):  # equal values, or nearly
            room = max(abs(low), abs(high)) / 10 or 1.0
        low, high = low - room, high + room
        if is_log:
            low, high = max(10.0**low, sys.float_info.min), 10.0**high
        return cls(low, high, start, end, is_log)

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        place, low, high = (
            math.log10(each) if self.is_log else each for each in (value, self.low, self.high)
        )
        return self.start + (place - low) / (high - low) * (self.end - self.start)

    def ticks(self, spaces: int = 4) -> list[float]:
        """Round values on the axis, with at most so many spaces between them."""
        return self._decades(spaces) if self.is_log else self._multiples(spaces)

    def _multiples(self, spaces: int) -> list[float]:
        at_least = (self.high - self.low) / spaces
        unit = 10.0 ** math.floor(math.log10(at_least))
        step = next(unit * each for each in (1, 2, 2.5, 5, 10) if unit * each >= 0.999 * at_least)
        first, last = math.ceil(self.low / step - 1e-6), math.floor(self.high / step + 1e-6)
        return [step * k for k in range(first, last + 1)]

    def _decades(self, spaces: int) -> list[float]:
        first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
        if last <= first:
            mantissas = (each * 10.0**k for k in range(first - 1, last + 1) for each in (1, 2, 5))
            return [each for each in mantissas if self.low <= each <= self.high]
        every = math.ceil((last - first) / spaces)
        return [10.0**k for k in range(first, last + 1, every)]


class Plot:
    """Axes and what is drawn in them.

    Attributes
    ----------
    lines
        Their style and their points, as SVG writes them.
    dots
        Style, x, y and radius.
    texts
        Style, x, y and words. ``end`` and ``middle`` in a style say what of them is at x.
    """

    def __init__(self, x: Scale, y: Scale, name: str) -> None:
        self.x, self.y = x, y
        self.lines: list[tuple[str, str]] = []
        self.dots: list[tuple[str, str, str, str]] = []
        self.texts: list[tuple[str, str, str, str]] = []
        ticks = y.ticks()
        for tick, label in zip(ticks, _labels(ticks), strict=True):
            self.across("grid", tick)
            self.text("end", LEFT - 7, y(tick), label)
        self.text("middle", (LEFT + RIGHT) / 2, BOTTOM + 30, name)

    def ticks(self, labels: Mapping[float, str], chosen: float | None = None) -> None:
        """Mark values of x; one of them stands out."""
        for value, label in labels.items():
            place = self.x(value)
            self._line("grid", [(place, BOTTOM), (place, BOTTOM + 3)])
            self.text("middle" + " good" * (value == chosen), place, BOTTOM + 13, label)

    def line(self, style: str, points: Points) -> None:
        """A line through points."""
        self._line(style, ((self.x(x), self.y(y)) for x, y in points))

    def across(self, style: str, value: float) -> None:
        """A line over the whole width."""
        self._line(style, [(LEFT, self.y(value)), (RIGHT, self.y(value))])

    def points(self, style: str, points: Points, radius: float) -> None:
        """A dot at each point."""
        self.dots += [
            (style, f"{self.x(x):.1f}", f"{self.y(y):.1f}", f"{radius:.1f}") for x, y in points
        ]

    def text(self, style: str, x: float, y: float, words: str) -> None:
        """Words at a place in pixels, half of their height above it."""
        self.texts.append((style, f"{x:.1f}", f"{y + 3.5:.1f}", words))

    def names(self, names: Iterable[tuple[float, str, str]]) -> None:
        """Write names (value, words, style) of lines beside their ends, apart from each other."""
        lowest_first = sorted((-self.y(value), words, style) for value, words, style in names)
        places: list[float] = []
        for height, _, _ in lowest_first:
            places.append(min([-height, *(place - LINE for place in places[-1:])]))
        excess = max(0.0, TOP - min(places, default=TOP))
        for (_, words, style), place in zip(lowest_first, places, strict=True):
            self.text(style, RIGHT + 8, place + excess, words)

    def _line(self, style: str, points: Points) -> None:
        self.lines.append((style, " ".join(f"{x:.1f},{y:.1f}" for x, y in points)))


# the plots --------------------------------------------------------------------------------------


def training(losses: Sequence[Any], modes: Mapping[str, Any]) -> Plot:
    """The loss of every training step, and then of each mode.

    Parameters
    ----------
    losses, modes
        As in the JSON report; what is not a finite number is left out.
    """
    points = [(step, loss) for step, loss in enumerate(losses, 1) if drawable(loss)]
    ends = {name: loss for name, loss in modes.items() if drawable(loss)}
    values = [loss for _, loss in points] + list(ends.values())
    is_log = min(values) > 0 and max(values) / min(values) > 30
    steps, last = len(losses), len(losses) + 1
    x = Scale(0.5 if steps == 1 else 1, last, LEFT, RIGHT)
    y = Scale.around(values, BOTTOM, TOP, margin=0.08, is_log=is_log)
    plot = Plot(x, y, "training step")
    plot.ticks(_whole(tick for tick in x.ticks() if tick <= steps))
    plot.line("train", points)
    if len(points) == 1:
        plot.points("train", points, 2.5)
    styles = {"training": "train", "eval": "bad"}
    for name, loss in ends.items():
        plot.points(styles.get(name, ""), [(last, loss)], 2.5)
    plot.names((loss, name, styles.get(name, "")) for name, loss in ends.items())
    return plot


def depth(distortions: Sequence[Any], limit: float) -> Plot:
    """The distortion of each layer, in the order in which they run, with the limit."""
    finite = [value for value in distortions if drawable(value)]
    bottom, top = limit / 100, 1.6 * max([limit, *finite])
    count = max(len(distortions), 1)
    x = Scale(0.5, count + 0.5, LEFT, RIGHT)
    plot = Plot(x, Scale(bottom, top, BOTTOM, TOP, is_log=True), "layer, first to last")
    plot.ticks(_whole(x.ticks(6)))
    for place, value in enumerate(distortions, 1):
        if value is not None:
            height = min(max(value, bottom), top) if drawable(value) else top
            style = "train" if drawable(value) and value <= limit else "bad"
            plot.line(f"{style} stem", [(place, bottom), (place, height)])
            plot.points(style, [(place, height)], max(1.0, min(2.5, 75 / count)))
    plot.across("ink dashed", limit)
    plot.names([(limit, f"limit {_label(limit)}", "ink")])
    return plot


def samples(drawn: Mapping[str, Any]) -> Plot:
    """Outputs of single samples, eval against training mode; equal ones lie on the diagonal."""
    same = drawn["same_decision"] or [True] * len(drawn["train"])
    points: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for kept, train, evaluated in zip(same, drawn["train"], drawn["eval"], strict=True):
        pairs = zip(train, evaluated, strict=True)
        points[kept] += [(x, y) for x, y in pairs if drawable(x) and drawable(y)]
    values = [value for some in points.values() for pair in some for value in pair] or [0.0]
    x = Scale.around(values, LEFT, RIGHT, margin=0.06, is_log=False)
    plot = Plot(x, Scale(x.low, x.high, BOTTOM, TOP), "output in training mode")
    ticks = x.ticks()
    plot.ticks(dict(zip(ticks, _labels(ticks), strict=True)))
    plot.line("ink dashed", [(x.low, x.low), (x.high, x.high)])
    plot.points("train seen-through", points[True], 2.5)
    plot.points("bad seen-through", points[False], 2.5)
    for row, words in enumerate(("output in", "eval mode")):
        plot.text("", RIGHT + 8, TOP + 5 + LINE * row, words)
    return plot


def updates(points: Points, limit: float, floor: Any, chosen: int | None) -> Plot:
    """The predicted gap against further updates, with the limit and the number that suffices."""
    ordered = sorted(points)
    last = ordered[-1][0]
    plot = _gaps(ordered, (0, last), limit, floor, chosen, "further updates")
    ends = [end for end in (0, last) if chosen is None or abs(end - chosen) > last / 5]
    plot.ticks(_whole(ends if chosen is None else sorted([*ends, chosen])), chosen)
    return plot


def momenta(
    points: Sequence[Mapping[str, Any]], limit: float, floor: Any, chosen: float | None
) -> Plot:
    """The predicted gap against the momentum, had the same steps been made with it."""
    ordered = sorted(points, key=lambda point: point["update_rate"])
    line = [(place, point["gap"]) for place, point in enumerate(ordered)]
    names = [point["momentum"] for point in ordered]
    mark = names.index(chosen) if chosen in names else None
    ends = -0.3, len(names) - 0.7
    plot = _gaps(line, ends, limit, floor, mark, "momentum, longest memory first")
    every = -(-len(names) // 6)  # labels that fit
    plot.ticks(
        {k: f"{name:g}" for k, name in enumerate(names) if k % every == 0 or k == mark}, mark
    )
    return plot


# parts ------------------------------------------------------------------------------------------


def _gaps(
    line: Sequence[tuple[float, Any]],
    ends: tuple[float, float],
    limit: float,
    floor: Any,
    chosen: float | None,
    name: str,
) -> Plot:
    """A line of gaps over their limit, what converged statistics leave, and the proposed point."""
    finite = [(x, y) for x, y in line if drawable(y)]
    top = 1.1 * max([limit, *(y for _, y in finite)])
    plot = Plot(Scale(*ends, LEFT, RIGHT), Scale(0, top, BOTTOM, TOP), name)
    names = [(limit, f"limit {_label(limit)}", "ink")]
    plot.across("ink dashed", limit)
    if drawable(floor):
        plot.across("dotted", floor)
        names.append((floor, "recalibrated", ""))
    plot.line("train", finite)
    plot.points("train", finite, 1.8)
    if chosen is not None:
        plot.line("good", [(chosen, 0), (chosen, top)])
        plot.points("good", [(x, y) for x, y in finite if x == chosen], 3.5)
    plot.names(names)
    return plot


def drawable(value: Any) -> bool:
    """Whether a value of the JSON report is a number that axes can hold."""
    return isinstance(value, (int, float)) and abs(value) <= LARGEST


def _whole(values: Iterable[float]) -> dict[float, str]:
    """Those of the values that are whole numbers, with their names."""
    return {value: f"{value:.0f}" for value in values if value == round(value)}


def _labels(values: Sequence[float]) -> list[str]:
    """Numbers beside an axis, with as many digits as their distance needs."""
    step = min((high - low for low, high in pairwise(values)), default=math.inf)
    for digits in range(3, 12):
        labels = [number(value, f".{digits}g") for value in values]
        if all(
            abs(float(label) - value) < step / 50
            for label, value in zip(labels, values, strict=True)
        ):
            break
    return labels


def _label(value: float) -> str:
    return number(value, ".3g")
