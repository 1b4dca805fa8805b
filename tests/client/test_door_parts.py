"""The parts of the door: framing, policy and log."""

from __future__ import annotations

import math
import re
import socket
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from client.door import gate as gate_module
from client.door import wire
from client.door.gate import Gate, Policy
from client.door.sent import OTHERS_KEPT, Sent, SentLog, Totals, read_sent
from client.profile import Profile
from shared.errors import DataError, ProtocolError
from shared.protocol import REFUSALS

# --- framing -----------------------------------------------------------------------------------------------

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_records_arrive_as_they_were_sent(pair: Pair) -> None:
    content = RecordDict(
        {
            "config": ConfigRecord(
                {"text": "ä", "number": 3, "keys": [b"\x00", b"\xff"], "places": [1, 2], "none": b""}
            ),
            "arrays": ArrayRecord({"packed": Array(np.arange(300_000, dtype=np.float32))}),
            "metrics": MetricRecord({"loss": 0.5}),
        }
    )
    writer = Thread(target=wire.write, args=(pair[0], wire.pack(content)), kwargs={"timeout": 10})
    writer.start()
    assert wire.unpack(wire.read(pair[1], timeout=10)) == content
    writer.join()


@given(st.binary(max_size=200))
def test_any_bytes_are_records_or_a_protocol_error(data: bytes) -> None:
    found: object
    try:
        found = wire.unpack(data)
    except ProtocolError as error:
        found = error.code
    assert isinstance(found, RecordDict) or found == "bad-message"


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"", EOFError),
        (b"\x00", ConnectionError),
        (struct.pack(">I", 5), ConnectionError),
        (struct.pack(">I", 5) + b"abcd", ConnectionError),
        (struct.pack(">I", wire.MAX_BYTES + 1), ProtocolError),
    ],
)
def test_a_message_that_is_not_whole_is_an_error(sent: bytes, error: type[Exception], pair: Pair) -> None:
    pair[0].sendall(sent)
    pair[0].shutdown(socket.SHUT_WR)
    with pytest.raises(error):
        wire.read(pair[1], timeout=5)


def test_who_sends_a_byte_now_and_then_is_too_slow(pair: Pair) -> None:
    pair[0].sendall(struct.pack(">I", 5) + b"a")
    with pytest.raises(TimeoutError):
        wire.read(pair[1], timeout=0.05)


