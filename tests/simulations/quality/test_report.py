"""The page and the tables: every number stands somewhere, and nothing breaks out of its place."""

from __future__ import annotations

import doctest
import io
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from shared.errors import RunError
from simulations.quality import charts
from simulations.quality.charts import Bar, bar_chart, group_chart, scatter, spread
from simulations.quality.report import write_page
from simulations.quality.tables import quality_tables
from tests.simulations.test_report import Page


def row(quality: float, *, trains_on: str = "one machine", **changes: Any) -> dict[str, Any]:
    """A row of the result."""
    groups = {
        "activity": {
            "3 events": {"users": 40, "mean": quality / 2, "low": 0.0, "high": quality},
            "4 to 90 events": {"users": 60, "mean": quality, "low": quality / 2, "high": quality * 1.2},
        },
        "target": {"popular item": {"users": 100, "mean": quality, "low": 0.0, "high": 1.0}},
    }
    metrics = {"hr@10": 2 * quality, "ndcg@10": quality, "mrr": quality, "hr@10_99neg": 0.7, "ndcg@10_99neg": 0.4}
    names = ("coverage", "gini", "popularity", "tail_share", "diversity", "novelty")
    return {
        "trains_on": trains_on,
        "chosen": [{"depth": 3.0}],
        "users": 100,
        "seeds": [0],
        "metrics": metrics,
        "main": {"mean": quality, "low": quality * 0.9, "high": quality * 1.1},
        "by_seed": [quality],
        "against": {"difference": 0.01, "low": -0.0031, "high": 0.02},
        "lists": {**dict.fromkeys(names, 0.25), "miscalibration": None},
        "worst_tenth": 0.4321,
        "groups": groups,
        "gaps": {"activity": quality / 2, "target": None},
        "cold_start": {"0": {"hr@10": 0.1, "ndcg@10": 0.0123, "ndcg@10_99neg": 0.2}},
        "seconds": {"fit": 12.3},
        "rank_ms": 1.25,
        "peak_rss_bytes": 500_000_000,
        **changes,
    }


def result(**rows: dict[str, Any]) -> dict[str, Any]:
    """A result of these rows; the first is the reference."""
    first = next(iter(rows))
    rows[first]["against"] = None
    return {
        "data": {"name": "films", "users": 100, "split": "temporal"},
        "reference": first,
        "main": "NDCG@10",
        "rows": rows,
    }


def page_of(tmp_path: Path, found: dict[str, Any]) -> str:
    """The page as text."""
    write_page(tmp_path / "quality.html", found)
    return (tmp_path / "quality.html").read_text()


def test_the_page_names_the_best_and_shows_every_figure(tmp_path: Path) -> None:
    page = page_of(tmp_path, result(plain=row(0.05), best=row(0.0788, trains_on="federation")))
    assert "Highest NDCG@10: best, 0.0788" in page
    for figure in ("+0.0100", "−0.0031", "0.432", "12.3", "1.25", "0.50", "depth 3", "0.0123", "40 users"):
        assert figure in page, figure
    assert "By activity" in page
    assert "By target" not in page  # one group is no comparison


def test_the_page_is_whole_html_without_scripts_or_links(tmp_path: Path) -> None:
    page = Page(page_of(tmp_path, result(plain=row(0.05), best=row(0.07))))  # refuses tags that do not match
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert "http" not in page.html.replace("http-equiv", "")


def test_names_from_outside_cannot_become_markup(tmp_path: Path) -> None:
    evil = "<img src=x>"
    found = result(**{evil: row(0.05, trains_on="<b>"), "b": row(0.06, chosen=[{"<i>": 1.0}])})
    found["data"]["name"] = "<script>"
    page = page_of(tmp_path, found)
    assert "<img" not in page
    assert "<script" not in page
    assert "&lt;img src=x&gt;" in page


