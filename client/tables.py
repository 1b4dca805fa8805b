"""Answers of the service as tables in a terminal. Titles and texts come from data, so markup is never interpreted."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text


def terminal() -> Console:
    """The console for results."""
    return Console(highlight=False)


def slate_table(answer: Mapping[str, Any]) -> Group:
    """A slate: titles, scores and one reason each; then how words were read and how long it took."""
    table = Table(box=box.SIMPLE_HEAD)
    for name, justify in (("", "right"), ("item", "left"), ("title", "left"), ("score", "right"), ("why", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in answer["slate"]:
        moved = "".join(f" [{move['said']}]" for move in row["moves"])
        score = f"{row['score']:.2f}"
        table.add_row(str(row["rank"]), Text(row["item"]), Text(row["title"]), score, Text((row["why"] or "") + moved))
    read = answer["understood"]
    notes = [f"{word} read as {other}" for word, other in read["corrected"].items()]
    notes += [f"unknown: {word}" for word in read["unknown"]]
    notes += [f"understood: {read['steering']}"] if read["steering"] else []
    notes += [f"ignored {words!r}: {reason}" for words, reason in read["ignored"]]
    adapter = answer["adapter"].get("run")
    about = f"from {answer['events']:,} events, {'adapter ' + adapter if adapter else 'no adapter yet'}"
    tail = f"{about}, {answer['stage']} stage, {answer['took_ms']:.1f} ms"
    return Group(table, *(Text(note) for note in notes), Text(tail, style="dim"))


def explanation_table(answer: Mapping[str, Any]) -> Group:
    """Why an item has its score: the sentence, the parts, the events."""
    parts = Table(box=box.SIMPLE_HEAD)
    for name in ("part", "in the score", "more than competitors get", "split over events"):
        parts.add_column(name, justify="left" if name in ("part", "split over events") else "right")
    for name, value in answer["parts"].items():
        parts.add_row(name, f"{value:+.3f}", f"{answer['above'][name]:+.3f}", answer["exact"][name])
    lines: list[RenderableType] = [Text(answer["title"], style="bold"), Text(answer["sentence"]), parts]
    if answer["events"]:
        events = Table(box=box.SIMPLE_HEAD)
        for name in ("event", "item", "title", "share"):
            events.add_column(name, justify="right" if name in ("event", "share") else "left")
        for row in answer["events"][:10]:
            events.add_row(str(row["seq"]), Text(row["item"]), Text(row["title"]), f"{row['share']:+.3f}")
        lines.append(events)
    if answer["counterfactual"]:
        lines.append(Text(answer["counterfactual"]["said"]))
    return Group(*lines)


def privacy_table(answer: Mapping[str, Any]) -> Group:
    """The budget by layer, then what was sent, newest first."""
    lines: list[RenderableType] = []
    for layer in answer["layers"]:
        unit = {"event": "for any one window of events", "user": "for everything together"}[layer["unit"]]
        text = f"epsilon spent {layer['spent']:.3f} of {layer['budget']:g} {unit}, at delta {layer['delta']:g}"
        lines.append(Text(text))
    if answer["ledger"] != "ok":
        lines.append(Text(f"the ledger cannot be read, so this device does not train: {answer['ledger']}", style="red"))
    taking = "takes part" if answer["participate"] else "is paused"
    lines.append(Text(f"this device {taking}; {answer['rounds']} rounds, {answer['bytes_sent']:,} bytes sent in all"))
    if answer["sent"]:
        table = Table(box=box.SIMPLE_HEAD)
        for name in ("when", "run", "round", "phase", "bytes", "sha-256 or refusal"):
            table.add_column(name, justify="right" if name in ("round", "bytes") else "left")
        for row in answer["sent"]:
            when = datetime.fromtimestamp(row["time"]).astimezone().strftime("%Y-%m-%d %H:%M")
            what = row["refusal"] or row["digest"][:16]
            table.add_row(when, Text(row["run"]), str(row["round"]), row["phase"], f"{row['bytes']:,}", what)
        lines.append(table)
    return Group(*lines)
