"""The event store: one file, all or nothing, ten thousand devices as rows."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.store import TABLES, Role, Row, Store
from shared.catalogue import Catalogue
from shared.errors import DataError
from shared.schema import EventKind, Item

SHELF = Catalogue(tuple(Item(id=name, title=name, text=name) for name in ("a", "b", "c")))
ROWS: list[Row] = [
    (0, 0, "b", 10.0, EventKind.CLICK, Role.TRAIN, 4.5),
    (0, 1, "a", None, EventKind.SKIP, Role.VALIDATE, None),
    (1, 0, "c", 5.0, EventKind.LIKE, Role.HISTORY, None),
]


@pytest.fixture
def store() -> Iterator[Store]:
    opened = Store(":memory:")
    yield opened
    opened.close()


def test_a_history_comes_back_in_order(store: Store) -> None:
    store.replace(ROWS[::-1])
    past = store.history(0, SHELF)
    assert past.items.tolist() == [1, 0]
    assert past.times[0] == 10.0
    assert np.isnan(past.times[1])
    assert past.kinds.tolist() == [EventKind.CLICK, EventKind.SKIP]
    assert past.roles.tolist() == [Role.TRAIN, Role.VALIDATE]
    assert past.values[0] == 4.5
    assert np.isnan(past.values[1])
    assert (past.items.dtype, past.times.dtype, past.values.dtype) == (np.int64, np.float64, np.float64)


def test_devices_do_not_see_each_other(store: Store) -> None:
    store.replace(ROWS)
    assert store.history(1, SHELF).items.tolist() == [2]
    assert len(store.history(2, SHELF)) == 0
    assert store.history(2, SHELF).items.dtype == np.int64
    assert store.count() == 3


def test_events_on_items_that_are_gone_are_left_out(store: Store) -> None:
    store.replace(ROWS)
    past = store.history(0, SHELF.subset([1, 2]))
    assert past.items.tolist() == [0]
    assert past.roles.tolist() == [Role.TRAIN]


def test_a_history_can_be_cut(store: Store) -> None:
    store.replace(ROWS)
    past = store.history(0, SHELF)
    assert past[:1].items.tolist() == [1]
    assert past[past.roles == Role.VALIDATE].kinds.tolist() == [EventKind.SKIP]
    assert past[:1].values.tolist() == [4.5]
    assert len(past[:0]) == 0


def test_each_device_knows_its_own_person(store: Store) -> None:
    store.replace(ROWS)
    assert store.history(0, SHELF).attributes == {}
    about = [(0, "age", "25-34"), (0, "gender", "women"), (1, "age", "18-24")]
    store.set_attributes(about)
    assert store.history(0, SHELF)[:1].attributes == {"age": "25-34", "gender": "women"}
    assert store.history(1, SHELF).attributes == {"age": "18-24"}
    assert store.history(2, SHELF).attributes == {}
    assert sorted(store.attributes()) == about
    with pytest.raises(sqlite3.IntegrityError):
        store.set_attributes([(0, "age", "35-44"), (0, "age", "45-49")])
    assert store.history(0, SHELF).attributes["age"] == "25-34"
    store.set_attributes([(1, "gender", "men")])
    assert [store.history(device, SHELF).attributes for device in (0, 1)] == [{}, {"gender": "men"}]
    assert store.count() == 3


def test_a_failed_replacement_changes_nothing(store: Store) -> None:
    store.replace(ROWS)
    duplicate = [ROWS[0], ROWS[0]]
    incomplete: list[Row] = [(0, 0, None, 1.0, 0, 0, None)]  # type: ignore[list-item]
    for bad in (duplicate, incomplete):
        with pytest.raises(sqlite3.IntegrityError):
            store.replace(bad)
        assert store.count() == 3

    def interrupted() -> Iterator[Row]:
        yield ROWS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.replace(interrupted())
    assert store.count() == 3
    store.replace([])
    assert store.count() == 0


def test_hostile_item_ids_are_just_text(store: Store) -> None:
    name = "x'); DROP TABLE events; --"
    shelf = Catalogue((Item(id=name, title="t", text="t"),))
    store.replace([(0, 0, name, None, 0, 0, None)])
    assert store.history(0, shelf).items.tolist() == [0]


FIRST_EVENTS = """CREATE TABLE events (device INTEGER NOT NULL, seq INTEGER NOT NULL, item TEXT NOT NULL, time REAL,
    kind INTEGER NOT NULL, role INTEGER NOT NULL, PRIMARY KEY (device, seq)) WITHOUT ROWID"""
VALUES = "ALTER TABLE events ADD COLUMN value REAL"
ATTRIBUTES = """CREATE TABLE attributes (device INTEGER NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY (device, name)) WITHOUT ROWID"""
ABOUT = [(0, "age", "25-34"), (1, "age", "18-24")]
#: Every form that files have had without naming a version.
EARLIER = {
    "events": [FIRST_EVENTS],
    "values": [FIRST_EVENTS, VALUES],
    "attributes": [FIRST_EVENTS, ATTRIBUTES],
    "both": [FIRST_EVENTS, VALUES, ATTRIBUTES],
}


def older(path: Path, form: str) -> None:
    """A file as an earlier version wrote it, with all it could hold."""
    db = sqlite3.connect(path)
    for statement in EARLIER[form]:
        db.execute(statement)
    width = 7 if VALUES in EARLIER[form] else 6
    db.executemany(f"INSERT INTO events VALUES ({', '.join('?' * width)})", [row[:width] for row in ROWS])
    if ATTRIBUTES in EARLIER[form]:
        db.executemany("INSERT INTO attributes VALUES (?, ?, ?)", ABOUT)
    db.commit()
    db.close()


def columns(store: Store) -> dict[str, list[tuple[object, ...]]]:
    return {table: store.read(f"PRAGMA table_info({table})") for table in TABLES}


@pytest.mark.parametrize("form", EARLIER)
def test_files_of_every_earlier_form_are_brought_up_to_date_and_lose_nothing(tmp_path: Path, form: str) -> None:
    path = tmp_path / "events.sqlite"
    older(path, form)
    fresh = Store(":memory:")
    for _ in range(2):
        store = Store(path)
        assert store.read("PRAGMA user_version") == fresh.read("PRAGMA user_version") == [(1,)]
        assert columns(store) == columns(fresh)
        kept = [row if VALUES in EARLIER[form] else (*row[:6], None) for row in ROWS]
        assert store.read("SELECT * FROM events ORDER BY device, seq") == kept
        assert store.attributes() == (ABOUT if ATTRIBUTES in EARLIER[form] else [])
        store.close()


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    older(path, "events")
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE verdicts (something)")  # in the way of the migration's last step but one
    db.close()
    with pytest.raises(DataError, match="found no usable event store"):
        Store(path)
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (0,)
    assert [row[1] for row in db.execute("PRAGMA table_info(events)")] == [
        *("device", "seq", "item", "time", "kind", "role")
    ]
    db.close()


def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    Store(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 2")
    db.close()
    with pytest.raises(DataError, match="found event store version 2; expected 1 or older; update homerank"):
        Store(path)


def test_writes_wait_for_the_disk_in_a_persons_store_only(tmp_path: Path) -> None:
    for durable, level in ((True, 2), (False, 0)):
        store = Store(tmp_path / f"{durable}.sqlite", durable=durable)
        assert store.read("PRAGMA journal_mode") == [("wal",)]
        assert store.read("PRAGMA synchronous") == [(level,)]
        store.close()


@given(
    items=st.lists(st.sampled_from(["a", "b", "c", "gone"]), max_size=12),
    count=st.integers(0, 14),
)
def test_the_newest_events_are_the_end_of_the_history(items: list[str], count: int) -> None:
    store = Store(":memory:")
    store.replace([(device, seq, item, None, 1, 0, None) for device in (0, 1) for seq, item in enumerate(items)])
    whole, newest = store.history(0, SHELF), store.newest(0, SHELF, count)
    assert newest.items.tolist() == whole.items.tolist()[max(0, len(whole) - count) :]
    assert newest.items.dtype == np.int64
    store.close()


def test_the_newest_events_come_with_all_that_a_history_has(store: Store) -> None:
    store.replace(ROWS)
    store.set_attributes(ABOUT)
    whole, newest = store.history(0, SHELF), store.newest(0, SHELF, 2)
    for name in ("items", "times", "kinds", "roles", "values"):
        np.testing.assert_array_equal(getattr(newest, name), getattr(whole, name))
    assert newest.attributes == {"age": "25-34"}


def test_reading_the_newest_events_costs_no_more_in_a_long_history(store: Store) -> None:
    """In steps of SQLite's virtual machine, ten at a time."""

    def cost() -> int:
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        with store.transaction() as db:
            db.set_progress_handler(count, 10)
            store.newest(0, SHELF, 5)
            db.set_progress_handler(None, 10)
        return steps

    store.replace((0, seq, "a", None, 1, 0, None) for seq in range(10))
    short = cost()
    store.replace((0, seq, "a", None, 1, 0, None) for seq in range(10_000))
    assert 0 < cost() <= 2 * short


