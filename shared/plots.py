"""Plots as fragments of HTML: lines are SVG stretched over a box, words and dots are HTML laid on top.

Text keeps its size on any screen and every colour is a variable of the page's style sheet, so the same
fragment works on a phone and in the dark. Places are in percent of the box: x to the right, y upwards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from statistics import median
from typing import Any

Point = tuple[float, float]

#: More points than this are a line without dots.
MOST_DOTS = 30
BINS = 24


def series(rows: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    """(round, value) of the rows that have a finite value under `key`, in the order of rounds."""
    found = [(float(row["round"]), float(row[key])) for row in rows if row.get(key) is not None]
    return sorted(point for point in found if math.isfinite(point[1]))


def line_chart(points: Sequence[Point], *, baseline: float | None = None, floor: float | None = None) -> str:
    """A line over rounds with its last value written beside it, and a dashed line at `baseline`.

    points: at least one (round, value), rounds rising. floor: a level that must be in the picture, such as zero.
    """
    (first, start), (last, end) = points[0], points[-1]
    levels = [y for _, y in points] + [level for level in (baseline, floor) if level is not None]
    x_ticks, y_ticks = ticks(first, last, whole=True), ticks(min(levels), max(levels))
    x_ticks = [tick for tick in x_ticks if first <= tick <= last]
    places = [(_percent(x, first, last), _percent(y, y_ticks[0], y_ticks[-1])) for x, y in points]
    path = " ".join(f"{x:.2f},{100 - y:.2f}" for x, y in places)
    shapes = f'<polygon class="area" points="0,100 {path} 100,100"/>'
    if baseline is not None:
        shapes += _level("baseline", _percent(baseline, y_ticks[0], y_ticks[-1]))
    shapes += f'<polyline class="line" points="{path}"/>'
    marks = f'<b class="last" style="bottom:{places[-1][1]:.2f}%">{end:.3g}</b>'
    if len(points) <= MOST_DOTS:
        for (x, y), (left, bottom) in zip(points, places, strict=True):
            place = f"left:{left:.2f}%;bottom:{bottom:.2f}%"
            marks += f'<i class="dot" style="{place}" title="round {x:g}: {y:.4g}"></i>'
    summary = f"{start:.4g} at round {first:g}, {end:.4g} at round {last:g}"
    return _box(shapes, marks, x_ticks=x_ticks, y_ticks=y_ticks, x_range=(first, last), summary=summary)


def histogram(values: Sequence[float], *, limit: float | None) -> str:
    """How many devices lie in each bin from 0 to the largest value or the limit, which is a dashed line."""
    x_ticks = ticks(0.0, max(*values, limit or 0.0, 1e-12))
    top = x_ticks[-1]
    counts = [0] * BINS
    for value in values:
        counts[min(int(BINS * value / top), BINS - 1)] += 1
    y_ticks = ticks(0.0, max(counts), whole=True)
    marks = ""
    for index, count in enumerate(counts):
        if count:
            size = f"left:{100 * index / BINS:.2f}%;height:{100 * count / y_ticks[-1]:.2f}%"
            low, high = index * top / BINS, (index + 1) * top / BINS
            hint = f"{low:.3g} to {high:.3g}: {count:,} devices"
            marks += f'<i class="bar" style="{size};width:{100 / BINS:.2f}%" title="{hint}"></i>'
    if limit:
        left = _percent(limit, 0.0, top)
        side = "limit" if left < 60 else "limit left"
        marks += f'<i class="{side}" style="left:{left:.2f}%"><span>budget {limit:g}</span></i>'
    summary = f"median {median(values):.3g}, largest {max(values):.3g} over {len(values)} devices"
    return _box("", marks, x_ticks=x_ticks, y_ticks=y_ticks, x_range=(0.0, top), summary=summary)


def step_chart(rounds: Sequence[float], layers: Mapping[str, Sequence[float]]) -> str:
    """One column per round. Layers are drawn over each other, so the first must be the tallest.

    layers: style class -> heights, one for each round.
    """
    y_ticks = ticks(0.0, max(max(heights) for heights in layers.values()) or 1.0, whole=True)
    step = 100 / len(rounds)
    shapes = ""
    for kind, heights in layers.items():
        tops = [100 - _percent(height, 0.0, y_ticks[-1]) for height in heights]
        path = [f"{n * step:.3f},{top:.2f} {(n + 1) * step:.3f},{top:.2f}" for n, top in enumerate(tops)]
        shapes += f'<polygon class="{kind}" points="0,100 {" ".join(path)} 100,100"/>'
    x_range = (rounds[0] - 0.5, rounds[-1] + 0.5)
    x_ticks = [tick for tick in ticks(rounds[0], rounds[-1], whole=True) if x_range[0] < tick < x_range[1]]
    summary = "; ".join(f"{kind}: {sum(heights):g} in all" for kind, heights in layers.items())
    return _box(shapes, "", x_ticks=x_ticks, y_ticks=y_ticks, x_range=x_range, summary=summary)


def whisker(low: float, value: float, high: float, *, span: tuple[float, float]) -> str:
    """An interval as a bar with a dot, on a scale that shows where zero is."""
    left, middle, right, zero = (_percent(x, *span) for x in (low, value, high, 0.0))
    return (
        '<div class="whisker">'
        f'<i class="zero" style="left:{zero:.2f}%"></i>'
        f'<i class="range" style="left:{left:.2f}%;width:{max(right - left, 0.6):.2f}%"></i>'
        f'<i class="dot" style="left:{middle:.2f}%;bottom:50%"></i></div>'
    )


def stacked_bar(parts: Mapping[str, float], *, span: tuple[float, float]) -> str:
    """Parts of a sum side by side: what adds to it right of zero, what takes away left of it."""
    pieces = ""
    ends = {1: 0.0, -1: 0.0}
    for number, (name, value) in enumerate(parts.items()):
        side = 1 if value >= 0 else -1
        start, ends[side] = ends[side], ends[side] + value
        left, right = sorted((_percent(start, *span), _percent(ends[side], *span)))
        style = f"left:{left:.2f}%;width:{right - left:.2f}%"
        pieces += f'<i class="part{number % 6}" style="{style}" title="{escape(name)} {value:+.3f}"></i>'
    zero = f'<i class="zero" style="left:{_percent(0.0, *span):.2f}%"></i>' if span[0] < 0 else ""
    return f'<div class="stack">{pieces}{zero}</div>'


def ticks(low: float, high: float, *, count: int = 4, whole: bool = False) -> list[float]:
    """Round numbers that enclose [low, high], about `count` steps apart.

    >>> ticks(0.058, 0.0951), ticks(0, 20, whole=True)
    ([0.05, 0.06, 0.07, 0.08, 0.09, 0.1], [0.0, 5.0, 10.0, 15.0, 20.0])
    """
    if high - low <= 1e-9 * max(abs(low), abs(high), 1.0):  # one value: leave room around it
        low, high = (low - abs(low) / 10, high + abs(high) / 10) if abs(low) > 1e-6 else (0.0, 1.0)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 2.5, 5, 10) if power * nice >= rough * 0.999)
    if whole:
        step = max(1.0, math.ceil(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(float(index * step), 12) for index in range(first, last + 1)]


def _box(
    shapes: str,
    marks: str,
    *,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x_range: tuple[float, float],
    summary: str,
) -> str:
    """The frame around a plot: grid and shapes (SVG), marks (HTML) and the numbers on both axes."""
    grid, labels = "", ""
    for tick in y_ticks:
        level = _percent(tick, y_ticks[0], y_ticks[-1])
        grid += _level("grid", level)
        labels += f'<span class="y" style="bottom:{level:.2f}%">{tick:,.6g}</span>'
    for tick in x_ticks:
        labels += f'<span class="x" style="left:{_percent(tick, *x_range):.2f}%">{tick:,.6g}</span>'
    return (
        f'<div class="plot" role="img" aria-label="{escape(summary)}">'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{grid}{shapes}</svg>'
        f"{marks}{labels}</div>"
    )


def _level(kind: str, level: float) -> str:
    return f'<line class="{kind}" x1="0" x2="100" y1="{100 - level:.2f}" y2="{100 - level:.2f}"/>'


def _percent(value: float, low: float, high: float) -> float:
    return 100 * (value - low) / (high - low) if high > low else 50.0
