"""What may go wrong in a round, injected, and what must come of it. Files: see test_broken_files."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message

from shared.errors import RunError
from shared.protocol import Manifest
from simulations.faults import FAULTS
from simulations.runfolder import RunFolder
from tests.server.small_server import (
    EVERYTHING,
    Network,
    OnReplies,
    books,
    charges,
    first_asked,
    kill_at,
    result,
    rows,
    same_end,
    server,
    start_run,
    whole_run,
)

pytestmark = pytest.mark.usefixtures("own_cache", "module_cache")


# --- the server process --------------------------------------------------------------------------------------

#: Committed rounds and charged training rounds that a server killed at a step of round 2 leaves behind.
KILLED = {"asked": (1, 1), "charged": (1, 2), "released": (1, 2), "saved": (2, 2), "recorded": (2, 2)}


@pytest.mark.parametrize("step", KILLED)
def test_a_killed_server_goes_on_with_the_same_round_and_spends_once(
    step: str, six_users: Path, tmp_path: Path, calm: RunFolder
) -> None:
    run = start_run(tmp_path, six_users)
    assert kill_at(run, step) == signal.SIGKILL
    committed, charged = KILLED[step]
    assert [number for phase, number in charges(run) if phase == "train"] == list(range(1, charged + 1))
    again = server(run)
    assert again.state.round == committed
    again.run(Network(run))
    assert same_end(run, calm)
    assert charges(run) == EVERYTHING
    assert [(row["phase"], row["round"]) for row in run.rows()] == EVERYTHING


# --- replies -------------------------------------------------------------------------------------------------


def in_round_one(node: int, change: Callable[[list[Message]], list[Message]]) -> OnReplies:
    def on_replies(asked: Manifest, other: int, replies: list[Message]) -> list[Message]:
        return change(replies) if (asked.phase, asked.round, other) == ("train", 1, node) else replies

    return on_replies


@pytest.fixture(scope="module")
def without_one(six_users: Path, calm: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The first device asked in round 1 is too late."""
    late = in_round_one(first_asked(calm), lambda replies: [])
    return whole_run(tmp_path_factory.mktemp("late"), six_users, on_replies=late)


def test_a_reply_after_the_deadline_counts_for_nothing_and_the_sum_is_still_divided_by_the_plan(
    without_one: RunFolder, calm: RunFolder
) -> None:
    first = rows(without_one)[0]
    assert (first["accepted"], first["refused"], first["planned"]) == (3, {"late": 1}, 4)
    assert result(without_one) != result(calm)
    assert books(without_one)[0] == books(calm)[0]  # the server pays the same
    late = first_asked(without_one) - 1
    assert len(books(without_one)[1][late]) == len(books(calm)[1][late])  # whoever answered has paid


REFUSED = [name for name, fault in FAULTS.items() if fault.counted_as in ("not-finite", "bad-shape", "bad-message")]


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_reply_is_refused_and_counted_and_the_rest_go_on(
    name: str, six_users: Path, tmp_path: Path, without_one: RunFolder
) -> None:
    run = start_run(tmp_path, six_users)

    def spoil(replies: list[Message]) -> list[Message]:
        FAULTS[name].spoil(replies[0].content)
        return replies

    server(run).run(Network(run, on_replies=in_round_one(first_asked(run), spoil)))
    assert rows(run)[0]["refused"] == {FAULTS[name].counted_as: 1}
    assert same_end(run, without_one)


