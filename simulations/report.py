"""The report of a run: one HTML file that opens anywhere, offline, without scripts.

Each section of `report_template.html` has one function here, which says so when its part is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from statistics import median
from string import Template
from typing import Any

from shared import plots
from shared.config import describe
from shared.errors import RunError
from shared.markup import banner, captioned, duration, legend, note, pairs, stylesheet, text, title
from simulations.tables import (
    METRICS,
    best_figures,
    data_line,
    figure,
    how_sure,
    models_of,
    part,
    shipped,
    signed,
    verdict,
)

Rows = Sequence[Mapping[str, Any]]

ABOUT = {
    "popularity": "the same list for everybody",
    "zero_shot": "content + popularity, nothing learned",
    "local_only": "each device trains alone",
    "prior": "what follows what, from one sum over the devices",
    "federated": "the devices train together",
}
SHIPPED = {
    "federated": ("good", "adapter shipped"),
    "prior": ("good", "prior shipped"),
    "zero_shot": ("open", "start kept"),
}
UNITS = {"event": "window", "user": "person"}
#: Titles of an example device's history that are shown, the latest ones.
MOST_HISTORY = 12


def write_report(
    path: Path,
    *,
    result: Mapping[str, Any],
    rounds: Rows,
    curve: Rows,
    spent: Mapping[str, Sequence[float]],
    examples: Rows,
) -> None:
    """Write `report.html`. Raises RunError when the file cannot be written.

    result: the object of `run --json`. rounds: rows of `metrics.jsonl`: round, accepted, planned, refused
    (code -> count), update_norm, seconds. curve: round, ndcg@10 and hr@10 on validation items, from round 0.
    spent: epsilon of each device, by unit. examples: user, history (titles) and recommended (title, score, parts).
    Anything may be empty; the section then says so.
    """
    state, sentence = verdict(result)
    template = Template((files("simulations") / "report_template.html").read_text(encoding="utf-8"))
    page = template.substitute(
        style=stylesheet(),
        title=text(f"homerank: {part(result, 'data').get('name') or 'run'}"),
        data=text(data_line(result)),
        verdict=text(sentence),
        outcome=_outcome(result, state),
        tiles=_tiles(result, rounds, spent),
        results=_results(result),
        curve=_curve(curve),
        privacy=_privacy(result, spent),
        updates=_updates(rounds),
        examples=_examples(examples),
        run=_run(result),
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path}: cannot write the report ({error.strerror}); expected a run folder") from None


def _outcome(result: Mapping[str, Any], state: str) -> str:
    """How sure the verdict is, and what ranks on the devices now."""
    chosen, sentence = shipped(result)
    pills = [(state, {"good": "helped", "bad": "hurt", "open": "undecided"}[state])]
    if chosen:
        pills.append(SHIPPED[chosen])
    marks = " ".join(f'<span class="pill {kind}">{label}</span>' for kind, label in pills)
    return f"<p>{marks}</p>{note(f'{how_sure(result)} {sentence}'.strip())}"


def _tiles(result: Mapping[str, Any], rounds: Rows, spent: Mapping[str, Sequence[float]]) -> str:
    """The handful of numbers a reader wants first."""
    tiles = {
        METRICS[metric]: f"{value:.4f}"
        for metric in ("ndcg@10", "hr@10")
        if (value := figure(result, "federated", metric)) is not None
    }
    if part(result, "privacy").get("mode") == "none":
        tiles["privacy"] = "none"
    tiles |= {f"most ε per {UNITS[unit]}": f"{max(values):.3g}" for unit, values in spent.items() if values}
    if rounds:
        tiles["rounds"] = f"{len(rounds):,}"
        tiles["updates accepted"] = f"{sum(row.get('accepted') or 0 for row in rounds):,}"
    if part(result, "seconds").get("train") is not None:
        tiles["training"] = duration(result["seconds"]["train"])
    return "".join(
        f'<div class="tile{" bad" if value == "none" else ""}"><span>{name}</span><b>{value}</b></div>'
        for name, value in tiles.items()
    )


def _results(result: Mapping[str, Any]) -> str:
    best, chosen = best_figures(result), shipped(result)[0]
    if not any(value is not None for value in best.values()):
        return note("This run measured nothing.")
    body = ""
    for model, name in models_of(result).items():
        mark = ' <span class="pill good">ranks on the devices</span>' if model == chosen else ""
        cells = "".join(_cell(figure(result, model, metric), best[metric]) for metric in METRICS)
        row = f'<th scope="row">{name}{mark}<small>{ABOUT[model]}</small></th>{cells}'
        body += f"<tr class='shipped'>{row}</tr>" if model == chosen else f"<tr>{row}</tr>"
    heads = "".join(f'<th scope="col">{label}</th>' for label in METRICS.values())
    devices = part(part(result, "config"), "evaluation").get("local_only_users")
    sampled = devices and part(part(result, "metrics"), "local_only")
    sample = note(f"Local only: measured on at most {devices:,} devices.") if sampled else ""
    groups = '<th></th><th colspan="3">whole catalogue</th><th colspan="2">99 negatives</th>'
    thead = f'<thead><tr class="group">{groups}</tr><tr><th></th>{heads}</tr></thead>'
    about = (
        "How often, and how high, each ranking placed the next thing a person wanted. "
        "On the left everything in the catalogue competes; on the right only 99 random items do."
    )
    table = f'<div class="scroll"><table>{thead}<tbody>{body}</tbody></table></div>'
    return note(about) + table + sample + _intervals(part(result, "intervals"))


def _cell(value: float | None, best: float | None) -> str:
    if value is None:
        return '<td class="soft">–</td>'
    width = 100 * value / best if best else 0.0
    meter = f'<span class="meter"><i style="width:{width:.1f}%"></i></span>'
    kind = "best" if value == best else "other"
    return f'<td class="{kind}">{value:.4f}{meter}</td>'


def _intervals(intervals: Mapping[str, Any]) -> str:
    known = {name: row for name, row in intervals.items() if row and row.get("low") is not None}
    if not known:
        return ""
    low = min(0.0, *(row["low"] for row in known.values()))
    high = max(0.0, *(row["high"] for row in known.values()))
    margin = (high - low) * 0.06 or 1.0
    rows = ""
    for name, row in known.items():
        label = name.replace(" - ", " − ").replace("zero_shot", "zero-shot").replace("_", " ")
        numbers = f"{signed(row['difference'])} ({signed(row['low'])} to {signed(row['high'])})"
        bar = plots.whisker(row["low"], row["difference"], row["high"], span=(low - margin, high + margin))
        rows += f"<div>{text(label)}</div>{bar}<div>{numbers}</div>"
    return f'<h3>Differences in NDCG@10, with 95 % intervals</h3><div class="forest">{rows}</div>'


def _curve(curve: Rows) -> str:
    figures = ""
    for metric in ("ndcg@10", "hr@10"):
        points = plots.series(curve, metric)
        if len(points) > 1:
            start = points[0][1] if points[0][0] == 0 else None
            figures += captioned(f"{METRICS[metric]} by round", plots.line_chart(points, baseline=start))
    if not figures:
        return note("No quality curve was measured (evaluation.every = 0, or too few rounds).")
    return (
        note("Validation items, which no training saw, measured by the simulator. Dashed: before any round.")
        + f'<div class="two">{figures}</div>'
    )


def _privacy(result: Mapping[str, Any], spent: Mapping[str, Sequence[float]]) -> str:
    privacy = part(result, "privacy")
    if not privacy:
        return note("This run says nothing about privacy.")
    statement = f'<p class="statement">{text(privacy["statement"])}</p>' if privacy.get("statement") else ""
    if privacy.get("mode", "none") == "none":
        warning = (
            "The server could read single updates, and the adapter may remember single events. "
            "Use this run to measure, not to serve people."
        )
        return banner("No privacy: these updates are not protected.", warning) + statement
    facts = pairs({k: v for k, v in privacy.items() if k != "statement" and isinstance(v, str | int | float)})
    layers: Mapping[str, Any] = part(privacy, "layers")
    plots_of = [_spending(unit, values, layers, delta=privacy.get("delta")) for unit, values in spent.items() if values]
    if not plots_of:
        return statement + facts + note("The devices' ledgers were not collected.")
    return f'{statement}<div class="two"><div>{"".join(plots_of)}</div><div>{facts}</div></div>'


def _spending(unit: str, spent: Sequence[float], layers: Mapping[str, Any], *, delta: float | None) -> str:
    idle = sum(value == 0 for value in spent)
    at = f" at δ = {delta:g}" if delta is not None else ""
    caption = (
        f"Devices by ε spent per {UNITS[unit]}{at}. "
        f"Median {median(spent):.3g}, largest {max(spent):.3g} over {len(spent):,} devices"
        + (f"; {idle:,} were never asked." if idle else ".")
    )
    return captioned(caption, plots.histogram(spent, limit=part(layers, unit).get("budget")))


def _updates(rounds: Rows) -> str:
    if not rounds:
        return note("No training round took place.")
    norms = plots.series(rounds, "update_norm")
    figures = ""
    if len(norms) > 1:
        figures = captioned("Length of the combined update (L2) by round", plots.line_chart(norms))
    codes: Counter[str] = Counter()
    for row in rounds:
        codes.update(row.get("refused") or {})
    accepted = [row.get("accepted") or 0 for row in rounds]
    answered = [n + sum((row.get("refused") or {}).values()) for n, row in zip(accepted, rounds, strict=True)]
    planned = [max(row.get("planned") or 0, n) for n, row in zip(answered, rounds, strict=True)]
    plot = plots.step_chart(
        [row.get("round", index) for index, row in enumerate(rounds, start=1)],
        {"planned": planned, "refused": answered, "accepted": accepted},
    )
    silent = sum(planned) - sum(answered)
    colours = {
        f"accepted {sum(accepted):,}": "--accent",
        f"refused {codes.total():,}": "--bad",
        f"planned, no reply {silent:,}": "--faint",
    }
    figures += captioned("Replies by round", plot + legend(colours))
    reasons = f"<h3>Why replies were refused</h3>{pairs(dict(codes.most_common()))}" if codes else ""
    return f'<div class="two">{figures}</div>{reasons}'


def _examples(examples: Rows) -> str:
    if not examples:
        return note("No example recommendations were kept.")
    names = list(dict.fromkeys(name for row in examples for one in row["recommended"] for name in one["parts"]))
    return (
        note(
            "Recent history, and what is recommended next. A score is the exact sum of its parts; "
            "what lies left of the thin line lowers it."
        )
        + legend({name: f"--p{number % 6}" for number, name in enumerate(names)})
        + "".join(_device(example, names) for example in examples)
    )


def _device(example: Mapping[str, Any], names: Sequence[str]) -> str:
    history, slate = list(example["history"]), example["recommended"]
    chips = "".join(f"<li>{title(one)}</li>" for one in history[-MOST_HISTORY:])
    if len(history) > MOST_HISTORY:
        chips = f'<li class="soft">… {len(history) - MOST_HISTORY:,} before</li>{chips}'
    parts = [[float(one["parts"].get(name, 0.0)) for name in names] for one in slate]
    up = max((sum(v for v in row if v > 0) for row in parts), default=0.0)
    down = min((sum(v for v in row if v < 0) for row in parts), default=0.0)
    items = ""
    for rank, (one, row) in enumerate(zip(slate, parts, strict=True), start=1):
        bar = plots.stacked_bar(dict(zip(names, row, strict=True)), span=(down, up))
        items += f"<li><span>{rank}</span><div>{title(one['title'])}</div>{bar}<b>{one['score']:.2f}</b></li>"
    head = f"<h3>Device {text(example['user'])}</h3>"
    return f'<div class="device">{head}<ul class="chips">{chips}</ul><ol class="slate">{items}</ol></div>'


def _run(result: Mapping[str, Any]) -> str:
    seconds = {name: value for name, value in part(result, "seconds").items() if value}
    total = sum(seconds.values())
    facts = {"time": duration(total)} if total else {}
    if result.get("peak_rss_bytes"):
        facts["peak memory"] = f"{result['peak_rss_bytes'] / 1e9:.2f} GB"
    if result.get("out"):
        facts["folder"] = str(result["out"])
    names = {f"{name} {duration(value)}": f"--p{n % 6}" for n, (name, value) in enumerate(seconds.items())}
    bar = plots.stacked_bar(seconds, span=(0.0, total)) + legend(names) if total else ""
    return bar + pairs(facts) + _settings(part(result, "config")) or note("Nothing was recorded.")


def _settings(config: Mapping[str, Any]) -> str:
    """Every setting by section, with its documentation under the pointer."""
    about = {name: words for name, _, words in describe()}
    top = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    tables = f"<section><h3>run</h3>{pairs(top, about)}</section>" if top else ""
    for name, values in config.items():
        if isinstance(values, Mapping):
            hints = {key: about.get(f"{name}.{key}", "") for key in values}
            tables += f"<section><h3>{text(name)}</h3>{pairs(values, hints)}</section>"
    return f'<details><summary>Settings</summary><div class="config">{tables}</div></details>' if tables else ""
