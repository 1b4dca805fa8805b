"""A damaged event file is moved aside and never loses the person their ranking, or its bytes."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.events import NewEvent
from client.journal import Journal
from client.quarantine import set_aside, set_aside_if_damaged
from client.store import Store
from shared.catalogue import Catalogue
from shared.errors import DataError
from shared.schema import Item

SHELF = Catalogue(tuple(Item(id=f"item-{n}", title="t", text="t") for n in range(50)))


def full(path: Path) -> Path:
    journal = Journal(path, SHELF, clock=lambda: 1e9)
    journal.record([NewEvent(f"item-{n % 50}") for n in range(400)])
    journal.judge("item-3")
    journal.close()
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return full(tmp_path_factory.mktemp("whole") / "events.sqlite").read_bytes()


def test_a_whole_file_and_no_file_are_left_alone(tmp_path: Path) -> None:
    assert set_aside_if_damaged(tmp_path / "events.sqlite") is None
    (tmp_path / "events.sqlite").touch()
    assert set_aside_if_damaged(tmp_path / "events.sqlite") is None
    path = full(tmp_path / "full.sqlite")
    before = path.read_bytes()
    assert set_aside_if_damaged(path) is None
    assert path.read_bytes() == before
    assert set_aside(path) == []


@pytest.mark.parametrize("damage", ["junk", "cut", "hole", "table", "column", "kind", "text"])
def test_a_damaged_file_is_moved_aside_and_a_new_one_opens(tmp_path: Path, whole: bytes, damage: str) -> None:
    path = tmp_path / "events.sqlite"
    raw = {
        "junk": b"this is no database" * 400,
        "cut": whole[: len(whole) // 2],
        "hole": whole[:4096] + bytes(4096) + whole[8192:],
    }.get(damage, whole)
    path.write_bytes(raw)
    statement = {
        "table": "DROP TABLE verdicts",
        "column": "ALTER TABLE events DROP COLUMN value",
        "kind": "UPDATE events SET kind = 6 WHERE seq = 7",
        "text": "UPDATE events SET time = 'noon' WHERE seq = 7",
    }.get(damage)
    if statement:
        db = sqlite3.connect(path)
        db.execute(statement)
        db.commit()
        db.close()
        raw = path.read_bytes()
    journal = Journal(path, SHELF)
    assert journal.quarantined is not None
    assert journal.quarantined in set_aside(path)
    assert journal.quarantined.name.startswith("events.sqlite.damaged-2")
    assert journal.quarantined.read_bytes() == raw
    assert journal.store.count() == 0
    assert journal.record([NewEvent("item-1")]).first == 0
    journal.close()
    again = Journal(path, SHELF)
    assert again.quarantined is None
    assert again.newest(5).items.tolist() == [1]
    again.close()


def test_the_log_of_a_damaged_file_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"events.sqlite{suffix}").write_bytes(b"nothing of use " * 500)
    moved = set_aside_if_damaged(path)
    assert moved is not None
    assert list(tmp_path.glob("events.sqlite")) == []
    assert (tmp_path / f"{moved.name}-wal").read_bytes().startswith(b"nothing of use")
    assert not (tmp_path / "events.sqlite-wal").exists()


def test_two_damages_in_one_second_keep_both_files(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    for _ in range(3):
        path.write_bytes(b"this is no database" * 400)
        set_aside_if_damaged(path)
    assert len(set_aside(path)) == 3


def test_a_file_that_somebody_else_holds_is_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = full(tmp_path / "events.sqlite")
    real = sqlite3.connect
    monkeypatch.setattr("client.quarantine.sqlite3.connect", lambda at, **rest: real(at, **{**rest, "timeout": 0}))
    holder = real(path, isolation_level=None)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(DataError, match=r"could not be checked .*locked"):
        Journal(path, SHELF)
    holder.execute("ROLLBACK")
    holder.close()
    assert set_aside(path) == []
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.undo()
    with pytest.raises(DataError, match="could not be checked"):
        Journal(folder, SHELF)


def test_a_newer_version_is_not_damage(tmp_path: Path) -> None:
    path = full(tmp_path / "events.sqlite")
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(DataError, match="update homerank"):
        Journal(path, SHELF)
    assert set_aside(path) == []


def test_a_file_of_an_earlier_version_is_not_damage(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    db = sqlite3.connect(path)
    db.execute(
        "CREATE TABLE events (device INTEGER NOT NULL, seq INTEGER NOT NULL, item TEXT NOT NULL, time REAL,"
        " kind INTEGER NOT NULL, role INTEGER NOT NULL, PRIMARY KEY (device, seq)) WITHOUT ROWID"
    )
    db.execute("INSERT INTO events VALUES (0, 0, 'item-9', 5.0, 1, 0)")
    db.commit()
    db.close()
    journal = Journal(path, SHELF)
    assert journal.quarantined is None
    assert journal.newest(3).items.tolist() == [9]
    journal.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=4))
def test_whatever_bytes_change_the_person_can_go_on(
    tmp_path: Path, whole: bytes, changes: list[tuple[int, int]]
) -> None:
    """Byte 60 to 63 is the version: a changed one may say that the file is newer, which is an error of its own."""
    folder = tmp_path / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    raw = bytearray(whole)
    for place, value in changes:
        if not 60 <= place % len(raw) < 64:
            raw[place % len(raw)] = value
    (folder / "events.sqlite").write_bytes(raw)
    journal = Journal(folder / "events.sqlite", SHELF)
    journal.record([NewEvent("item-1")])
    assert journal.newest(1).items.tolist() == [1]
    assert journal.seen()[1]
    journal.newest(1_000)
    journal.close()


def test_a_damaged_index_is_made_anew_where_only_writing_notices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.quarantine.FULLY_CHECKED", 0)
    path = tmp_path / "events.sqlite"
    journal = Journal(path, SHELF, clock=lambda: 1e9)
    journal.record([NewEvent(f"item-{n}") for n in range(8)])
    journal.close()
    db = sqlite3.connect(path)
    page = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'events_seen'").fetchone()[0]
    db.close()
    raw = bytearray(path.read_bytes())
    place = raw.index(b"item-2", 4096 * (page - 1), 4096 * page)
    raw[place : place + 6] = b"item-X"
    path.write_bytes(raw)
    journal = Journal(path, SHELF, clock=lambda: 1e9)
    assert journal.quarantined is None
    with pytest.raises(DataError, match=r"found damage and wrote nothing .* indexes were made anew, so ask again"):
        journal.retain(window=4, max_events=4)
    assert journal.store.count() == 8
    assert journal.retain(window=4, max_events=4) == 4
    journal.close()


def test_a_bulk_store_says_so_instead(tmp_path: Path) -> None:
    (tmp_path / "devices.sqlite").write_bytes(b"this is no database" * 400)
    with pytest.raises(DataError):
        Store(tmp_path / "devices.sqlite")
    assert set_aside(tmp_path / "devices.sqlite") == []
