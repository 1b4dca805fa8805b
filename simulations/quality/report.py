"""The quality benchmark as one HTML file that opens anywhere, offline, without scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from shared import plots
from shared.errors import RunError
from shared.markup import legend, note, stylesheet, text
from simulations.quality.charts import Bar, bar_chart, group_chart, scatter
from simulations.quality.result import METRICS
from simulations.quality.slices import SMALLEST_GROUP
from simulations.quality.tables import Rows, group_names, labels_of
from simulations.tables import data_line, signed

#: Whose data a row trains on -> variable of the style sheet.
COLOURS = {"federation": "--p0", "one machine": "--p2", "own device": "--p1"}
OTHER_COLOUR = "--p4"

_ABOUT_LISTS = """Coverage: share of the catalogue shown to anybody. Gini: how unequally items are shown, 0 to 1.
Popularity: mean share of people who had touched a shown item. Tail: share of the list outside the popular fifth of the
catalogue. Diversity: mean of 1 - cosine of item vectors over the list's pairs. Novelty: mean of -log2 of the share of
people who had touched a shown item. Miscalibration: KL divergence of the list's tags from the history's. Worst tenth:
share of the unseen catalogue ranked behind the target, mean over the tenth of people with the lowest."""

_STYLE = """
.track { position: relative; height: 20px; }
.track .fill { position: absolute; inset: 2px auto 2px 0; border-radius: 3px; }
.track .ends { position: absolute; top: 9px; height: 2px; background: var(--ink); }
.track .ends::before, .track .ends::after { content: ""; position: absolute; top: -4px; height: 10px;
  border-left: 2px solid var(--ink); }
.track .ends::after { right: 0; }
.forest small, .wide small { color: var(--soft); font-weight: 400; }
.forest + h3, .wide + h3 { margin-top: 1.6rem; }
.plot.named { height: 330px; margin-right: 8.5rem; min-width: 420px; }
.plot .lead { stroke: var(--soft); opacity: .5; }
.plot.named .dot { width: 7px; height: 7px; }
.plot .name { position: absolute; transform: translateY(50%); white-space: nowrap; font-size: .84rem; }
td.heat { background: color-mix(in srgb, var(--accent) var(--share), transparent); }
.wide { overflow-x: auto; margin: .6rem 0 1.2rem; }
.wide tr { display: table-row; }
.wide thead th:first-child { display: table-cell; text-align: left; }
.wide tbody th { text-align: left; }
"""

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<header><div class="brand"><b>homerank</b> · $data</div><h1>$headline</h1>$key</header>
<section class="card" id="accuracy"><h2>How well it ranks</h2>$accuracy</section>
<section class="card" id="groups"><h2>Whom it serves</h2>$groups</section>
<section class="card" id="lists"><h2>What people are shown</h2>$lists</section>
<section class="card" id="cold"><h2>Newcomers</h2>$cold</section>
<section class="card" id="cost"><h2>What it costs</h2>$cost</section>
<footer>One self-contained file: no scripts, nothing loaded from anywhere.</footer>
</main>
</body>
</html>
""")


def write_page(path: Path, result: Mapping[str, Any]) -> None:
    """Write the page of a benchmark's result. Raises RunError when the file cannot be written."""
    rows: Rows = result["rows"]
    best, leader = next(_by_quality(rows))
    kinds = dict.fromkeys(row["trains_on"] for row in rows.values())
    page = _PAGE.substitute(
        title=text(f"homerank: quality on {result['data'].get('name') or 'unnamed data'}"),
        style=stylesheet() + _STYLE,
        data=text(data_line(result)),
        headline=text(f"Highest {result['main']}: {best}, {leader['main']['mean']:.4f}"),
        key=note("Colours say whose events a ranker needs in one place.")
        + legend({kind: _colour(kind) for kind in kinds}),
        accuracy=_accuracy(result),
        groups=_groups(result),
        lists=_lists(result),
        cold=_cold_start(rows),
        cost=_cost(rows),
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path}: cannot write the page ({error.strerror}); make room and try again") from None


def _accuracy(result: Mapping[str, Any]) -> str:
    rows: Rows = result["rows"]
    bars = [
        Bar(name, row["main"]["mean"], row["main"]["low"], row["main"]["high"], _colour(row["trains_on"]))
        for name, row in _by_quality(rows)
    ]
    keys = list(dict.fromkeys(key for row in rows.values() for key in row["metrics"]))
    cells = {name: [row["metrics"][key] for key in keys] for name, row in rows.items()}
    sampled = [f"{name} {row['users']:,}" for name, row in rows.items() if row["lists"]["coverage"] is None]
    return (
        note(f"{result['main']}, seen items left out, with 95 % bootstrap intervals over users.")
        + bar_chart(bars)
        + _differences(result)
        + f"<h3>All metrics</h3>{_heat(cells, {METRICS[key]: '' for key in keys})}"
        + (note(f"Measured on fewer users: {', '.join(sampled)}.") if sampled else "")
    )


def _differences(result: Mapping[str, Any]) -> str:
    found = {name: row["against"] for name, row in _by_quality(result["rows"]) if row["against"]}
    if not found:
        return ""
    low = min(0.0, *(row["low"] for row in found.values()))
    high = max(0.0, *(row["high"] for row in found.values()))
    margin = (high - low) * 0.04 or 1.0
    lines = ""
    for name, row in found.items():
        numbers = f"{signed(row['difference'])} <small>{signed(row['low'])} to {signed(row['high'])}</small>"
        bar = plots.whisker(row["low"], row["difference"], row["high"], span=(low - margin, high + margin))
        lines += f"<div>{text(name)}</div>{bar}<div>{numbers}</div>"
    title = f"<h3>{text(result['main'])} minus that of {text(result['reference'])}, same users, 95 % intervals</h3>"
    return f'{title}<div class="forest">{lines}</div>'