@pytest.mark.parametrize(("name", "length"), [("huge", 1.0), ("zero", 0.0)])
def test_a_huge_or_empty_update_moves_the_sum_by_at_most_the_clip(
    name: str, length: float, six_users: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every device sends the same fault, without noise: four times the clip in one direction, or nothing at all."""
    monkeypatch.setattr("server.aggregation.Aggregator.noise", lambda self, size, generator: np.zeros(size))

    def spoil(asked: Manifest, node: int, replies: list[Message]) -> list[Message]:
        if asked.phase == "train":
            FAULTS[name].spoil(replies[0].content)
        return replies

    run = whole_run(tmp_path, six_users, on_replies=spoil)
    assert [row["refused"] for row in rows(run)] == [{}, {}, {}]
    assert all(row["update_norm"] <= length * (1 + 1e-6) for row in rows(run))
    assert (max(row["update_norm"] for row in rows(run)) > 0.1) == bool(length)


def test_a_second_reply_is_one_too_many(six_users: Path, tmp_path: Path, calm: RunFolder) -> None:
    run = start_run(tmp_path, six_users)
    server(run).run(Network(run, on_replies=in_round_one(first_asked(run), lambda replies: replies * 3)))
    assert rows(run)[0]["refused"] == {"duplicate": 2}
    assert same_end(run, calm)


def test_a_recorded_reply_played_again_in_the_next_round_counts_for_nothing(six_users: Path, tmp_path: Path) -> None:
    run, seen = start_run(tmp_path, six_users), list[Any]()

    def play_again(asked: Manifest, node: int, replies: list[Message]) -> list[Message]:
        if asked.phase == "train" and asked.round == 1:
            seen.append(replies[0].content.copy())
        if asked.phase == "train" and asked.round == 2 and seen:
            replies[0].content = seen.pop()
        return replies

    server(run).run(Network(run, on_replies=play_again))
    assert [(row["accepted"], row["refused"], row["released"]) for row in rows(run)] == [
        (4, {}, True),
        (0, {"bad-message": 4}, False),
        (4, {}, True),
    ]
    assert charges(run) == [entry for entry in EVERYTHING if entry != ("train", 2)]


@pytest.mark.parametrize(
    ("trust", "answers", "charged"), [("aggregate", 1, False), ("local", 1, True), ("local", 0, False)]
)
def test_below_the_quorum_nothing_is_released_and_only_replies_of_local_trust_are_spent(
    trust: str, answers: int, charged: bool, six_users: Path, tmp_path: Path
) -> None:
    """Under local trust each reply is a release to this server, whatever becomes of the sum."""
    run = start_run(tmp_path, six_users, f"privacy.trust={trust}")
    answering = iter(range(100))

    def few_answer(asked: Manifest, node: int, replies: list[Message]) -> list[Message]:
        lost = asked.phase == "train" and asked.round == 2 and next(answering) >= answers
        return [] if lost else replies

    before: list[Any] = []
    strategy = server(run, on_step=lambda step, asked: before.append(strategy.state.adapter) if step == "asked" else 0)
    strategy.run(Network(run, on_replies=few_answer))
    second = rows(run)[1]
    assert (second["accepted"], second["refused"], second["released"]) == (answers, {"late": 4 - answers}, False)
    assert charges(run) == [entry for entry in EVERYTHING if charged or entry != ("train", 2)]
    assert before[3] == before[2]  # round 3 began where round 2 had begun


# --- questions that a device does not answer -----------------------------------------------------------------

QUESTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "a newer schema": ({"schema": 2}, "schema"),
    "an older schema": ({"schema": 0}, "schema"),
    "another backbone": ({"backbone": "0" * 64}, "backbone"),
    "another catalogue": ({"catalogue": "0" * 64}, "catalogue"),
    "an unknown phase": ({"phase": "peek"}, "bad-message"),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_device_refuses_what_it_does_not_share_and_pays_nothing(
    name: str, six_users: Path, tmp_path: Path, without_one: RunFolder
) -> None:
    changes, code = QUESTIONS[name]
    run = start_run(tmp_path, six_users)
    chosen = first_asked(run)

    def on_question(asked: Manifest, node: int, question: Message) -> None:
        if (asked.phase, asked.round, node) == ("train", 1, chosen):
            manifest = json.dumps({**json.loads(asked.to_json()), **changes})
            question.content["config"] = ConfigRecord({"manifest": manifest})

    server(run).run(Network(run, on_question=on_question))
    assert rows(run)[0]["refused"] == {code: 1}
    assert result(run) == result(without_one)
    charged = books(run)[1]
    assert len(charged[chosen - 1]) == len(books(without_one)[1][chosen - 1]) - 2  # one release for each unit


@pytest.mark.parametrize("schema", [0, 2])
def test_a_fleet_of_another_version_is_named_as_the_reason_and_nothing_is_charged(
    schema: int, six_users: Path, tmp_path: Path
) -> None:
    run = start_run(tmp_path, six_users)

    def on_question(asked: Manifest, node: int, question: Message) -> None:
        manifest = json.dumps({**json.loads(asked.to_json()), "schema": schema})
        question.content["config"] = ConfigRecord({"manifest": manifest})

    with pytest.raises(RunError, match="the popularity count got 0 of 6 replies: 6 schema"):
        server(run).run(Network(run, on_question=on_question))
    assert charges(run) == []
