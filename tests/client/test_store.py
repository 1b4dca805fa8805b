"""The event store: one file, all or nothing, ten thousand devices as rows."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from client.store import Role, Row, Store
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


def test_a_file_from_before_events_had_values_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    old = sqlite3.connect(path)
    columns = "device INTEGER NOT NULL, seq INTEGER NOT NULL, item TEXT NOT NULL, time REAL, kind INTEGER NOT NULL"
    old.execute(f"CREATE TABLE events ({columns}, role INTEGER NOT NULL, PRIMARY KEY (device, seq)) WITHOUT ROWID")
    old.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", [row[:6] for row in ROWS])
    old.commit()
    old.close()
    for _ in range(2):
        store = Store(path)
        past = store.history(0, SHELF)
        assert past.items.tolist() == [1, 0]
        assert past.roles.tolist() == [Role.TRAIN, Role.VALIDATE]
        assert np.isnan(past.values).all()
        assert past.attributes == {}
        store.close()
    store = Store(path)
    store.replace(ROWS)
    assert store.history(0, SHELF).values[0] == 4.5
    store.close()


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