def _groups(result: Mapping[str, Any]) -> str:
    rows: Rows = result["rows"]
    parts = note(
        f"{result['main']} of each group. The gap is the best minus the worst group of at least {SMALLEST_GROUP} "
        "people; chance alone makes it positive."
    )
    for name in group_names(rows):
        labels = labels_of(rows, name)
        means = {
            row_name: [row["groups"][name].get(label, {}).get("mean") for label in labels]
            for row_name, row in rows.items()
        }
        parts += f"<h3>By {text(name)}</h3>"
        if name == "activity":
            parts += group_chart(labels, {n: (values, _colour(rows[n]["trains_on"])) for n, values in means.items()})
        cells = {row_name: [*values, rows[row_name]["gaps"][name]] for row_name, values in means.items()}
        counts = [max(row["groups"][name].get(label, {}).get("users", 0) for row in rows.values()) for label in labels]
        heads = {label: f"{count:,} users" for label, count in zip(labels, counts, strict=True)}
        parts += _heat(cells, {**heads, "gap": ""}, plain=("gap",))
    return parts


def _lists(result: Mapping[str, Any]) -> str:
    rows: Rows = result["rows"]
    points = {
        name: ((row["lists"]["tail_share"] or 0.0, row["main"]["mean"]), _colour(row["trains_on"]))
        for name, row in rows.items()
    }
    names = {
        "coverage": "coverage",
        "gini": "Gini",
        "popularity": "popularity",
        "tail_share": "tail",
        "diversity": "diversity",
        "novelty": "novelty, bits",
        "miscalibration": "miscalibration",
    }
    cells = {name: [*(row["lists"][key] for key in names), row["worst_tenth"]] for name, row in rows.items()}
    heads = dict.fromkeys([*names.values(), "worst tenth"], "")
    return (
        note(f"{result['main']} (upwards) against the share of the list from the long tail.")
        + scatter(points)
        + _heat(cells, heads, digits=3, plain=list(heads))
        + note(_ABOUT_LISTS)
    )


def _cold_start(rows: Rows) -> str:
    events = list(dict.fromkeys(count for row in rows.values() for count in row["cold_start"]))
    if not events:
        return note("Not measured: items are withheld, or no row can rank for a person it was not trained with.")
    cells = {
        name: [row["cold_start"].get(count, {}).get(key) for key in ("ndcg@10", "ndcg@10_99neg") for count in events]
        for name, row in rows.items()
    }
    heads = {f"{count} events{among}": "" for among in ("", ", 99 neg.") for count in events}
    return note(
        "NDCG@10 on the same targets when the device knows only the newest events before them. What it no longer knows "
        "as seen competes with the target."
    ) + _heat(cells, heads)


def _cost(rows: Rows) -> str:
    body = ""
    for name, row in rows.items():
        chosen = "; ".join(", ".join(f"{key} {value:g}" for key, value in one.items()) for one in row["chosen"] if one)
        cells = (
            row["trains_on"],
            f"{row['seconds']['fit']:,.1f}",
            f"{row['rank_ms']:.2f}",
            f"{row['peak_rss_bytes'] / 1e9:.2f}",
            chosen,
        )
        body += f'<tr><th scope="row">{text(name)}</th>{"".join(f"<td>{text(cell)}</td>" for cell in cells)}</tr>'
    names = ("", "trains on", "fit s", "ms per ranking", "peak GB", "chosen on validation")
    heads = "".join(f"<th>{name}</th>" for name in names)
    table = f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
    return table + note("CPU seconds of one thread; for a finished run the seconds of its training on the clock.")


def _heat(
    cells: Mapping[str, Sequence[float | None]], heads: Mapping[str, str], *, digits: int = 4, plain: Sequence[str] = ()
) -> str:
    """A table whose cells are darker the nearer they come to the best of their column; `plain` columns are not.

    heads: name of each column -> what stands below it.
    """
    best = [max((v for v in column if v is not None), default=0.0) for column in zip(*cells.values(), strict=True)]
    body = ""
    for name, values in cells.items():
        body += f'<tr><th scope="row">{text(name)}</th>'
        for value, top, head in zip(values, best, heads, strict=True):
            if value is None:
                body += '<td class="soft">–</td>'
                continue
            kind = (
                "" if head in plain or top <= 0 else f' class="heat" style="--share:{45 * max(value, 0.0) / top:.0f}%"'
            )
            body += f"<td{kind}>{value:.{digits}f}</td>"
        body += "</tr>"
    columns = "".join(
        f'<th scope="col">{text(head)}<br><small>{text(below)}</small></th>' for head, below in heads.items()
    )
    return f'<div class="wide"><table><thead><tr><th></th>{columns}</tr></thead><tbody>{body}</tbody></table></div>'


def _by_quality(rows: Rows) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows, the best first."""
    yield from sorted(rows.items(), key=lambda pair: -pair[1]["main"]["mean"])


def _colour(trains_on: str) -> str:
    return COLOURS.get(trains_on, OTHER_COLOUR)
