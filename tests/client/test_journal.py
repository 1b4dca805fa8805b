"""One person's events: written once, in order, with the roles that an import would give them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.device import Device
from client.events import NewEvent
from client.journal import MAX_KEY_CHARS, REQUESTS_KEPT, Journal, Recorded, Verdict
from client.samples import seen_items, training_windows
from client.store import Role, Store
from shared.datasets import EventColumns, Interactions
from shared.datasets.splits import qualifying
from shared.errors import CatalogueError, ConfigError, DataError
from shared.privacy.ledger import Ledger
from shared.schema import EventKind
from tests.client.small_device import ANYTHING, SHELF, tiny_runtime

CLICK, SKIP, SHOWN = EventKind.CLICK, EventKind.SKIP, EventKind.IMPRESSION
NOW = 1_700_000_000.0
Step = tuple[int, EventKind]


def opened(path: Path | str = ":memory:", clock: Callable[[], float] = lambda: NOW) -> Journal:
    return Journal(path, SHELF, clock=clock)


def click(*items: int) -> list[NewEvent]:
    return [NewEvent(f"i{item}") for item in items]


def roles(journal: Journal) -> list[Role]:
    return [Role(role) for _, _, _, _, _, role, _ in journal.rows()]


def test_events_come_back_as_they_were_recorded() -> None:
    journal = opened()
    done = journal.record([NewEvent("i3", "like", 5.0), NewEvent("i1", EventKind.RATING, value=4.5)])
    assert done == Recorded(first=0, count=2, new=True)
    assert journal.record(click(7)) == Recorded(first=2, count=1, new=True)
    assert list(journal.rows()) == [
        (0, 0, "i3", 5.0, EventKind.LIKE, Role.TRAIN, None),
        (0, 1, "i1", NOW, EventKind.RATING, Role.TRAIN, 4.5),
        (0, 2, "i7", NOW, EventKind.CLICK, Role.VALIDATE, None),
    ]
    assert journal.newest(2).items.tolist() == [1, 7]


def test_many_rows_come_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.journal._PAGE", 3)
    journal = opened()
    journal.record(click(*range(8)))
    assert [row[1] for row in journal.rows()] == list(range(8))


def test_a_device_ranks_and_trains_on_a_persons_own_store() -> None:
    journal = opened()
    journal.record(click(*range(10)))
    device = Device(0, store=journal.store, ledger=Ledger(":memory:"), catalogue=SHELF, limits=ANYTHING, seed=1)
    windows = training_windows(device.history(), length=4)
    assert windows.items[:, 0].tolist() == [0, 4, 8]
    assert int(windows.real.sum()) == 9  # the newest is held out
    found = {known.item_id for known in device.recommend(tiny_runtime(), k=24)}
    assert found == {f"i{n}" for n in range(10, 24)}


# --- all or nothing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [NewEvent("unknown"), NewEvent("i1", "nod"), NewEvent("i1", time=NOW + 1e6)])
def test_one_bad_event_keeps_the_others_out(bad: NewEvent) -> None:
    journal = opened()
    with pytest.raises((DataError, CatalogueError)):
        journal.record([*click(1, 2), bad])
    assert journal.store.count() == 0
    with pytest.raises(DataError, match="found no events"):
        journal.record([])


def test_a_full_disk_or_a_lock_is_told_and_nothing_is_half_written(tmp_path: Path) -> None:
    journal = opened(tmp_path / "events.sqlite")
    journal.record(click(1))
    with journal.store.transaction() as db:
        pages = db.execute("PRAGMA page_count").fetchone()[0]
    journal.store.read(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DataError, match=r"nothing was written \(database or disk is full\)"):
        journal.record(click(*range(24)) * 100)
    assert [row[2] for row in journal.rows()] == ["i1"]
    assert not journal.seen()[5]
    journal.store.read("PRAGMA max_page_count = 100000")
    journal.store.read("PRAGMA busy_timeout = 0")
    other = sqlite3.connect(tmp_path / "events.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for write in (
        lambda: journal.record(click(2)),
        lambda: journal.set_interest("fun", 2),
        lambda: journal.judge("i2"),
        lambda: journal.retain(window=4, max_events=1),
        journal.forget,
    ):
        with pytest.raises(DataError, match="locked"):
            write()
    other.execute("ROLLBACK")
    other.close()
    assert journal.record(click(2)).first == 1
    journal.close()


def test_what_was_recorded_is_there_after_the_process_has_died(tmp_path: Path) -> None:
    journal = opened(tmp_path / "events.sqlite")
    journal.record(click(1, 2))
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tmp_path.glob("events.sqlite*"):  # as a killed process leaves them
        if file.suffix != ".sqlite-shm":
            (copy / file.name).write_bytes(file.read_bytes())
    again = opened(copy / "events.sqlite")
    assert again.quarantined is None
    assert again.newest(5).items.tolist() == [1, 2]
    assert again.record(click(3)).first == 2
    again.close()
    journal.close()


# --- requests that are sent again --------------------------------------------------------------------------


def test_a_request_sent_again_is_recorded_once() -> None:
    times = iter([NOW, NOW + 60, NOW + 90])
    journal = opened(clock=lambda: next(times))
    first = journal.record(click(1, 2), key="abc")
    journal.record(click(9))
    again = journal.record(click(1, 2), key="abc")
    assert (first.new, again) == (True, Recorded(first=0, count=2, new=False))
    assert [row[2] for row in journal.rows()] == ["i1", "i2", "i9"]


def test_the_same_key_with_other_events_is_a_mistake() -> None:
    journal = opened()
    journal.record(click(1), key="abc")
    for other in (click(2), click(1, 1), [NewEvent("i1", time=5.0)], [NewEvent("i1", "like")]):
        with pytest.raises(DataError, match="request key 'abc' again with other events"):
            journal.record(other, key="abc")
    assert journal.record([NewEvent("i1", "click")], key="abc").new is False
    assert journal.store.count() == 1


@pytest.mark.parametrize("key", ["", "x" * (MAX_KEY_CHARS + 1), "a\nb", "\ud800"])
def test_a_key_is_a_short_printable_word(key: str) -> None:
    with pytest.raises(DataError, match="request key of"):
        opened().record(click(1), key=key)


def test_keys_are_remembered_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert REQUESTS_KEPT >= 10_000
    monkeypatch.setattr("client.journal.REQUESTS_KEPT", 3)
    journal = opened()
    for n in range(8):
        journal.record(click(n), key=str(n))
    assert [key for (key,) in journal.store.read("SELECT key FROM requests ORDER BY key")] == ["4", "5", "6", "7"]


# --- roles -------------------------------------------------------------------------------------------------

V, T, H = Role.VALIDATE, Role.TRAIN, Role.HISTORY


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([(1, CLICK)], [T]),
        ([(1, CLICK), (2, CLICK)], [T, V]),
        ([(1, CLICK), (2, CLICK), (3, CLICK)], [T, T, V]),
        ([(1, CLICK), (2, CLICK), (3, SKIP), (4, SHOWN)], [T, V, H, H]),
        ([(1, CLICK), (2, CLICK), (3, SKIP), (4, CLICK)], [T, T, T, V]),
        ([(1, CLICK), (2, CLICK), (2, EventKind.PURCHASE)], [T, V, H]),
        ([(1, SKIP), (1, CLICK), (2, CLICK)], [T, T, T]),
        ([(1, SHOWN), (1, CLICK), (2, CLICK)], [T, T, V]),
        ([(1, SKIP), (2, SHOWN)], [T, T]),
    ],
)
def test_the_newest_possible_target_is_held_out(steps: list[Step], expected: list[Role]) -> None:
    journal = opened()
    journal.record([NewEvent(f"i{item}", kind) for item, kind in steps])
    assert roles(journal) == expected


def imported_roles(steps: Sequence[Step]) -> list[Role]:
    """The rule of `client.intake`, on the events that `shared.datasets` calls possible targets."""
    count = len(steps)
    events = EventColumns(
        user=np.zeros(count, dtype=np.int32),
        item=np.array([item for item, _ in steps], dtype=np.int32),
        time=np.full(count, np.nan),
        kind=np.array([kind for _, kind in steps], dtype=np.uint8),
        value=np.full(count, np.nan, dtype=np.float32),
    )
    data = Interactions.from_events("steps", users=["me"], catalogue=SHELF, events=events)
    targets = np.flatnonzero(qualifying(data))
    if len(targets) < 2:
        return [T] * count
    return [T if seq < targets[-1] else V if seq == targets[-1] else H for seq in range(count)]


@given(
    steps=st.lists(st.tuples(st.integers(0, 5), st.sampled_from(list(EventKind))), min_size=1, max_size=30),
    cuts=st.sets(st.integers(1, 29)),
)
def test_roles_are_those_of_an_import_however_events_arrive(steps: list[Step], cuts: set[int]) -> None:
    journal = opened()
    ends = sorted({0, len(steps), *(cut for cut in cuts if cut < len(steps))})
    previous: list[int] = []
    for start, end in pairwise(ends):
        journal.record([NewEvent(f"i{item}", kind) for item, kind in steps[start:end]])
        assert roles(journal) == imported_roles(steps[:end])
        trained = [row[1] for row in journal.rows() if row[5] == Role.TRAIN]
        assert trained[: len(previous)] == previous  # so no event ever moves to another training window
        previous = trained
    journal.close()


# --- items seen --------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(list(EventKind)), st.booleans()), max_size=20))
def test_items_seen_are_those_of_the_whole_history(steps: list[tuple[int, EventKind, bool]]) -> None:
    journal = opened()
    for item, kind, ask in steps:
        journal.record([NewEvent(f"i{item}", kind)])
        if ask:
            journal.seen()
    assert np.flatnonzero(journal.seen()).tolist() == seen_items(journal.store.history(0, SHELF)).tolist()
    assert journal.seen().dtype == np.bool_
    journal.close()


def test_items_seen_are_read_once_and_then_kept(tmp_path: Path) -> None:
    journal = opened(tmp_path / "events.sqlite")
    journal.record(click(1))
    assert np.flatnonzero(journal.seen()).tolist() == [1]
    asked: list[str] = []
    journal.store._db.set_trace_callback(asked.append)
    journal.record(click(2))
    journal.record([NewEvent("i3", SHOWN)])
    mask = journal.seen()
    assert np.flatnonzero(mask).tolist() == [1, 2]
    assert not [query for query in asked if "RECURSIVE" in query]
    mask[:] = True  # the caller's own
    assert np.flatnonzero(journal.seen()).tolist() == [1, 2]
    other = Store(tmp_path / "events.sqlite")
    other.replace([(0, 0, "i7", None, CLICK, T, None), (0, 1, "gone", None, CLICK, T, None)])
    assert np.flatnonzero(journal.seen()).tolist() == [7]
    journal.store.replace([])
    assert not journal.seen().any()
    journal.record(click(4))
    journal.catalogue = SHELF.subset([4, 5])
    assert journal.seen().tolist() == [True, False]
    other.close()
    journal.close()


def test_neither_recording_nor_what_was_seen_costs_more_in_a_long_history() -> None:
    """In steps of SQLite's virtual machine, ten at a time."""
    journal = opened()

    def cost(what: Callable[[], object]) -> int:
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        journal.store._db.set_progress_handler(count, 10)
        what()
        journal.store._db.set_progress_handler(None, 10)
        return steps

    def costs(events: int) -> list[int]:
        journal.forget()
        journal.record(click(*(n % 20 for n in range(events))))
        again = cost(lambda: journal.record([NewEvent("i1", SKIP)], key="again"))
        return [
            cost(journal.seen),
            again,
            cost(lambda: journal.record(click(22), key="new")),
            cost(lambda: journal.record(click(22), key="new")),
            cost(lambda: journal.retain(window=50, max_events=9_000, max_days=1)),
        ]

    short, long = costs(200), costs(8_000)
    # What is held out became a training event beside all that came after it, each once.
    short[2], long[2] = short[2] / 200, long[2] / 8_000
    assert all(after <= 2 * before + 5 for before, after in zip(short, long, strict=True)), (short, long)


