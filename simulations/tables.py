"""What the numbers of a run say, in one sentence and in one table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

#: key in the result -> what people read, in the order of the table.
MODELS = {
    "popularity": "popularity",
    "zero_shot": "zero-shot",
    "local_only": "local only",
    "prior": "one-round prior",
    "federated": "federated",
}
METRICS = {
    "hr@10": "HR@10",
    "ndcg@10": "NDCG@10",
    "mrr": "MRR",
    "hr@10_99neg": "HR@10",
    "ndcg@10_99neg": "NDCG@10",
}
#: The interval that decides the verdict, and the metric it is about.
COMPARISON = "federated - zero_shot"
MAIN_METRIC = "ndcg@10"


def verdict(result: Mapping[str, Any]) -> tuple[str, str]:
    """Whether federated learning helped, as (`good`, `bad` or `open`, one sentence).

    result: the object of `run --json`. `open` means that the interval contains zero or is missing.
    """
    before, after = (figure(result, model, MAIN_METRIC) for model in ("zero_shot", "federated"))
    if before is None or after is None:
        return "open", "This run holds no comparison of federated training with zero-shot."
    interval = part(part(result, "intervals"), COMPARISON)
    low, high = interval.get("low"), interval.get("high")
    if low is None or high is None:
        return "open", f"NDCG@10 went from {before:.4f} to {after:.4f}; no interval says how sure that is."
    if low > 0:
        change = f"NDCG@10 rose from {before:.4f} to {after:.4f} ({signed(after / before - 1, percent=True)})"
        return "good", f"Federated training helped: {change}."
    if high < 0:
        return "bad", f"Federated training hurt: NDCG@10 fell from {before:.4f} to {after:.4f}."
    change = f"NDCG@10 was {before:.4f} before and {after:.4f} after"
    return "open", f"Federated training made no clear difference: {change}."


def how_sure(result: Mapping[str, Any]) -> str:
    """The change against zero-shot with its interval in one sentence, empty when there is none."""
    interval = part(part(result, "intervals"), COMPARISON)
    if interval.get("low") is None or interval.get("high") is None:
        return ""
    ends = f"{signed(interval['low'])} to {signed(interval['high'])}"
    return f"Change against zero-shot: {signed(interval['difference'])}, 95 % interval {ends}."


def shipped(result: Mapping[str, Any]) -> tuple[str, str]:
    """Which model ranks on the devices now, as (key of `MODELS` or empty, one sentence)."""
    outcome = part(result, "outcome")
    reason = str(outcome.get("reason") or "").strip().rstrip(".")
    if outcome.get("shipped") == "adapter":
        return "federated", f"The adapter was shipped: {reason}." if reason else "The adapter was shipped."
    if outcome.get("shipped") == "prior":
        return "prior", f"The prior was shipped: {reason}." if reason else "The prior was shipped."
    if outcome.get("shipped") == "start":
        return "zero_shot", f"The start was kept: {reason}." if reason else "The start was kept."
    return "", ""


def result_table(result: Mapping[str, Any]) -> Table:
    """The metrics of a run for a terminal: the best of each column is bold, the shipped model is marked."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    state, sentence = verdict(result)
    colour = {"good": "green", "bad": "red", "open": "yellow"}[state]
    chosen, outcome = shipped(result)
    legend = "* ranks on the devices now" if chosen else ""
    lines = (Text(sentence, style=colour), Text(how_sure(result)), Text(outcome), Text(legend, style="dim"))
    table = Table(
        title=Text(data_line(result), style="bold"),
        caption=Text("\n").join(line for line in lines if line),
        caption_justify="left",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("")
    for key, label in METRICS.items():
        table.add_column(f"{label}\n99 neg." if key.endswith("_99neg") else label, justify="right")
    best = best_figures(result)
    for model, name in models_of(result).items():
        cells = [Text("-", style="dim")] * len(METRICS)
        for column, metric in enumerate(METRICS):
            value = figure(result, model, metric)
            if value is not None:
                cells[column] = Text(f"{value:.4f}", style="bold" if value == best[metric] else "")
        table.add_row(Text(f"{name} *" if model == chosen else name), *cells)
    return table


def models_of(result: Mapping[str, Any]) -> dict[str, str]:
    """`MODELS` without the prior where a run had none."""
    asked = "prior" in part(result, "metrics")
    return {model: name for model, name in MODELS.items() if model != "prior" or asked}


def best_figures(result: Mapping[str, Any]) -> dict[str, float | None]:
    """The largest value of each metric over the models, None where there is none."""
    best: dict[str, float | None] = {}
    for metric in METRICS:
        values = [figure(result, model, metric) for model in MODELS]
        best[metric] = max((value for value in values if value is not None), default=None)
    return best


def figure(result: Mapping[str, Any], model: str, metric: str) -> float | None:
    """One number of the result, None when the run did not measure it."""
    value = part(part(result, "metrics"), model).get(metric)
    return None if value is None else float(value)


def part(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A nested table of the result, empty when it is missing or null."""
    return values.get(key) or {}


def data_line(result: Mapping[str, Any]) -> str:
    """The data set in a few words: `ml-1m: 6,040 users, 3,416 items, 999,611 events, leave-one-out`."""
    data = part(result, "data")
    counts = [f"{data[key]:,} {key}" for key in ("users", "items", "events") if key in data]
    if data.get("split"):
        counts.append(str(data["split"]))
    name = str(data.get("name") or "unnamed data")
    return f"{name}: {', '.join(counts)}" if counts else name


def signed(value: float, *, percent: bool = False) -> str:
    """A change with its sign, four decimals or whole percent, with a real minus.

    >>> signed(0.03684), signed(-0.002), signed(0.631, percent=True)
    ('+0.0368', '−0.0020', '+63 %')
    """
    text = f"{100 * value:+.0f} %" if percent else f"{value:+.4f}"
    return text.replace("-", "−")