def test_a_row_may_lack_what_it_could_not_measure(tmp_path: Path) -> None:
    names = ("coverage", "gini", "popularity", "tail_share", "diversity", "novelty", "miscalibration")
    groups = {"activity": {"3 events": {"users": 4, "mean": 0.1, "low": 0.0, "high": 0.2}}, "target": {}}
    some = row(
        0.1, users=4, cold_start={}, lists=dict.fromkeys(names), groups=groups, gaps={"activity": None, "target": None}
    )
    found = result(plain=row(0.0), some=some)
    page = page_of(tmp_path, found)
    assert "some 4" in page  # measured on fewer users
    assert "–" in page
    assert "some" in shown(found)
    bare = result(plain=row(0.0, cold_start={}, groups={"activity": {}, "target": {}}))
    assert "no row can rank for a person" in page_of(tmp_path, bare)


def test_a_page_that_cannot_be_written_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot write the page"):
        write_page(tmp_path, result(plain=row(0.1)))


# --- terminal ----------------------------------------------------------------------------------------------


def shown(found: dict[str, Any]) -> str:
    """The tables as text on a wide terminal."""
    console = Console(file=io.StringIO(), width=200)
    console.print(quality_tables(found))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_tables_hold_the_same_figures() -> None:
    lines = shown(result(plain=row(0.05), best=row(0.0788))).splitlines()
    accuracy = next(line for line in lines if line.split()[:1] == ["best"])
    assert (
        " ".join(accuracy.split()[1:])
        == "0.1576 0.0788 0.0788 0.7000 0.4000 0.0709 to 0.0867 +0.0100 (−0.0031 to +0.0200)"
    )
    activity = [line.split() for line in lines if line.split()[:1] == ["best"]][2]
    assert activity == ["best", "0.0394", "0.0788", "0.0394"]
    assert any(line.split() == ["users", "40", "60"] for line in lines)


# --- charts ------------------------------------------------------------------------------------------------


def test_bars_start_at_zero_and_end_where_their_value_is() -> None:
    chart = bar_chart([Bar("a", 0.1, 0.05, 0.2, "--p0"), Bar("b", 0.0, -0.05, 0.05, "--p1")])
    assert "width:50.00%;background:var(--p0)" in chart
    assert 'class="ends" style="left:25.00%;width:75.00%"' in chart
    assert 'class="ends" style="left:0.00%;width:25.00%"' in chart  # not left of zero
    assert bar_chart([Bar("none", 0.0, 0.0, 0.0, "--p0")])


def test_a_group_that_a_row_lacks_is_left_out_of_its_line() -> None:
    chart = group_chart(["a", "b", "c"], {"full": ([0.1, 0.2, 0.1], "--p0"), "gap": ([None, 0.1, 0.2], "--p1")})
    assert [len(path.split()) for path in re.findall(r'points="([^"]*)"', chart)] == [3, 2]
    assert 'points="50.00,50.00 100.00,0.00"' in chart
    assert 'style="left:50.00%">b<' in chart
    assert group_chart(["only"], {"row": ([0.0], "--p0")})


def test_names_beside_marks_do_not_touch() -> None:
    assert doctest.testmod(charts) == (0, 1)
    places = {f"n{number}": (0.0, 10.0 + number / 10) for number in range(8)} | {"far": (80.0, 10.0)}
    heights = spread(places)
    near = sorted(heights[name] for name in places if name != "far")
    assert min(after - before for before, after in pairwise(near)) >= 6.5 - 1e-9
    assert heights["far"] == 10.0
    assert all(heights[name] >= places[name][1] for name in places)


def test_a_scatter_has_a_dot_and_a_name_for_each_row() -> None:
    chart = scatter({"a": ((0.5, 0.1), "--p0"), "b": ((1.0, 0.2), "--p1"), "zero": ((0.0, 0.0), "--p2")})
    assert chart.count('class="dot"') == chart.count('class="name"') == 3
    assert 'class="dot" style="left:50.00%;bottom:50.00%' in chart
