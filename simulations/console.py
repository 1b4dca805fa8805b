"""Tables and the terminal they are printed on. Titles and texts come from data, so markup is never interpreted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def closing_lines(result: Mapping[str, Any]) -> Group:
    """What a run spent, in red when it protected nothing, and which faults it met."""
    privacy, account = result["privacy"], result.get("chaos")
    lines = []
    if privacy["mode"] == "none":
        lines.append(Text("No privacy: nothing in this run is protected.", style="bold red"))
    for layer in privacy.get("layers", {}).values():
        spent = f"epsilon {layer['epsilon']:.2f} at delta {privacy['delta']:g}"
        lines.append(Text(f"Privacy: {spent} for {layer['unit']}; see adapter/privacy.json."))
    if account:
        met = sum(fault["met"] for fault in account["devices"].values())
        crashes, odd = sum(account["server"].values()), sum(account["unexplained"].values())
        lines.append(Text(f"Faults injected: {met} in messages, {crashes} in the server; {odd} unexplained."))
    return Group(*lines)


def plan_table(answer: Mapping[str, Any]) -> Group:
    """What `plan` worked out: cost by unit, bytes, and what to change."""
    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    table.add_column()
    table.add_column()
    cap = answer["participation_cap"]
    sizes, size = answer["entries"], answer["bytes_per_device_per_round"]
    asked = f"{answer['cohort']:,} of {answer['devices']:,} devices, {answer['rounds']:,} rounds"
    table.add_row("each round asks", asked + (f", each device in at most {cap:,}" if cap else ""))
    table.add_row("entries", f"{sizes['adapter']:,} in the adapter, {sizes['trained_per_round']:,} trained a round")
    table.add_row("bytes per device and round", f"{size['down']:,} down, {size['up']:,} up")
    notes = []
    for unit, layer in answer["layers"].items():
        name = {"event": "per window of events", "user": "per person"}[unit]
        noise = ", ".join(f"{phase} {z:.3g}" for phase, z in layer["noise_multipliers"].items())
        table.add_row(Text(name, style="bold"), f"epsilon {layer['epsilon']:.3f} at delta {answer['delta']:g}")
        table.add_row("  noise multipliers", noise)
        table.add_row("  noise to signal, one round", f"{layer['noise_to_signal']:.3g}")
        table.add_row("  accountant", layer["accountant"])
        if layer["advice"]:
            notes.append(Text(f"The noise of a round is larger than any signal {name}. What would help:", style="red"))
            notes += [Text(f"  - {line}") for line in layer["advice"]]
    if not answer["layers"]:
        notes.append(Text("No privacy: updates would be sent without noise. Choose --privacy.", style="bold red"))
    return Group(table, *notes)


def robustness_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What each attack achieved against each defence."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("attack", "defence"):
        table.add_column(name)
    for name in ("exposure@10", "mean rank of the target", "NDCG@10"):
        table.add_column(name, justify="right")
    for row in rows:
        numbers = (f"{row['exposure']:.3f}", f"{row['target_rank']:.0f}", f"{row['ndcg']:.4f}")
        table.add_row(row["attack"], row["defence"], *numbers)
    return table
