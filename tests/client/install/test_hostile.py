"""A bundle that means harm, run as the SuperNode's user beside a real service, gets charged answers and codes."""

from __future__ import annotations

import base64
import hashlib
import math
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from client.door.sent import read_sent
from shared.privacy.accounting import epsilon_of
from shared.protocol import REFUSALS
from shared.terminal import wait_until
from tests.client.install.hostile import SECRETS
from tests.client.install.two_users import EPSILON, NOBODY, Place, attack, environment, place, python, service
from tests.client.small_device import SHELF, question
from tests.client.small_door import charges

pytestmark = pytest.mark.slow
DENIED = "PermissionError"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def siege() -> Iterator[dict[str, Any]]:
    """One attack, and what the device was like before and after."""
    python()
    with place() as found, service(found) as served:
        assert wait_until(found.socket.exists, timeout=60)
        profile, facts = found.profile, dict[str, Any]()
        untouched = [profile.folder / "items.jsonl", profile.events]
        before = {path.name: digest(path) for path in untouched}
        facts["report"] = attack(found, served)
        facts["changed"] = [path.name for path in untouched if digest(path) != before[path.name]]
        with httpx.Client(base_url=served["url"], trust_env=False, timeout=60) as person:
            person.headers["authorization"] = f"Bearer {(profile.folder / 'token').read_text().strip()}"
            facts["slate"] = person.post("/v1/recommend", json={"k": 5}).json()["slate"]
            facts["history"] = person.get("/v1/history").json()
            facts["privacy"] = person.get("/v1/privacy").json()
            facts["token"] = (profile.folder / "token").read_text().strip()
        facts["log"] = (found.base / "service.log").read_bytes()
        facts["charges"] = charges(profile)
        facts["sent"] = read_sent(profile.sent, 1000)
        yield facts


def got(siege: dict[str, Any], start: str) -> dict[str, set[str]]:
    """What came of each attempt whose name starts so."""
    found: dict[str, set[str]] = {}
    for name, word in siege["report"]["found"]:
        if name.startswith(start):
            found.setdefault(name, set()).add(word)
    assert found
    return found


def test_no_file_of_the_person_can_be_read_or_changed(siege: dict[str, Any]) -> None:
    for start in ("list the", "read events", "link", "stat", "put an adapter"):
        assert set().union(*got(siege, start).values()) == {DENIED}, start
    for name in SECRETS:
        assert got(siege, f"read {name}") == {f"read {name}": {DENIED}} | (
            {"read events.sqlite-wal": {DENIED}} if name == "events.sqlite" else {}
        )
        assert set().union(*got(siege, f"write {name}").values()) == {DENIED}
    assert siege["changed"] == []


def test_the_socket_cannot_be_taken_over(siege: dict[str, Any]) -> None:
    for name in ("remove the socket", "rename the socket", "write beside", "listen beside", "open the socket's folder"):
        assert set().union(*got(siege, name).values()) == {DENIED}


def test_the_service_cannot_be_read_stopped_or_slowed(siege: dict[str, Any]) -> None:
    for name in ("read /proc/PID/environ", "read /proc/PID/maps", "read /proc/PID/mem", "read /proc/PID/stack"):
        assert got(siege, name) == {name: {DENIED}}
    for name in ("list /proc", "follow", "send", "slow", "move", "ptrace", "become"):
        assert set().union(*got(siege, name).values()) == {DENIED}, name
    # What Linux shows of every process to everybody, unless /proc hides it, as the unit has it do.
    assert got(siege, "read /proc/PID/cmdline") == {"read /proc/PID/cmdline": {"command line"}}


def test_the_page_is_locked(siege: dict[str, Any]) -> None:
    for method in ("POST", "PATCH", "GET /v1", "GET with a", "GET the page"):
        codes = got(siege, method)
        codes.pop("GET with another Host", None)
        assert set().union(*codes.values()) == {"401"}, codes
    assert got(siege, "GET with another Host") == {"GET with another Host": {"421"}}
    # Open to everybody, with nothing of the person in them.
    assert got(siege, "GET /healthz") | got(siege, "GET /metrics") == {"GET /healthz": {"200"}, "GET /metrics": {"200"}}


