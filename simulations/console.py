"""Tables and the terminal they are printed on. Titles and texts come from data, so markup is never interpreted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text


def terminal(*, stderr: bool = False) -> Console:
    """A console; results go to stdout, progress to stderr."""
    return Console(stderr=stderr, highlight=False)


def recommendation_table(answer: Mapping[str, Any]) -> Group:
    """What `recommend` found, the parts of each score, and the history it came from."""
    table = Table(box=box.SIMPLE_HEAD, title=Text(f"for user {answer['user']}", style="bold"), title_justify="left")
    for name, justify in (("", "right"), ("item", "left"), ("title", "left"), ("score", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    parts = list(answer["recommendations"][0]["parts"]) if answer["recommendations"] else []
    for name in parts:
        table.add_column(name, justify="right")
    for row in answer["recommendations"]:
        table.add_row(
            str(row["rank"]),
            Text(row["item"]),
            Text(row["title"]),
            f"{row['score']:.2f}",
            *(f"{row['parts'][name]:+.2f}" for name in parts),
        )
    newest = [entry["title"] for entry in answer["history"][-8:]]
    history = Text("from: " + " → ".join(newest) if newest else "from: nothing yet, so by popularity")
    return Group(table, history, Text(f"ranked in {answer['milliseconds']:.1f} ms", style="dim"))


def data_table(report: Mapping[str, Any]) -> Table:
    """What `data check` found."""
    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    table.add_column()
    table.add_column()
    for name, value in report.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {item:,}" for key, item in value.items())
        elif isinstance(value, int):
            value = f"{value:,}"
        table.add_row(name.replace("_", " "), Text("-" if value is None else str(value)))
    return table
