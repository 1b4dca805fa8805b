"""The result of the quality benchmark as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from simulations.quality.result import METRICS
from simulations.tables import data_line, signed

Rows = Mapping[str, Mapping[str, Any]]


def quality_tables(result: Mapping[str, Any]) -> Group:
    """Accuracy, what the lists are like, groups, cold start and cost; the best of each metric is bold."""
    rows: Rows = result["rows"]
    parts: list[Text | Table] = [
        Text(data_line(result), style="bold"),
        _accuracy(result),
        _lists(rows),
        *(_groups(result, name) for name in group_names(rows)),
    ]
    if any(row["cold_start"] for row in rows.values()):
        parts.append(_cold_start(rows))
    parts.append(_cost(rows))
    return Group(*parts)


def group_names(rows: Rows) -> list[str]:
    """Slices with more than one group, in the order of the result."""
    every = (name for row in rows.values() for name, groups in row["groups"].items() if len(groups) > 1)
    return list(dict.fromkeys(every))


def labels_of(rows: Rows, name: str) -> list[str]:
    """The groups of a slice over all rows, since a sampled row may lack some."""
    return list(dict.fromkeys(label for row in rows.values() for label in row["groups"][name]))


def _accuracy(result: Mapping[str, Any]) -> Table:
    rows, main = result["rows"], result["main"]
    keys = list(dict.fromkeys(key for row in rows.values() for key in row["metrics"]))
    table = _table("", numbers=(*(METRICS[key] for key in keys), f"{main}, 95 %", f"minus {result['reference']}"))
    best = {key: max(row["metrics"][key] for row in rows.values()) for key in keys}
    for name, row in rows.items():
        figures = row["metrics"]
        table.add_row(
            name,
            *(Text(f"{figures[key]:.4f}", style="bold" if figures[key] == best[key] else "") for key in keys),
            f"{row['main']['low']:.4f} to {row['main']['high']:.4f}",
            _change(row["against"]) if row["against"] else "-",
        )
    return table


def _change(against: Mapping[str, float]) -> str:
    """A difference with its interval."""
    return f"{signed(against['difference'])} ({signed(against['low'])} to {signed(against['high'])})"


def _lists(rows: Rows) -> Table:
    names = ("coverage", "Gini", "popularity", "tail", "diversity", "novelty", "miscalibr.", "worst tenth")
    keys = ("coverage", "gini", "popularity", "tail_share", "diversity", "novelty", "miscalibration")
    table = _table("first 10 shown", numbers=names)
    for name, row in rows.items():
        values = [*(row["lists"][key] for key in keys), row["worst_tenth"]]
        table.add_row(name, *(_number(value, 3) for value in values))
    return table


def _cost(rows: Rows) -> Table:
    table = _table("cost", "trains on", numbers=("fit s", "ms per ranking", "peak GB"))
    for name, row in rows.items():
        numbers = (_number(row["seconds"]["fit"], 1), _number(row["rank_ms"], 2), f"{row['peak_rss_bytes'] / 1e9:.2f}")
        table.add_row(name, row["trains_on"], *numbers)
    return table


def _groups(result: Mapping[str, Any], name: str) -> Table:
    rows = result["rows"]
    labels = labels_of(rows, name)
    table = _table(f"{result['main']} by {name}", numbers=(*labels, "gap"))
    counts = {
        label: max(row["groups"][name].get(label, {}).get("users", 0) for row in rows.values()) for label in labels
    }
    table.add_row(Text("users", style="dim"), *(Text(f"{counts[label]:,}", style="dim") for label in labels), "")
    for row_name, row in rows.items():
        means = [row["groups"][name].get(label, {}).get("mean") for label in labels]
        table.add_row(row_name, *(_number(mean, 4) for mean in means), _number(row["gaps"][name], 4))
    return table


def _cold_start(rows: Rows) -> Table:
    events = list(dict.fromkeys(count for row in rows.values() for count in row["cold_start"]))
    table = _table("NDCG@10 after a cold start", numbers=[f"{count} events" for count in events])
    for name, row in rows.items():
        table.add_row(name, *(_number(row["cold_start"].get(count, {}).get("ndcg@10"), 4) for count in events))
    return table


def _table(*texts: str, numbers: tuple[str, ...] | list[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for text in texts:
        table.add_column(text, no_wrap=True)
    for number in numbers:
        table.add_column(number, justify="right", overflow="fold")
    return table


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
