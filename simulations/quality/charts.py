"""Plots of the quality benchmark as fragments of HTML, in the way of `shared.plots`.

Whose data a row trains on is its colour everywhere, and names stand beside their marks, so no plot needs a key of rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from shared.plots import Point, ticks

#: Least distance between the names beside a plot, in percent of its height.
NAME_DISTANCE = 6.5
#: Least distance sideways of names at one height, in percent of its width.
NAME_WIDTH = 15.0


@dataclass(frozen=True)
class Bar:
    """A mean with its interval. colour: variable of the style sheet."""

    name: str
    value: float
    low: float
    high: float
    colour: str


def bar_chart(bars: Sequence[Bar]) -> str:
    """A line for each bar, from zero, with its interval and its numbers."""
    top = max(bar.high for bar in bars) or 1.0
    lines = ""
    for bar in bars:
        low, value, high = (100 * max(x, 0.0) / top for x in (bar.low, bar.value, bar.high))
        lines += (
            f"<div>{escape(bar.name)}</div>"
            f'<div class="track"><i class="fill" style="width:{value:.2f}%;background:var({bar.colour})"></i>'
            f'<i class="ends" style="left:{low:.2f}%;width:{max(high - low, 0.3):.2f}%"></i></div>'
            f"<div><b>{bar.value:.4f}</b> <small>{bar.low:.4f} to {bar.high:.4f}</small></div>"
        )
    return f'<div class="forest">{lines}</div>'


def group_chart(groups: Sequence[str], lines: Mapping[str, tuple[Sequence[float | None], str]]) -> str:
    """One line for each row over groups in their order; a group that a row lacks is a gap in its line.

    lines: name -> values, one for each group, and colour. At least one value must be there.
    """
    y_ticks = ticks(0.0, max(value for values, _ in lines.values() for value in values if value is not None))
    step = 100 / max(1, len(groups) - 1)
    shapes, marks = "", ""
    ends: dict[str, Point] = {}
    for name, (values, colour) in lines.items():
        places = [(n * step, 100 * v / y_ticks[-1]) for n, v in enumerate(values) if v is not None]
        path = " ".join(f"{x:.2f},{100 - y:.2f}" for x, y in places)
        shapes += f'<polyline class="line" style="stroke:var({colour})" points="{path}"/>'
        marks += "".join(_dot(place, colour, f"{name}: {place[1] * y_ticks[-1] / 100:.4f}") for place in places)
        if places:
            ends[name] = (100.0, places[-1][1])
    for name, height in spread(ends).items():
        lead, word = _named(name, ends[name], height, lines[name][1])
        shapes, marks = shapes + lead, marks + word
    labels = {label: n * step for n, label in enumerate(groups)}
    return _frame(
        shapes, marks, y_ticks=y_ticks, x_labels=labels, summary=f"{len(lines)} rows over {len(groups)} groups"
    )


def scatter(points: Mapping[str, tuple[Point, str]]) -> str:
    """A dot with its name for each row: x, from zero, against y, from zero. points: name -> (x, y) and colour."""
    x_ticks = ticks(0.0, max(x for (x, _), _ in points.values()) or 1.0)
    y_ticks = ticks(0.0, max(y for (_, y), _ in points.values()) or 1.0)
    places = {name: (100 * x / x_ticks[-1], 100 * y / y_ticks[-1]) for name, ((x, y), _) in points.items()}
    shapes, marks = "", ""
    for name, height in spread(places).items():
        (x, y), colour = points[name]
        lead, word = _named(name, places[name], height, colour)
        shapes, marks = shapes + lead, marks + _dot(places[name], colour, f"{name}: {x:.3f}, {y:.4f}") + word
    labels = {f"{tick:g}": 100 * tick / x_ticks[-1] for tick in x_ticks}
    return _frame(shapes, marks, y_ticks=y_ticks, x_labels=labels, summary=f"{len(points)} rows")


def spread(places: Mapping[str, Point]) -> dict[str, float]:
    """Heights in percent for names beside these places, moved up until no two names touch.

    >>> spread({"b": (0.0, 50.0), "a": (0.0, 10.0), "c": (1.0, 51.0), "d": (90.0, 51.0)})
    {'a': 10.0, 'b': 50.0, 'c': 56.5, 'd': 51.0}
    """
    moved: dict[str, float] = {}
    for name, (x, height) in sorted(places.items(), key=lambda pair: pair[1][1]):
        near = sorted(moved[other] for other in moved if abs(places[other][0] - x) < NAME_WIDTH)
        for taken in near:
            if abs(taken - height) < NAME_DISTANCE:
                height = taken + NAME_DISTANCE
        moved[name] = height
    return moved


def _named(name: str, place: Point, height: float, colour: str) -> tuple[str, str]:
    """A thin line (SVG) from a place to its name (HTML), which stands right of it at `height` percent."""
    x, y = place
    lead = f'<line class="lead" x1="{x:.2f}" x2="{x + 1.5:.2f}" y1="{100 - y:.2f}" y2="{100 - height:.2f}"/>'
    style = f"left:{x + 2:.2f}%;bottom:{height:.2f}%;color:var({colour})"
    return lead, f'<span class="name" style="{style}">{escape(name)}</span>'


def _dot(place: Point, colour: str, title: str) -> str:
    style = f"left:{place[0]:.2f}%;bottom:{place[1]:.2f}%;background:var({colour})"
    return f'<i class="dot" style="{style}" title="{escape(title)}"></i>'


def _frame(shapes: str, marks: str, *, y_ticks: Sequence[float], x_labels: Mapping[str, float], summary: str) -> str:
    """Grid, shapes (SVG), marks (HTML) and the words on both axes. x_labels: word -> place in percent."""
    grid = words = ""
    for tick in y_ticks:
        level = 100 * tick / y_ticks[-1]
        grid += f'<line class="grid" x1="0" x2="100" y1="{100 - level:.2f}" y2="{100 - level:.2f}"/>'
        words += f'<span class="y" style="bottom:{level:.2f}%">{tick:,.6g}</span>'
    for word, left in x_labels.items():
        words += f'<span class="x" style="left:{left:.2f}%">{escape(word)}</span>'
    return (
        f'<div class="scroll"><div class="plot named" role="img" aria-label="{escape(summary)}">'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{grid}{shapes}</svg>'
        f"{marks}{words}</div></div>"
    )
