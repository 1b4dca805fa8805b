"""The report as a reader and as an attacker sees it, and the sentence and table at the end of a run."""

from __future__ import annotations

import copy
import doctest
import io
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from shared import markup, plots
from shared.config import Config, describe
from shared.errors import RunError
from simulations import tables
from simulations.report import write_report
from simulations.tables import result_table, shipped, verdict

VOID = {"meta", "link", "br", "hr", "img", "input"}
SECTIONS = {"results", "curve", "privacy", "updates", "examples", "run"}


class Page(HTMLParser):
    """A parsed page whose tags must be balanced."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and data.strip():
            self.words.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def with_class(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for _, attrs in self.tags if name in (attrs.get("class") or "").split()]


def make_result(*, mode: str = "event", gain: float = 0.03, low: float = 0.02, high: float = 0.04) -> dict[str, Any]:
    def row(value: float) -> dict[str, float]:
        return {"hr@10": 2 * value, "ndcg@10": value, "mrr": value, "hr@10_99neg": 0.5, "ndcg@10_99neg": 0.4}

    config = Config().to_dict()
    config["privacy"]["mode"] = mode
    return {
        "data": {"name": "ml-1m", "users": 6040, "items": 3416, "events": 999611, "split": "leave-one-out"},
        "config": config,
        "metrics": {
            "popularity": row(0.018),
            "zero_shot": row(0.06),
            "local_only": row(0.061),
            "federated": row(0.06 + gain),
        },
        "intervals": {"federated - zero_shot": {"difference": gain, "low": low, "high": high}},
        "outcome": {"shipped": "adapter" if low > 0 else "start", "reason": "private validation said so"},
        "privacy": {
            "mode": mode,
            "trust": "aggregate",
            "layers": {"event": {"epsilon": 7.5, "budget": 8.0}, "user": {"epsilon": 7.0, "budget": 8.0}},
            "delta": 1e-5,
            "statement": "One window.",
        },
        "seconds": {"setup": 31.2, "train": 412.7, "evaluate": 8.0},
        "peak_rss_bytes": 1_730_000_000,
        "out": "runs/first",
    }


def make_inputs(**options: Any) -> dict[str, Any]:
    rounds = [
        {
            "round": n,
            "accepted": 60,
            "planned": 64,
            "refused": {"not-finite": 2} if n == 3 else {},
            "update_norm": 1 / n,
            "seconds": 1.5,
        }
        for n in range(1, 9)
    ]
    parts = {"content": 4.0, "adapter": 1.5, "popularity": -2.25}
    return {
        "result": make_result(**options),
        "rounds": rounds,
        "curve": [{"round": n, "ndcg@10": 0.06 + n / 200, "hr@10": 0.12 + n / 100} for n in (0, 4, 8)],
        "spent": {"event": [0.0, 3.5, 7.5, 7.5]} if options.get("mode") != "none" else {},
        "examples": [
            {
                "user": "17",
                "history": [f"Film {n}" for n in range(30)],
                "recommended": [{"title": "The Next Film", "score": 3.25, "parts": parts}],
            }
        ],
    }


def render(folder: Path, inputs: dict[str, Any]) -> Page:
    write_report(folder / "report.html", **inputs)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


# --- what it says ------------------------------------------------------------------------------------------


def test_a_private_run_shows_everything(tmp_path: Path) -> None:
    page = render(tmp_path, make_inputs())
    assert {attrs.get("id") for tag, attrs in page.tags if tag == "section"} >= SECTIONS
    for words in (
        "Federated training helped: NDCG@10 rose from 0.0600 to 0.0900 (+50 %).",
        "95 % interval +0.0200 to +0.0400",
        "The adapter was shipped: private validation said so.",
        "ml-1m: 6,040 users, 3,416 items, 999,611 events, leave-one-out",
        "One window.",
        "Devices by ε spent per window at δ = 1e-05. Median 5.5, largest 7.5 over 4 devices; 1 were never asked.",
        "accepted 480",
        "refused 2",
        "planned, no reply 30",
        "not-finite",
        "… 18 before",
        "The Next Film",
        "7 min 32 s",
        "1.73 GB",
        "runs/first",
    ):
        assert words in page.text
    assert "Film 17" not in page.words
    assert len(page.with_class("plot")) == 5
    assert len(page.with_class("bar")) == 3  # 0, 3.5 and 7.5
    assert not page.with_class("banner")


def test_two_protected_units_are_drawn_apart(tmp_path: Path) -> None:
    page = render(tmp_path, make_inputs(mode="both") | {"spent": {"event": [0.5, 7.5], "user": [6.25, 7.0, 7.0]}})
    assert "Devices by ε spent per window at δ = 1e-05. Median 4, largest 7.5 over 2 devices." in page.text
    assert "Devices by ε spent per person at δ = 1e-05. Median 7, largest 7 over 3 devices." in page.text
    assert len(page.with_class("plot")) == 6
    one = render(tmp_path, make_inputs(mode="both") | {"spent": {"event": [], "user": [7.0]}})
    assert "per window" not in one.text


def test_a_run_without_privacy_carries_a_red_banner(tmp_path: Path) -> None:
    page = render(tmp_path, make_inputs(mode="none"))
    assert len(page.with_class("banner")) == 1
    assert "No privacy: these updates are not protected." in page.text
    assert "ε spent" not in page.text
    assert [attrs for attrs in page.with_class("tile") if "bad" in (attrs["class"] or "")]


def test_a_kept_start_is_marked_where_it_ranks(tmp_path: Path) -> None:
    page = render(tmp_path, make_inputs(gain=-0.001, low=-0.004, high=0.002))
    assert "Federated training made no clear difference" in page.text
    assert "start kept" in page.words
    assert "zero-shot ranks on the devices" in page.text


def test_every_setting_is_listed_with_its_documentation(tmp_path: Path) -> None:
    page = render(tmp_path, make_inputs())
    hints = {attrs.get("title") for tag, attrs in page.tags if tag == "dt"}
    assert hints >= {documentation for _, _, documentation in describe()}


@pytest.mark.parametrize("missing", ["rounds", "curve", "spent", "examples"])
def test_a_missing_part_is_said(tmp_path: Path, missing: str) -> None:
    words = {
        "rounds": "No training round took place.",
        "curve": "No quality curve was measured",
        "spent": "The devices' ledgers were not collected.",
        "examples": "No example recommendations were kept.",
    }
    assert words[missing] not in render(tmp_path, make_inputs()).text
    assert words[missing] in render(tmp_path, make_inputs() | {missing: {} if missing == "spent" else []}).text


@pytest.mark.parametrize("key", list(make_result()))
def test_any_part_of_the_result_may_be_missing_or_null(tmp_path: Path, key: str) -> None:
    inputs = make_inputs()
    without = {name: value for name, value in inputs["result"].items() if name != key}
    render(tmp_path, inputs | {"result": without})
    render(tmp_path, inputs | {"result": without | {key: None}})
    Console(file=io.StringIO()).print(result_table(without))


def test_an_empty_run_still_makes_a_page(tmp_path: Path) -> None:
    page = render(tmp_path, {"result": {}, "rounds": [], "curve": [], "spent": {}, "examples": []})
    assert "This run holds no comparison of federated training with zero-shot." in page.text
    assert not page.with_class("plot")


def test_odd_numbers_do_not_break_the_plots(tmp_path: Path) -> None:
    inputs = make_inputs()
    inputs["rounds"] = [
        {"round": 1, "accepted": 0, "planned": 0, "refused": {}, "update_norm": None, "seconds": 0.1},
        {
            "round": 2,
            "accepted": 70,
            "planned": 64,
            "refused": {},
            "update_norm": float("nan"),
            "seconds": 0.1,
        },
    ]
    inputs["curve"] = [{"round": 0, "ndcg@10": 0.0, "hr@10": 0.5}, {"round": 1, "ndcg@10": 0.0, "hr@10": 0.5}]
    inputs["spent"] = {"event": [0.0, 0.0], "user": [0.0]}
    inputs["examples"][0]["recommended"][0] |= {"parts": {"content": 0.0}, "score": 0.0}
    page = render(tmp_path, inputs)
    assert not re.search(r"\b(nan|inf)\b", page.html)
    assert "planned, no reply 0" in page.text
    single = render(tmp_path, inputs | {"spent": {"user": [2.0]}, "rounds": inputs["rounds"][:1], "curve": []})
    assert not re.search(r"\b(nan|inf)\b", single.html)


def test_a_folder_that_is_not_there_is_a_run_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot write the report"):
        write_report(tmp_path / "nowhere" / "report.html", **make_inputs())


# --- what it must not do -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["none", "event"])
def test_nothing_is_loaded_from_anywhere(tmp_path: Path, mode: str) -> None:
    page = render(tmp_path, make_inputs(mode=mode))
    assert "http:" not in page.html
    assert "https:" not in page.html
    assert "@import" not in page.html
    assert "url(" not in page.html
    for tag, attrs in page.tags:
        assert tag not in {"script", "link", "iframe", "img", "object", "embed", "base", "form"}
        assert not {"src", "href", "srcset", "action", "xlink:href"} & set(attrs)
        assert not [name for name in attrs if name.startswith("on")]
    policy = [attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def poison(value: Any, words: str) -> Any:
    """The same structure with every text that comes from data replaced, some keys included."""
    if isinstance(value, dict):
        open_keys = {"not-finite", "content", "adapter", "federated - zero_shot"}
        return {words + key if key in open_keys else key: poison(inner, words) for key, inner in value.items()}
    if isinstance(value, list):
        return [poison(inner, words) for inner in value]
    return words if isinstance(value, str) and value not in {"event", "none", "adapter", "start"} else value


@pytest.mark.parametrize("mode", ["none", "event"])
@pytest.mark.parametrize(
    "words",
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "' onmouseover='alert(1)",
        "</title></style></main><iframe>",
        "$verdict ${page} $$",
        "&lt;b&gt; &amp;",
        "<!-- ",
    ],
)
def test_hostile_text_stays_text(tmp_path: Path, words: str, mode: str) -> None:
    clean, hostile = make_inputs(mode=mode), poison(make_inputs(mode=mode), words)
    page = render(tmp_path, hostile)
    plain = render(tmp_path, poison(clean, "plain"))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert [sorted(attrs) for _, attrs in page.tags] == [sorted(attrs) for _, attrs in plain.tags]
    assert page.words.count(words.strip()) == plain.words.count("plain") > 15


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_any_title_is_one_piece_of_text(tmp_path: Path, words: str) -> None:
    inputs = make_inputs()
    inputs["examples"][0]["recommended"][0]["title"] = words
    page = render(tmp_path, inputs)
    expected = render(tmp_path, make_inputs())
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in expected.tags]


# --- verdict and table -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "state", "words"),
    [
        (0.001, 0.05, "good", "helped"),
        (-0.001, 0.05, "open", "no clear difference"),
        (0.0, 0.05, "open", "no clear difference"),
        (-0.05, -0.001, "bad", "hurt"),
    ],
)
def test_the_interval_decides_the_verdict(low: float, high: float, state: str, words: str) -> None:
    found, sentence = verdict(make_result(low=low, high=high))
    assert found == state
    assert words in sentence


def test_without_an_interval_nothing_is_claimed() -> None:
    result = make_result()
    result["intervals"] = {}
    assert verdict(result) == (
        "open",
        "NDCG@10 went from 0.0600 to 0.0900; no interval says how sure that is.",
    )


def test_shipped_names_the_model_that_ranks() -> None:
    assert shipped(make_result()) == ("federated", "The adapter was shipped: private validation said so.")
    kept = {"outcome": {"shipped": "start", "reason": ""}}
    assert shipped(kept) == ("zero_shot", "The start was kept.")
    between = {"outcome": {"shipped": "prior", "reason": "the prior is better."}}
    assert shipped(between) == ("prior", "The prior was shipped: the prior is better.")
    assert shipped({}) == ("", "")


def test_the_table_in_a_terminal() -> None:
    result = copy.deepcopy(make_result())
    result["metrics"]["local_only"] = None
    result["data"]["name"] = "[red]mine[/red]"
    out = io.StringIO()
    Console(file=out, width=100).print(result_table(result))
    lines = out.getvalue().splitlines()
    cells = {
        line.split("  ")[1].strip(): line.split()[-5:] for line in lines if re.search(r"\d\.\d{4}$", line.rstrip())
    }
    assert cells["zero-shot"] == ["0.1200", "0.0600", "0.0600", "0.5000", "0.4000"]
    assert cells["federated *"] == ["0.1800", "0.0900", "0.0900", "0.5000", "0.4000"]
    assert any(line.split() == ["local", "only", "-", "-", "-", "-", "-"] for line in lines)
    assert "[red]mine[/red]: 6,040 users" in lines[0]


def test_a_prior_has_a_row_where_there_is_one_and_is_marked_when_it_ranks(tmp_path: Path) -> None:
    result = make_result()
    result["metrics"]["prior"] = {"hr@10": 0.14, "ndcg@10": 0.07, "mrr": 0.07, "hr@10_99neg": 0.5, "ndcg@10_99neg": 0.4}
    result["outcome"]["shipped"] = "prior"
    pages = {}
    for name, found in {"with": result, "without": make_result()}.items():
        out = io.StringIO()
        Console(file=out, width=100).print(result_table(found))
        assert ("one-round prior *" in out.getvalue()) == (name == "with")
        pages[name] = render(tmp_path, {**make_inputs(), "result": found}).text
    assert "one-round prior" not in pages["without"]
    for words in ("one-round prior", "prior shipped", "what follows what, from one sum over the devices"):
        assert words in pages["with"]
    assert "adapter shipped" not in pages["with"]


@pytest.mark.parametrize("module", [markup, plots, tables])
def test_the_examples_in_the_docstrings_are_right(module: Any) -> None:
    outcome = doctest.testmod(module)
    assert outcome.attempted > 0
    assert outcome.failed == 0


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.booleans())
def test_ticks_enclose_what_they_mark(low: float, size: float, whole: bool) -> None:
    marks = plots.ticks(low, low + size, whole=whole)
    slack = 1e-6 * max(abs(low), abs(low + size), 1.0)
    assert marks[0] <= low + slack
    assert marks[-1] >= low + size - slack
    assert 2 <= len(marks) <= 9
    assert all(a < b for a, b in pairwise(marks))
