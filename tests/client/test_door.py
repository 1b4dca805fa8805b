"""Everything that can be said to the socket, and that nothing but a charged answer or a fixed code ever comes back."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from client.door import delivery, server, wire
from client.door import rounds as rounds_module
from client.door.gate import ANY_TIME, Policy
from client.door.lock import served_at
from client.door.sent import read_sent
from client.door.server import Door, open_door
from client.limits import Limits
from client.profile import Preferences, Profile
from shared.artifacts import load_adapter
from shared.errors import AdapterError, ConfigError, DeploymentError
from shared.noise import Layer, Noise
from shared.privacy.accounting import gaussian_epsilon
from shared.protocol import Manifest, decode_reply, encode_request
from shared.secagg import masks, shamir
from shared.secagg.messages import (
    Delivery,
    Keys,
    Neighbours,
    Question,
    Start,
    Survivors,
    encode_question,
    read_masked,
    read_reply,
)
from shared.terminal import wait_until
from tests.client.small_device import ANYTHING, CAREFUL, EVENT, OPEN, AdapterState, question, rows, tiny_runtime
from tests.client.small_door import NOT_A_QUESTION, InProcess, charges, only_reply, person, refused, say

PHASES = ("popularity", "prior", "train", "validate")
FAST = replace(ANY_TIME, min_seconds=0.0, max_messages=10_000)
RICH = replace(CAREFUL, epsilon=1000.0)
SECURE = Noise("event", "aggregate", "device", 3, event=Layer(2.0, 2.0), bound=2.0, scale=1000.0).to_dict()


@pytest.fixture(autouse=True)
def _answers_in_this_process(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds_module, "Worker", InProcess)


OpenDoor = Callable[..., Door]


@pytest.fixture
def open_at(tmp_path: Path) -> Iterator[OpenDoor]:
    """Opens doors that are closed after the test."""
    opened: list[Door] = []

    def start(profile: Profile | None = None, *, limits: Limits = RICH, **settings: Any) -> Door:
        door = Door(profile or person(tmp_path), limits=limits, **{"policy": FAST, **settings})
        door.start()
        opened.append(door)
        return door

    yield start
    for door in opened:
        door.close()


def code_for(door: Door, phase: str = "train", **changes: Any) -> str | None:
    """The code that a question gets, None when it is answered."""
    manifest, content = question(phase, **changes)
    reply = wire.ask(door.path, content, timeout=60)
    code = refused(reply, manifest)
    if code is None:
        assert decode_reply(reply, manifest).shapes == manifest.reply
    return code


class Session:
    """The other side of one session of secure aggregation with one device."""

    def __init__(self, door: Door, *, number: int = 0, run: str = "r", others: int = 5) -> None:
        self.door, self.session = door, bytes([number]) * 16
        self.full, request = question("train", noise=SECURE, run=run)
        self.short = replace(self.full, shapes={})
        self.requests = {True: request, False: encode_request(self.short, AdapterState({}))}
        self.sealing = [masks.new_secret_key() for _ in range(others)]
        self.masking = [masks.new_secret_key() for _ in range(others)]

    def ask(self, body: Question) -> RecordDict:
        request = self.requests[isinstance(body, Delivery)]
        return wire.ask(self.door.path, encode_question(request, session=self.session, body=body), timeout=60)

    def neighbours(self) -> Neighbours:
        public = masks.public_key
        return Neighbours([public(key) for key in self.sealing], [public(key) for key in self.masking], 3)

    def delivery(self, mine: Keys) -> Delivery:
        boxes = []
        for source in range(4):
            key = masks.agree(self.sealing[source], [mine.sealing])[0]
            head = self.session + masks.public_key(self.masking[source]) + mine.masking
            boxes.append(masks.seal(key, head + bytes(2 * shamir.SHARE_BYTES)))
        return Delivery([0, 1, 2, 3], boxes)

    def until_masked(self) -> RecordDict:
        mine = read_reply(self.ask(Start()), Keys, manifest=self.short)
        assert refused(self.ask(self.neighbours()), self.short) is None
        return self.ask(self.delivery(mine))


# --- what comes back ---------------------------------------------------------------------------------------


def everything(door: Door) -> Iterator[tuple[str, Manifest | None, RecordDict, bool]]:
    """Each thing that can be said: a name, its manifest, what came back, and whether behaviour may be in it."""
    for phase in (*PHASES, "install"):
        for name, changes in {
            "sound": {},
            "without protection": {"noise": OPEN},
            "for another catalogue": {"catalogue": "c" * 64},
            "for another backbone": {"backbone": "b" * 64},
            "for other names": {"reply": {"events": (24,)}},
            "without a noise plan": {"noise": None},
            "for too many numbers": {"reply": {"events": (20_000_000,)}},
            "with hardly any noise": {"noise": {**EVENT, "event": {"multiplier": 1e-6, "clip": 2.0}}},
            "without settings": {"settings": {}},
        }.items():
            manifest, content = question(phase, **changes)
            yield f"{phase} {name}", manifest, wire.ask(door.path, content, timeout=60), phase != "install"
    _, content = question("train")
    values = json.loads(str(content["config"]["manifest"]))
    for name, value in {"schema": 2, "phase": "export", "round": -1, "run": "\x1b[2J", "query": "events"}.items():
        content["config"]["manifest"] = json.dumps(values | {name: value})
        yield f"{name} {value!r}", None, wire.ask(door.path, content, timeout=60), False
    for name, content in NOT_A_QUESTION.items():
        yield name, None, wire.ask(door.path, content, timeout=60), False
    for name, data in {"garbage": b"\xff" * 300, "nothing": b"", "text": b"GET / HTTP/1.1\r\n\r\n"}.items():
        yield name, None, only_reply(say(door.path, data)), False
    yield "a length without end", None, only_reply(say(door.path, b"x", announce=2**32 - 1)), False
    yield "half a message", None, only_reply(say(door.path, b"x", announce=9)), False
    session = Session(door)
    for body in (Survivors([0]), session.neighbours(), Delivery([], [])):
        manifest = session.full if isinstance(body, Delivery) else session.short
        yield f"{type(body).__name__} too early", manifest, session.ask(body), False
    mine = session.ask(Start())
    yield "keys", session.short, mine, False
    yield "the same session again", session.short, session.ask(Start()), False
    yield "shares", session.short, session.ask(session.neighbours()), False
    boxes = session.delivery(read_reply(mine, Keys, manifest=session.short))
    yield "masked", session.full, session.ask(boxes), True
    yield "masked again", session.full, session.ask(boxes), True
    yield "opening", session.short, session.ask(Survivors([0, 1, 2, 3])), False
    yield "opening again", session.short, session.ask(Survivors([0, 1, 2])), False


#: By name, what is answered with anything but a code.
ANSWERED = {*(f"{phase} sound" for phase in (*PHASES, "install")), "keys", "shares", "masked", "opening"} | {
    # A delivery is public: what its noise plan says about releases does not matter to it.
    *(f"install {name}" for name in ("without protection", "without a noise plan", "with hardly any noise")),
}


def test_nothing_but_a_charged_answer_or_a_code_ever_comes_back(open_at: OpenDoor, tmp_path: Path) -> None:
    """The codes are the same, and everything has the same form and length, whatever the person did."""
    people = {
        "ana": rows([*range(9), 9], held_out=9),
        "ben": [],
        "cy": rows([n % 24 for n in range(200)], held_out=190),
    }
    seen: dict[str, list[tuple[str, str | None, int]]] = {}
    for name, events in people.items():
        profile = person(tmp_path, name, events)
        door, before = open_at(profile), 0
        seen[name] = []
        for what, manifest, reply, computes in everything(door):
            code, after = refused(reply, manifest), len(charges(profile))
            assert (code is None) == (what in ANSWERED), (what, code)
            assert after - before == (computes and code is None), what
            seen[name].append((what, code, len(wire.pack(reply))))
            before = after
        assert before == len(PHASES) + 1
    assert seen["ana"] == seen["ben"] == seen["cy"]
    assert {code for _, code, _ in seen["ana"]} == {
        None,
        "bad-message",
        "schema",
        "trust",
        "catalogue",
        "backbone",
        "budget",
    }


def test_a_hundred_questions_at_once_get_one_answer(open_at: OpenDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    door, going = open_at(), Event()

    class Waiting(InProcess):
        def answer(self, content: RecordDict, memory: RecordDict, *, deadline: float) -> tuple[RecordDict, RecordDict]:
            going.wait(60)
            return super().answer(content, memory, deadline=deadline)

    monkeypatch.setattr(rounds_module, "Worker", Waiting)
    manifest, content = question("train")
    with ThreadPoolExecutor(100) as pool:
        asked = [pool.submit(wire.ask, door.path, content, timeout=60) for _ in range(100)]
        busy = 0
        while busy < 99:  # at once, while the first one is still being answered
            busy = sum(future.done() for future in asked)
        assert door.status().state == "training"
        going.set()
        codes = [refused(future.result(), manifest) for future in asked]
    assert sorted(codes, key=str) == [None, *["busy"] * 99]
    assert len(charges(door.profile)) == 1
    assert door.status().state == "idle"


@pytest.mark.parametrize(
    ("policy", "codes"),
    [
        (replace(FAST, max_messages=2), [None, None, "busy"]),
        (replace(FAST, min_seconds=3600.0), [None, "busy", "busy"]),
        (replace(FAST, max_per_day=2), [None, None, "busy"]),
        (replace(FAST, max_per_run=1), [None, "budget", "budget"]),
        (replace(FAST, max_rounds=2), [None, None, "budget"]),
        (replace(FAST, max_load=0.0), ["paused"] * 3),
    ],
)
@pytest.mark.parametrize("limits", [RICH, ANYTHING])
def test_the_owners_policy_bounds_what_is_given(
    policy: Policy, codes: list[str | None], limits: Limits, open_at: OpenDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also without privacy, when no ledger counts."""
    monkeypatch.setattr("psutil.getloadavg", lambda: (0.5, 0.0, 0.0))
    door = open_at(limits=limits, policy=policy)
    noise = EVENT if limits is RICH else OPEN
    assert [code_for(door, phase, noise=noise) for phase in ("popularity", "train", "train")] == codes
    assert [row.refusal for _, row in read_sent(door.profile.sent)[0]][::-1] == [
        code or "" for code in codes if not (code == "busy" and policy.max_messages == 2)
    ]


