"""The journal says what a server did, in numbers and known words, and nothing of anybody."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from server import journal as journal_module
from server.app import app as server_app
from server.cli_options import note
from server.cohorts import sample_cohort
from server.journal import EVENTS, FIELDS, JOURNAL, Journal, watcher
from server.progress import Progress, journal_row, step_in_words
from server.spending import spent_by
from shared.config import load_config
from shared.errors import RunError
from shared.protocol import PHASES
from simulations.runfolder import RunFolder
from tests.server.small_server import Network, open_ledger, server, start_run
from tests.server.watched import ROUNDS


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]


# --- what is in it -----------------------------------------------------------------------------------------


def test_every_exchange_of_a_run_is_one_line_and_its_end_another(watched: Path) -> None:
    found = [row for row in lines(watched) if row["event"] != "release"]
    told = [(row["event"], row.get("phase"), row.get("round")) for row in found]
    training = [("exchange", "train", number) for number in range(1, ROUNDS + 1)]
    end = [("exchange", "validate", ROUNDS), ("outcome", None, None)]
    assert told == [("exchange", "popularity", 0), *training, *end]
    assert [row["time"] for row in found] == sorted(row["time"] for row in found)
    assert all(row["rounds"] == ROUNDS for row in found if row["event"] == "exchange")


def test_the_figures_are_those_of_the_run(watched: Path) -> None:
    metrics = [json.loads(line) for line in (watched / "run" / "metrics.jsonl").read_text().splitlines()]
    exchanges = [row for row in lines(watched) if row["event"] == "exchange"]
    for row, known in zip(exchanges, metrics, strict=True):
        for name in ("accepted", "refused", "asked", "update_norm", "clip", "seconds", "released"):
            assert row.get(name) == known.get(name)
    assert sum(row["refused"].get("late", 0) for row in exchanges) == sum(
        (number + node) % 5 == 0 for number, cohort in cohorts(watched) for node in cohort
    )


def cohorts(folder: Path) -> list[tuple[int, list[int]]]:
    config = load_config(folder / "run" / "config.toml")
    return [
        (number, sample_cohort(config.federation, nodes=range(1, 7), round_number=number, seed=config.seed))
        for number in range(1, ROUNDS + 1)
    ]


def test_epsilon_rises_with_each_release_and_ends_at_what_the_adapter_says(watched: Path) -> None:
    privacy = json.loads((watched / "run" / "adapter" / "privacy.json").read_text())
    for unit, layer in privacy["layers"].items():
        spent = [row["epsilon"][unit] for row in lines(watched) if row["event"] == "exchange"]
        assert spent == sorted(spent)
        assert spent[0] > 0
        assert spent[-1] == layer["epsilon"]


def test_a_release_is_in_it_too(watched: Path) -> None:
    found = [row for row in lines(watched) if row["event"] == "release"]
    assert [row["version"] for row in found] == [1, 2]
    assert all(row["bytes"] > 1000 for row in found)


def test_nobody_is_in_it(watched: Path) -> None:
    """No line holds a word that is not the journal's own: no device, user, item, title, path or error text."""
    known = {*FIELDS, *EVENTS, *PHASES, "late", "event", "user", "start", "prior", "adapter"}
    for row in lines(watched):
        run = row.pop("run")
        assert set(run) <= set("0123456789abcdef-")
        assert set(strings(row)) <= known


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for name, of in value.items() for text in [name, *strings(of)]]
    return []


def test_a_deployments_server_keeps_one_and_streams_it(
    tmp_path: Path, six_users: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lines that a terminal's progress is made from are those in the file."""
    run = start_run(tmp_path / "run", six_users, "privacy.mode=event")
    settings = {"out": str(run.path), "deployment": True, "ledger": str(tmp_path / "ledger.sqlite")}
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=settings)
    server_app(Network(run), context)
    streamed = [row for row in map(journal_row, capsys.readouterr().err.splitlines()) if row is not None]
    assert streamed == lines(tmp_path)
    assert [row["round"] for row in streamed if row.get("phase") == "train"] == [1, 2, 3]


def test_a_simulation_keeps_none(calm: RunFolder) -> None:
    assert not (calm.path / "logs").exists()


# --- what cannot get in ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "facts",
    [
        {"device": 7},
        {"item": "i1"},
        {"reason": "words"},
        {"run": "Lena's run"},
        {"phase": "lunch"},
        {"round": "3"},
        {"round": float("nan")},
        {"update_norm": [0.1, 0.2]},
        {"refused": {"Lena said no": 1}},
        {"refused": {"late": "Lena"}},
        {"refused": ["late"]},
        {"epsilon": {"event": float("inf")}},
        {"released": 1},
        {"shipped": "Lena"},
    ],
    ids=str,
)
def test_other_facts_are_refused_and_nothing_is_written(tmp_path: Path, facts: dict[str, Any]) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    with pytest.raises(RunError, match="journal: found"):
        journal.write("exchange", **facts)
    assert not journal.path.exists()


def test_other_events_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="journal: found event"):
        Journal(tmp_path / "journal.jsonl").write("click")


@given(st.text())
def test_no_text_gets_into_any_field(text: str) -> None:
    for name, fits in FIELDS.items():
        if fits(text):
            assert name in ("event", "run", "phase", "shipped")
            assert text in (*EVENTS, *PHASES, "start", "prior", "adapter") or set(text) <= set("0123456789abcdef-")