def test_threads_record_and_read_beside_each_other(tmp_path: Path) -> None:
    journal = opened(tmp_path / "events.sqlite")

    def write(part: int) -> None:
        for n in range(10):
            journal.record(click((part * 10 + n) % 24), key=f"{part}-{n}")
            assert journal.seen()[(part * 10 + n) % 24]
            assert len(journal.newest(5)) <= 5

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))
    assert [row[1] for row in journal.rows()] == list(range(60))
    assert roles(journal).count(V) == 1
    journal.close()


# --- interests and verdicts --------------------------------------------------------------------------------


def test_interests_are_kept_until_they_are_taken_back(tmp_path: Path) -> None:
    journal = opened(tmp_path / "events.sqlite")
    journal.set_interest("Comedy", 0)
    journal.set_interest("war\u202e", 2.5)
    journal.set_interest("COMEDY", 8)
    assert journal.interests() == {"comedy": 8.0, "war": 2.5}
    journal.set_interest("war", 1)
    journal.close()
    again = opened(tmp_path / "events.sqlite")
    assert again.interests() == {"comedy": 8.0}
    for tag, factor in (("", 2.0), ("\x00", 2.0), ("war", -0.1), ("war", 8.1), ("war", float("nan"))):
        with pytest.raises(ConfigError, match="expected a tag, and 0"):
            again.set_interest(tag, factor)
    assert again.interests() == {"comedy": 8.0}
    again.close()


def test_a_verdict_is_kept_once_and_can_be_withdrawn() -> None:
    times = iter([10.0, 20.0, 30.0])
    journal = opened(clock=lambda: next(times))
    for item in ("i3", "i1", "i3"):
        journal.judge(item)
    assert journal.verdicts() == [("i1", Verdict.NOT_INTERESTED, 20.0), ("i3", Verdict.NOT_INTERESTED, 30.0)]
    journal.judge("i3", withdraw=True)
    journal.judge("gone", withdraw=True)
    assert [item for item, _, _ in journal.verdicts()] == ["i1"]
    with pytest.raises(CatalogueError, match="unknown id 'i99'"):
        journal.judge("i99")
    assert journal.store.count() == 0