def test_the_socket_gives_out_codes_and_charged_answers_alone(siege: dict[str, Any]) -> None:
    asked = {name: words for start in ("say", "announce", "ask", "replay") for name, words in got(siege, start).items()}
    size = sum(math.prod(shape) for shape in question("train")[0].reply.values())
    answer = f"answer of {size} numbers"
    may_be_answered = {"ask train", "ask train at once", "replay train"}
    for name, words in asked.items():
        assert words <= {*REFUSALS} | ({answer} if name in may_be_answered else set()) | (
            {"answer of 0 numbers"} if name == "ask another adapter" else set()
        ), name
    assert asked["ask a poisoned adapter"] == asked["ask an adapter of other shapes"] == {"bad-message"}
    assert asked["ask without protection"] | asked["ask for raw counts"] <= {"trust", "bad-message"}


def test_every_answer_is_charged_and_the_budget_ends_them(siege: dict[str, Any]) -> None:
    words = Counter(word for _, word in siege["report"]["found"])
    answers = sum(
        count for word, count in words.items() if word.startswith("answer of") and word != "answer of 0 numbers"
    )
    rows, totals = siege["sent"]
    assert 1 <= answers == totals.answers == len(siege["charges"])
    delta = rows[0][1].delta
    assert epsilon_of(siege["charges"], delta=delta) <= EPSILON
    assert {layer["spent"] <= layer["budget"] == EPSILON for layer in siege["privacy"]["layers"]} == {True}
    replays = [word for name, word in siege["report"]["found"] if name == "replay train"]
    assert replays[-1] == "budget"  # it ended for want of budget, not of tries
    assert siege["privacy"]["rounds"] == answers


def test_a_hundred_at_once_get_no_more_than_one_at_a_time(siege: dict[str, Any]) -> None:
    words = [word for name, word in siege["report"]["found"] if name == "ask train at once"]
    assert len(words) == 100
    assert sum(word.startswith("answer") for word in words) <= 1
    assert set(words) <= {"busy", "budget"} | {word for word in words if word.startswith("answer")}
    assert words.count("busy") > 90
    times = [row.time for _, row in siege["sent"][0] if row.computed]
    assert all(later - earlier >= 1.0 for later, earlier in pairwise(times))


def test_nothing_that_was_heard_says_anything_of_the_person(siege: dict[str, Any]) -> None:
    heard = base64.b64decode(siege["report"]["heard"])
    assert len(heard) > 1000
    assert siege["token"].encode() not in heard
    assert siege["token"].encode() not in siege["log"]
    assert b"the page: http://127.0.0.1" in siege["log"]
    for item in SHELF.items:
        assert item.title.encode() not in heard
    for words in (b"SQLite", b"Traceback", b"/profiles/"):
        assert words not in heard


def test_the_person_notices_nothing(siege: dict[str, Any]) -> None:
    assert len(siege["slate"]) == 5
    assert len(siege["history"]) == 10
    assert {row["refusal"] for row in siege["privacy"]["sent"]} - {""} <= {*REFUSALS}


def test_without_the_group_there_is_no_socket() -> None:
    python()
    with place() as found, service(found):
        assert wait_until(found.socket.exists, timeout=60)
        for account, groups, said in ((NOBODY, [], DENIED), (NOBODY, [64010], "connected")):
            assert connecting(found, account.user, groups) == said


def connecting(found: Place, user: int, groups: list[int]) -> str:
    """What a user in such groups gets from connecting."""
    script = (
        "import socket, sys\n"
        "try:\n    socket.socket(socket.AF_UNIX).connect(sys.argv[1])\n    print('connected')\n"
        "except OSError as error:\n    print(type(error).__name__)\n"
    )
    done = subprocess.run(
        [python(), "-P", "-c", script, str(found.socket)],
        env=environment(Path(os.sep)),
        cwd="/",
        capture_output=True,
        text=True,
        user=user,
        group=user,
        extra_groups=groups,
        check=True,
    )
    return done.stdout.strip()