def test_no_message_over_the_limit_is_sent(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_BYTES", 3)
    with pytest.raises(ProtocolError, match="at most 3"):
        wire.write(pair[0], b"abcd", timeout=1)


# --- policy ------------------------------------------------------------------------------------------------


def gate(folder: Path, monkeypatch: pytest.MonkeyPatch, **policy: Any) -> Gate:
    """A gate on a machine with two cores."""
    monkeypatch.setattr("psutil.cpu_count", lambda: 2)
    return Gate(Profile.open(folder), Policy(**policy), SentLog(":memory:"), lambda: 0.0)


@pytest.mark.parametrize(
    ("battery", "free"),
    [
        (None, True),
        (SimpleNamespace(power_plugged=True), True),
        (SimpleNamespace(power_plugged=None), True),
        (SimpleNamespace(power_plugged=False), False),
    ],
)
def test_training_waits_for_the_mains(
    battery: object, free: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.sensors_battery", lambda: battery)
    assert gate(tmp_path, monkeypatch, max_load=math.inf).machine_is_free() is free
    assert gate(tmp_path, monkeypatch, max_load=math.inf, on_ac=False).machine_is_free()


def test_a_platform_without_batteries_is_on_the_mains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("psutil.sensors_battery")
    assert gate(tmp_path, monkeypatch, max_load=math.inf).machine_is_free()


def test_training_waits_until_others_are_done_and_not_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two cores at most half busy: a load of 1. A thread that ran for the last 60 s is 1 - 1/e = .63 of the average."""
    now = [1000.0]
    monkeypatch.setattr(gate_module.time, "monotonic", lambda: now[0])
    found = gate(tmp_path, monkeypatch, max_load=0.5, on_ac=False)
    for load, free in ((0.9, True), (1.1, False)):
        monkeypatch.setattr("psutil.getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert found.machine_is_free() is free
    found.worked(60.0)
    for load, free in ((1.62, True), (1.64, False)):
        monkeypatch.setattr("psutil.getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert found.machine_is_free() is free
    now[0] += 60.0  # and a minute later .63 / e = .23
    for load, free in ((1.22, True), (1.24, False)):
        monkeypatch.setattr("psutil.getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert found.machine_is_free() is free


def test_so_many_messages_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(gate_module.time, "monotonic", lambda: now[0])
    found = gate(tmp_path, monkeypatch, max_messages=2)
    assert [found.admits() for _ in range(3)] == [True, True, False]
    now[0] = 59.0
    assert not found.admits()
    now[0] = 60.0
    assert [found.admits() for _ in range(3)] == [True, True, False]


# --- the log -----------------------------------------------------------------------------------------------


def sent(**changes: Any) -> Sent:
    values = {
        "time": 10.0,
        "run": "r",
        "round": 1,
        "phase": "train",
        "stage": "",
        "bytes": 100,
        "sha256": "0" * 64,
        "refusal": "",
        "delta": 1e-5,
        "computed": True,
        "epsilon": {"event": 0.5, "user": 0.25},
    }
    return Sent(**{**values, **changes})


def test_rows_come_back_newest_first_and_page_by_page(tmp_path: Path) -> None:
    log = SentLog(tmp_path / "sent.sqlite")
    rows = [sent(round=number) for number in range(5)]
    for row in rows:
        log.write(row)
    assert [row for _, row in log.newest(2)] == rows[:2:-1]
    assert [row for _, row in log.newest(9, before=log.newest(2)[-1][0])] == rows[2::-1]
    assert log.last_round() == rows[-1]
    log.close()
    assert read_sent(tmp_path / "sent.sqlite", 1) == ([(5, rows[-1])], Totals(rounds=5, answers=5, bytes=500))
    assert (tmp_path / "sent.sqlite").stat().st_mode & 0o777 == 0o600


def test_what_counts_against_a_cap() -> None:
    log = SentLog(":memory:")
    for row in (
        sent(time=10.0),
        sent(time=20.0, phase="popularity", run="other"),
        sent(time=30.0, refusal="failed"),  # charged, then killed
        sent(time=40.0, refusal="busy", computed=False, epsilon={}),
        sent(time=50.0, stage="keys", computed=False, epsilon={}),
    ):
        log.write(row)
    assert log.given() == 3
    assert log.given(run="r") == 2
    assert log.given(between=(10.0, 20.0)) == 1
    assert log.totals() == Totals(rounds=1, answers=2, bytes=500)
    assert log.last_round() == sent(time=20.0, phase="popularity", run="other")


def test_answers_stay_for_good_and_of_the_rest_the_newest() -> None:
    log = SentLog(":memory:")
    log.write(sent())
    for number in range(OTHERS_KEPT + 5):
        log.write(sent(time=float(number), computed=False, refusal="paused", epsilon={}))
    rows = [row for _, row in log.newest(10_000)]
    assert len(rows) == OTHERS_KEPT + 1
    assert [rows[-1], rows[-2].time] == [sent(), 5.0]
    assert log.totals() == Totals(1, 1, 100 * (OTHERS_KEPT + 6))


@pytest.mark.parametrize("statement", ["UPDATE sent SET bytes = 0", "DELETE FROM sent"])
def test_what_was_sent_cannot_be_unsaid(statement: str) -> None:
    log = SentLog(":memory:")
    log.write(sent())
    with pytest.raises(sqlite3.IntegrityError, match="what was sent was sent"):
        log._db.execute(statement)


def test_a_log_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "sent.sqlite"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(DataError, match="so nothing leaves"):
        SentLog(path)
    path.unlink()
    log = SentLog(path)
    log._db.execute("PRAGMA user_version = 2")
    log._db.execute("PRAGMA query_only = ON")
    with pytest.raises(DataError, match="so nothing leaves"):
        log.write(sent())
    with pytest.raises(DataError, match="found version 2 of the log"):
        SentLog(path)
    assert log.newest() == []


# --- what is promised --------------------------------------------------------------------------------------

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "privacy.md").read_text(encoding="utf-8")


def test_the_privacy_page_explains_each_code() -> None:
    table = PAGE.split("## What a device says")[1].split("## The training door")[0]
    codes = [code for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for code in re.findall(r"`(.*?)`", row)]
    assert sorted(codes) == sorted(REFUSALS)


def test_the_privacy_page_states_the_policy_that_holds() -> None:
    door, policy = PAGE.split("## The training door")[1].split("## The statement")[0], Policy()
    for words in (
        f"{policy.max_messages} a minute",
        f"{policy.max_per_day} answers computed from behaviour a day",
        f"{policy.max_per_run} to one run",
        f"{policy.max_rounds:,} in the device's life",
    ):
        assert words in door
    assert f"({policy.deadline / 60:.0f} minutes)" in PAGE
