"""Old windows go whole; forgetting leaves nothing of a person in the bytes."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.erasure import SEARCHED
from client.events import NewEvent
from client.journal import Journal
from client.samples import training_windows
from client.store import Role
from shared.catalogue import Catalogue
from shared.errors import DataError
from shared.schema import EventKind, Item

NAMES = [f"secret-item-{n}" for n in range(30)]
SHELF = Catalogue(tuple(Item(id=name, title="t", text="t") for name in NAMES))
DAY = 86_400.0
NOW = 1_000 * DAY


def filled(path: Path | str = ":memory:", *, count: int = 0, days: tuple[float, ...] = ()) -> Journal:
    """Clicks on the first items, all now or as many days ago as given."""
    journal = Journal(path, SHELF, clock=lambda: NOW)
    ages = days or (0.0,) * count
    journal.record([NewEvent(name, time=NOW - age * DAY) for name, age in zip(NAMES, ages, strict=False)])
    return journal


def kept(journal: Journal) -> list[int]:
    return [row[1] for row in journal.rows()]


# --- retention ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "limit", "first"),
    [
        (21, 0, 0),  # no limit
        (21, 21, 0),
        (21, 20, 4),  # one window of four, though one event would do
        (21, 17, 4),
        (21, 16, 8),
        (21, 4, 20),  # every window goes; the held-out event stays
        (21, 1, 20),
        (24, 5, 20),  # 23 train: five whole windows, and a part that stays
        (24, 1, 20),
        (3, 1, 0),  # no whole window yet
    ],
)
def test_too_many_events_lose_whole_windows_from_the_old_end(count: int, limit: int, first: int) -> None:
    journal = filled(count=count)
    assert journal.retain(window=4, max_events=limit) == first
    assert kept(journal) == list(range(first, count))
    assert journal.retain(window=4, max_events=limit) == 0


@pytest.mark.parametrize(
    ("days", "limit", "first"),
    [
        ((9.0,) * 9, 0, 0),
        ((9.0,) * 9, 10, 0),
        ((9.0,) * 9, 8, 8),
        ((9, 9, 9, 7, 7, 7, 7, 7, 0), 8, 0),  # one event of the oldest window is young enough
        ((7, 9, 9, 9, 9, 9, 9, 9, 0), 8, 0),  # nothing goes before what is older
        ((9, 9, 9, 9, 9, 9, 9, 7, 0), 8, 4),
        ((9, 9, 9, 9, 9, 9, 0), 8, 6),  # the last window is not full, and all of it is old
        ((9, 9, 9, 9, 9, 7, 0), 8, 4),
        ((9, 9), 8, 1),
    ],
)
def test_old_events_go_with_their_window(days: tuple[float, ...], limit: int, first: int) -> None:
    journal = filled(days=days)
    assert journal.retain(window=4, max_days=limit) == first
    assert kept(journal) == list(range(first, len(days)))


def test_the_held_out_event_and_what_came_after_it_stay() -> None:
    journal = filled(days=(9.0,) * 9)
    journal.record(
        [NewEvent(NAMES[20], EventKind.SKIP, NOW - 9 * DAY), NewEvent(NAMES[21], "impression", NOW - 9 * DAY)]
    )
    journal.retain(window=4, max_events=1, max_days=1)
    assert [row[5] for row in journal.rows()] == [Role.VALIDATE, Role.HISTORY, Role.HISTORY]


@pytest.mark.parametrize(("later", "first"), [(9.0, 8), (7.0, 0)])
def test_events_without_times_are_as_old_as_what_follows_them(later: float, first: int) -> None:
    journal = Journal(":memory:", SHELF, clock=lambda: NOW)
    times = [None] * 4 + [NOW - later * DAY] * 4 + [NOW] * 4
    journal.store.replace((0, seq, NAMES[seq], time, 1, 0, None) for seq, time in enumerate(times))
    assert journal.retain(window=4, max_days=8) == first
    journal.store.replace((0, seq, NAMES[seq], None, 1, 0, None) for seq in range(12))
    assert journal.retain(window=4, max_days=8) == 0


def test_a_long_way_is_gone_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.erasure._STEP", 3)
    journal = filled(count=25)
    assert journal.retain(window=4, max_events=5) == 20
    assert kept(journal) == list(range(20, 25))


@given(
    items=st.lists(st.integers(0, 29), min_size=1, max_size=40),
    known=st.sets(st.integers(0, 29), min_size=1),
    limit=st.integers(1, 45),
    window=st.integers(1, 6),
)
def test_windows_that_stay_are_the_ones_they_were(items: list[int], known: set[int], limit: int, window: int) -> None:
    """Also where the catalogue has lost items, whose events are in no window."""
    journal = Journal(":memory:", SHELF, clock=lambda: NOW)
    journal.record([NewEvent(NAMES[item]) for item in items])
    journal.catalogue = SHELF.subset(sorted(known))

    def windows() -> list[list[int]]:
        found = training_windows(journal.store.history(0, journal.catalogue), length=window)
        return [row[real].tolist() for row, real in zip(found.items.numpy(), found.real.numpy(), strict=True)]

    before, count = windows(), journal.store.count()
    gone = journal.retain(window=window, max_events=limit)
    after = windows()
    assert before[len(before) - len(after) :] == after
    assert journal.store.count() == count - gone
    full = [row for row in after if len(row) == window]
    assert journal.store.count() <= limit or not full
    journal.close()


def test_what_is_dropped_counts_as_new_again_and_its_request_is_gone() -> None:
    journal = Journal(":memory:", SHELF, clock=lambda: NOW)
    for n in range(9):
        journal.record([NewEvent(NAMES[n])], key=f"key {n}")
    assert journal.seen()[0]
    journal.retain(window=4, max_events=5)
    assert np.flatnonzero(journal.seen()).tolist() == [4, 5, 6, 7, 8]
    assert journal.store.read("SELECT min(key) FROM requests") == [("key 4",)]
    assert journal.record([NewEvent(NAMES[0])]).first == 9


def test_dropped_events_are_gone_from_the_bytes(tmp_path: Path) -> None:
    journal = filled(tmp_path / "events.sqlite", count=29)
    journal.retain(window=4, max_events=5)
    left = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert NAMES[0].encode() not in left
    assert NAMES[28].encode() in left
    journal.close()


# --- forgetting --------------------------------------------------------------------------------------------


def test_forgetting_leaves_no_byte_of_a_person(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "events.sqlite", SHELF, clock=lambda: NOW)
    words = [*NAMES, "secret-tag", "secret-job", "secret-key"]
    for n, name in enumerate(NAMES):
        journal.record([NewEvent(name), NewEvent(name, "impression")] * 20, key=f"secret-key-{n}")
    journal.judge(NAMES[3])
    journal.set_interest("Secret-Tag", 0)
    journal.store.set_attributes([(0, "job", "secret-job")])

    def found() -> list[str]:
        raw = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        return [word for word in words if word.encode() in raw]

    assert found() == words
    done = journal.forget()
    assert found() == []
    assert done.before == {"events": 1_200, "attributes": 1, "interests": 1, "verdicts": 1, "requests": 30}
    assert set(done.after.values()) == {0}
    assert done.searched == 30 + 1 + 1 + 30  # items, tag, attribute, keys
    assert (tmp_path / "events.sqlite-wal").stat().st_size == 0
    assert not journal.seen().any()
    assert journal.record([NewEvent(NAMES[5])]).first == 0
    journal.close()


def test_forgetting_twice_and_in_memory_is_fine() -> None:
    journal = filled(count=5)
    assert journal.forget().searched == 5
    assert journal.forget().before["events"] == 0
    assert NAMES[0].encode() not in journal.store.content()


def test_words_that_stand_in_the_form_of_the_file_are_not_taken_for_events(tmp_path: Path) -> None:
    shelf = Catalogue(
        tuple(Item(id=name, title="t", text="t") for name in ("item", "7", "device", "INTEGER", "secret"))
    )
    journal = Journal(tmp_path / "events.sqlite", shelf, clock=lambda: NOW)
    journal.record([NewEvent(item.id) for item in shelf.items])
    assert journal.forget().searched == 1
    journal.close()


def test_a_reader_that_holds_on_to_the_past_is_told_of(tmp_path: Path) -> None:
    """Its copy of the events lies in the log until it ends."""
    path = tmp_path / "events.sqlite"
    journal = filled(path, count=20)
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT COUNT(*) FROM events").fetchone() == (20,)
    journal.store.read("PRAGMA busy_timeout = 0")
    with pytest.raises(DataError, match="another program still reads what was there; end it and forget again"):
        journal.forget()
    reader.execute("COMMIT")
    reader.close()
    assert journal.forget().after["events"] == 0
    assert not [path for path in tmp_path.iterdir() if NAMES[0].encode() in path.read_bytes()]
    journal.close()


def test_the_proof_looks(tmp_path: Path) -> None:
    """Bytes that stay behind, here in a companion, are an error and not a receipt."""
    journal = filled(":memory:", count=3)
    journal.store.content = lambda: b"... secret-item-1 ..."  # type: ignore[method-assign]
    with pytest.raises(DataError, match="found words of events in the file after erasing them"):
        journal.forget()


def test_only_so_many_items_are_searched_for(tmp_path: Path) -> None:
    names = [f"thing-{n:05}" for n in range(SEARCHED + 50)]
    shelf = Catalogue(tuple(Item(id=name, title="t", text="t") for name in names))
    journal = Journal(tmp_path / "events.sqlite", shelf, clock=lambda: NOW)
    journal.record([NewEvent(name) for name in names])
    assert journal.forget().searched == SEARCHED
    assert b"thing-0" not in (tmp_path / "events.sqlite").read_bytes()
    journal.close()