# --- files -------------------------------------------------------------------------------------------------


def test_a_long_journal_begins_anew_and_keeps_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "LARGEST", 300)
    journal = Journal(tmp_path / "journal.jsonl", clock=lambda: 1.0)
    for number in range(12):
        journal.write("exchange", phase="train", round=number)
    before = Journal(tmp_path / "journal.1.jsonl").rows()
    numbers = [row["round"] for row in [*before, *journal.rows()]]
    assert numbers == list(range(numbers[0], 12))
    assert journal.path.stat().st_size < 400


def test_a_line_that_a_crash_cut_is_left_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", clock=lambda: 1.0)
    journal.write("exchange", phase="train", round=1)
    with journal.path.open("a") as file:
        file.write('{"time": 2')
    assert [row["round"] for row in journal.rows()] == [1]


def test_a_journal_that_cannot_be_written_does_not_stop_a_run(
    tmp_path: Path, six_users: Path, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = start_run(tmp_path / "run", six_users)
    ledger = open_ledger(run)
    (tmp_path / "logs").write_text("a file where the folder should be")
    journal = Journal(tmp_path / "logs" / "journal.jsonl")
    server(run, ledger=ledger, on_step=watcher(journal, folder=run.path, ledger=ledger, rounds=3)).run(Network(run))
    assert (run.path / "adapter" / "privacy.json").exists()
    assert "the journal has no line of this step" in caplog.text


def test_a_run_without_privacy_has_no_epsilon(tmp_path: Path, six_users: Path, own_cache: Path) -> None:
    run = start_run(tmp_path / "run", six_users, "privacy.mode=none")
    ledger, journal = open_ledger(run), Journal(tmp_path / "journal.jsonl")
    server(run, ledger=ledger, on_step=watcher(journal, folder=run.path, ledger=ledger, rounds=3)).run(Network(run))
    assert len(journal.rows()) == 6
    assert not any("epsilon" in row for row in journal.rows())
    assert spent_by(ledger.entries(), run="unknown") == ()


def test_what_a_run_has_spent_is_what_its_statement_says(calm: RunFolder) -> None:
    privacy = json.loads((calm.path / "adapter" / "privacy.json").read_text())
    ledger = open_ledger(calm)
    spent = spent_by(ledger.entries(), run=ledger.runs()[0])
    ledger.close()
    assert {one.unit: (one.epsilon, one.budget, one.delta) for one in spent} == {
        unit: (layer["epsilon"], layer["budget"], privacy["delta"]) for unit, layer in privacy["layers"].items()
    }


# --- progress in the terminal ------------------------------------------------------------------------------


ROW = {"time": 1.0, "event": "exchange", "phase": "train", "round": 3, "rounds": 12, "asked": 10, "accepted": 9}


def test_a_round_is_one_line_with_the_time_that_is_left() -> None:
    told = step_in_words({**ROW, "refused": {"late": 1}, "epsilon": {"event": 1.2}}, times=[10.0, 30.0])
    assert told == "[######                  ] round 3 of 12: 9 of 10 answered (1 late), ε 1.20, about 3 min 0 s left"
    below = step_in_words({**ROW, "released": False, "round": 12}, times=[1.0])
    assert below == "[########################] round 12 of 12: 9 of 10 answered, below the quorum: nothing released"
    assert step_in_words({"phase": "popularity", "accepted": 6}, times=[]) == "counting: 6 answered"


@pytest.mark.parametrize("prefix", ["", "INFO :      ", "\x1b[92mINFO \x1b[0m:      2026-11-26 "])
def test_the_journals_lines_are_found_in_a_log(prefix: str) -> None:
    assert journal_row(prefix + json.dumps(ROW)) == ROW


@pytest.mark.parametrize("line", ["", "INFO: round 3", '{"time": 1', '{"time": 1}', '{"event": "exchange"}'])
def test_other_lines_are_not_the_journals(line: str) -> None:
    assert journal_row(line) is None


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_line_that_changes() -> None:
    screen = Terminal()
    progress = Progress(screen)
    progress("starting")
    progress(json.dumps(ROW))
    progress(json.dumps({**ROW, "round": 4}))
    progress("a warning")
    progress(json.dumps({**ROW, "round": 5}))
    progress.close()
    assert screen.getvalue().count("\n") == 3
    shown = [part.rpartition("\x1b[2K")[2] for part in screen.getvalue().split("\n")]
    assert shown[0] == "starting"
    assert shown[1] == "a warning"
    assert shown[2].startswith("[##########              ] round 5 of 12")


def test_a_file_gets_a_line_for_each_step_and_no_escapes() -> None:
    file = io.StringIO()
    progress = Progress(file)
    progress(json.dumps(ROW))
    progress(json.dumps({"time": 1.0, "event": "outcome", "shipped": "start"}))
    progress("done")
    progress.close()
    assert [line[26:40] for line in file.getvalue().splitlines()] == [" round 3 of 12", ""]
    assert "\x1b" not in file.getvalue()


def test_the_commands_show_a_run_that_way(capsys: pytest.CaptureFixture[str]) -> None:
    note("starting")
    note("INFO :      " + json.dumps(ROW))
    assert capsys.readouterr().err == "starting\n[######                  ] round 3 of 12: 9 of 10 answered\n"