def test_the_cap_of_a_run_is_one_runs_and_that_of_a_life_is_kept(open_at: OpenDoor, tmp_path: Path) -> None:
    profile = person(tmp_path)
    first = open_at(profile, policy=replace(FAST, max_per_run=1, max_rounds=3))
    assert [code_for(first, run=run) for run in ("a", "a", "b")] == [None, "budget", None]
    first.close()
    profile.sent.unlink()
    again = open_at(profile, policy=replace(FAST, max_per_run=1, max_rounds=3))
    assert [code_for(again, run=run) for run in ("a", "c")] == [None, "budget"]


def test_a_delivery_is_never_rate_limited(open_at: OpenDoor) -> None:
    door = open_at(policy=replace(FAST, min_seconds=3600.0, max_per_day=1, max_per_run=1, max_rounds=1))
    assert [code_for(door), code_for(door), code_for(door, "install")] == [None, "budget", None]


# --- who does not take part --------------------------------------------------------------------------------


def test_a_paused_person_answers_nothing(open_at: OpenDoor) -> None:
    door = open_at()
    door.profile.save_preferences(Preferences(participate=False))
    assert door.status().state == "paused"
    assert [code_for(door, phase) for phase in (*PHASES, "install")] == ["paused"] * 5
    assert refused(Session(door).ask(Start())) == "paused"
    assert refused(only_reply(say(door.path, b"\xff"))) == "paused"
    assert charges(door.profile) == []
    door.profile.save_preferences(Preferences())
    assert code_for(door) is None