def test_every_write_is_noticed_whoever_makes_it(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    store, other = Store(path), Store(path)
    known = {store.changes()}
    store.replace(ROWS)
    known.add(store.changes())
    store.replace([])
    known.add(store.changes())
    other.replace(ROWS)
    known.add(store.changes())
    assert len(known) == 4
    assert store.count() == 3
    assert store.changes() in known
    store.close()
    other.close()


def test_a_name_that_is_no_text_any_more_does_not_hide_the_others(store: Store) -> None:
    store.replace(ROWS)
    with store.transaction() as db:
        db.execute("UPDATE events SET item = CAST(X'ff' AS TEXT) WHERE device = 0 AND seq = 0")
    assert store.history(0, SHELF).items.tolist() == [0]


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_outlives_its_process_and_is_private(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "events.sqlite"
    first = Store(path, durable=durable)
    first.replace(ROWS)
    first.close()
    again = Store(path)
    assert again.history(0, SHELF).items.tolist() == [1, 0]
    assert [stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()] == [0o600] * len(list(tmp_path.iterdir()))
    again.close()


def test_a_damaged_file_is_a_data_error(tmp_path: Path) -> None:
    junk = tmp_path / "junk.sqlite"
    junk.write_bytes(b"this is no database" * 100)
    with pytest.raises(DataError, match="found no usable event store"):
        Store(junk)
    assert junk.read_bytes().startswith(b"this is no database")
    with pytest.raises(DataError, match="found no usable event store"):
        Store(tmp_path / "absent" / "events.sqlite")


def test_ten_thousand_devices_are_rows(store: Store) -> None:
    store.replace((device, 0, "a", None, 0, 0, None) for device in range(10_000))
    assert store.count() == 10_000
    assert len(store.history(9_999, SHELF)) == 1