def test_settings_that_cannot_be_read_are_a_pause(open_at: OpenDoor) -> None:
    door = open_at()
    door.profile.settings.write_text("{")
    assert code_for(door) == "paused"


def test_a_pause_of_the_service_lasts_until_it_ends(open_at: OpenDoor) -> None:
    door = open_at()
    door.pause()
    assert (code_for(door), door.status().state, door.status().last_refusal) == ("paused", "paused", "paused")
    door.resume()
    assert code_for(door) is None


def test_an_answer_that_a_pause_or_a_kill_overtook_does_not_leave(
    open_at: OpenDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = open_at()

    class Overtaken(InProcess):
        def answer(self, content: RecordDict, memory: RecordDict, *, deadline: float) -> tuple[RecordDict, RecordDict]:
            found = super().answer(content, memory, deadline=deadline)
            stops.pop()()
            return found

    monkeypatch.setattr(rounds_module, "Worker", Overtaken)
    away = Preferences(participate=False)
    stops = [lambda: door.profile.save_preferences(away), door.kill]
    assert [code_for(door) for _ in range(2)] == ["failed", "paused"]
    log, totals = read_sent(door.profile.sent)
    assert [(row.refusal, row.computed, list(row.epsilon)) for _, row in log] == [
        ("paused", True, ["event"]),
        ("failed", True, ["event"]),
    ]
    assert (totals.rounds, totals.answers, len(charges(door.profile))) == (0, 0, 2)


def test_an_answer_that_was_not_charged_does_not_leave(open_at: OpenDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cheating(InProcess):
        def __init__(self, profile: Profile, limits: Limits) -> None:
            super().__init__(profile, ANYTHING)

    monkeypatch.setattr(rounds_module, "Worker", Cheating)
    assert code_for(open_at(), noise=OPEN) == "failed"


# --- secure aggregation ------------------------------------------------------------------------------------


def test_a_secure_session_is_remembered_in_the_service(open_at: OpenDoor) -> None:
    door = open_at()
    session = Session(door)
    size = AdapterState.length(session.full.reply)
    assert read_masked(session.until_masked(), manifest=session.full, size=size).shape == (size,)
    assert [(row.stage, row.computed) for _, row in read_sent(door.profile.sent)[0]] == [
        ("masked", True),
        ("shares", False),
        ("keys", False),
    ]


@pytest.mark.parametrize("between", ["another run", "kill", "a new door"])
def test_what_a_secure_session_knows_is_gone_with_its_run(between: str, open_at: OpenDoor) -> None:
    door = open_at()
    session = Session(door)
    mine = read_reply(session.ask(Start()), Keys, manifest=session.short)
    session.ask(session.neighbours())
    if between == "another run":
        assert refused(Session(door, number=1, run="other").ask(Start())) is None
    elif between == "kill":
        door.kill()
    else:
        door.close()
        session.door = open_at(door.profile)
    assert refused(session.ask(session.delivery(mine)), session.full) == "bad-message"
    assert charges(door.profile) == []


# --- delivery ----------------------------------------------------------------------------------------------


def test_a_delivered_adapter_takes_the_place_of_the_last_one(open_at: OpenDoor) -> None:
    told: list[tuple[Path, int]] = []
    door = open_at(on_adapter=lambda folder: told.append((folder, load_adapter(folder)[2]["round"])))
    adapter = door.profile.adapter
    for number in (1, 2, 3):
        assert code_for(door, "install", round=number) is None
    assert told == [(adapter, 1), (adapter, 2), (adapter, 3)]
    assert load_adapter(delivery.previous(adapter))[2]["round"] == 2
    assert load_adapter(adapter)[0] == tiny_runtime().start
    assert delivery.roll_back(adapter)
    assert load_adapter(adapter)[2]["round"] == 2


@pytest.mark.parametrize("error", [AdapterError("no"), ValueError("person-007")])
def test_an_adapter_that_the_service_finds_wrong_goes_back(error: Exception, open_at: OpenDoor) -> None:
    def check(folder: Path) -> None:
        if load_adapter(folder)[2]["round"] == 2:
            raise error

    door = open_at(on_adapter=check)
    assert [code_for(door, "install", round=number) for number in (1, 2)] == [None, "failed"]
    assert load_adapter(door.profile.adapter)[2]["round"] == 1


def test_a_bad_delivery_changes_nothing(open_at: OpenDoor) -> None:
    door = open_at()
    assert code_for(door, "install", round=1) is None
    assert code_for(door, "install", round=2, reply={"difference": (1,)}) == "bad-message"
    assert load_adapter(door.profile.adapter)[2]["round"] == 1


def test_a_crash_between_the_renames_is_mended_at_the_next_start(open_at: OpenDoor) -> None:
    door = open_at()
    assert code_for(door, "install", round=1) is None
    adapter = door.profile.adapter
    door.close()
    adapter.rename(delivery.previous(adapter))
    adapter.with_name("adapter.new").mkdir()
    open_at(door.profile)
    assert load_adapter(adapter)[2]["round"] == 1
    assert not adapter.with_name("adapter.new").exists()


# --- the log -----------------------------------------------------------------------------------------------


def test_the_log_says_what_left_and_what_it_cost(open_at: OpenDoor) -> None:
    """One Gaussian release at z = 2, then a second one; the epsilons add up to that of both."""
    door = open_at(clock=lambda: 1234.0)
    manifest, content = question("train")
    replies = [wire.ask(door.path, content, timeout=60) for _ in range(2)]
    code_for(door, catalogue="c" * 64)
    log, totals = read_sent(door.profile.sent)
    refusal, second, first = (row for _, row in log)
    assert (first.time, first.run, first.round, first.phase, first.delta) == (1234.0, "r", 3, "train", 1e-5)
    assert [row.bytes for row in (first, second)] == [len(wire.pack(reply)) for reply in replies]
    assert [row.sha256 for row in (first, second)] == [
        hashlib.sha256(reply["arrays"]["packed"].data).hexdigest() for reply in replies
    ]
    assert first.epsilon == {"event": pytest.approx(gaussian_epsilon(0.5, delta=1e-5))}
    both = gaussian_epsilon(0.5 * 2**0.5, delta=1e-5)
    assert first.epsilon["event"] + second.epsilon["event"] == pytest.approx(both)
    assert (refusal.refusal, refusal.computed, refusal.epsilon) == ("catalogue", False, {})
    assert (totals.rounds, totals.answers, totals.bytes) == (2, 2, sum(row.bytes for _, row in log))
    assert door.status() == server.Status("idle", second, "catalogue")
    assert np.isfinite(decode_reply(replies[0], manifest).pack()).all()


def test_what_cannot_be_written_down_does_not_leave(open_at: OpenDoor) -> None:
    door = open_at()
    door._sent._db.execute("PRAGMA query_only = ON")
    assert code_for(door) == "failed"


def test_a_ledger_that_is_lost_stops_everything_but_ranking(open_at: OpenDoor) -> None:
    door = open_at()
    assert code_for(door) is None
    door.profile.ledger.unlink()
    assert [code_for(door, phase) for phase in PHASES] == ["failed"] * 4


def test_forgetting_keeps_the_log(open_at: OpenDoor) -> None:
    door = open_at()
    assert code_for(door) is None
    before = read_sent(door.profile.sent)
    journal = door.profile.journal(tiny_runtime().catalogue)
    with door.held():
        assert door.profile.forget(journal).before["events"] == 10
        assert read_sent(door.profile.sent) == before
        assert code_for(door) == "paused"
    journal.close()
    assert code_for(door) is None  # like any device without events
    door.pause()
    with door.held():
        assert code_for(door) == "paused"
    assert code_for(door) == "paused"  # as it was before


# --- the socket --------------------------------------------------------------------------------------------


def test_the_socket_is_closed_to_others_and_gone_afterwards(open_at: OpenDoor, tmp_path: Path) -> None:
    door = open_at()
    assert door.path == tmp_path / "run" / "ana.sock"
    assert stat.S_IMODE(door.path.stat().st_mode) == 0o660
    assert stat.S_IMODE(door.path.parent.stat().st_mode) & 0o007 == 0
    assert served_at(door.profile) == door.path
    door.close()
    assert not door.path.exists()
    assert served_at(door.profile) is None


def test_one_profile_has_one_door_and_a_socket_one_profile(open_at: OpenDoor, tmp_path: Path) -> None:
    door, other = open_at(), person(tmp_path, "ben")
    with pytest.raises(DeploymentError, match="one door"):
        Door(door.profile, limits=RICH).start()
    with pytest.raises(DeploymentError, match="another process serves"):
        Door(other, limits=RICH, path=door.path).start()
    assert wait_until(lambda: door.status().state == "idle", timeout=10)  # it looked who is there, and hung up
    assert code_for(door) is None
    with open_door(door.profile, limits=RICH, policy=FAST) as found:
        assert found == (door.path, False)
    with open_door(other, limits=RICH, policy=FAST) as found:
        assert found == (tmp_path / "run" / "ben.sock", True)


def test_what_a_killed_service_left_is_removed(open_at: OpenDoor, tmp_path: Path) -> None:
    profile = person(tmp_path)
    (tmp_path / "run").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
        stale.bind(str(tmp_path / "run" / "ana.sock"))
    assert code_for(open_at(profile)) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [("open/ana.sock", "everybody may enter"), ("x" * 120, "over 107 bytes"), ("kept/file", "found a file")],
)
def test_a_place_where_no_socket_should_be_is_refused(name: str, message: str, tmp_path: Path) -> None:
    profile = person(tmp_path)
    for folder, mode in (("open", 0o755), ("kept", 0o700)):
        (tmp_path / folder).mkdir()
        os.chmod(tmp_path / folder, mode)
    (tmp_path / "kept" / "file").touch()
    with pytest.raises(DeploymentError, match=message):
        Door(profile, limits=RICH, path=tmp_path / name).start()
    assert served_at(profile) is None


def test_who_says_nothing_gets_nothing_and_costs_nothing(open_at: OpenDoor) -> None:
    door = open_at()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.connect(str(door.path))
        channel.shutdown(socket.SHUT_WR)
        assert channel.recv(10) == b""
    assert read_sent(door.profile.sent)[0] == []


@pytest.mark.parametrize("number", [-1, float("nan")])
def test_a_policy_that_means_nothing_is_refused(number: float) -> None:
    with pytest.raises(ConfigError, match=r"policy\.max_load"):
        Policy(max_load=number)
