"""Histories: stable order, offsets, dropping rare items, and the report about them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.catalogue import Catalogue
from shared.datasets import EventColumns, Interactions, inspect
from shared.errors import DataError
from shared.schema import EventKind, Item

NAN = float("nan")
CLICK, SKIP, IMPRESSION = EventKind.CLICK, EventKind.SKIP, EventKind.IMPRESSION


def shelf(count: int) -> Catalogue:
    return Catalogue(tuple(Item(id=f"i{n}", title=f"item {n}", text=f"item {n}") for n in range(count)))


def columns(rows: list[tuple[int, int, float]], *, kinds: list[EventKind] | None = None) -> EventColumns:
    """Events from (user, item, time)."""
    user, item, time = zip(*rows, strict=True) if rows else ((), (), ())
    return EventColumns(
        user=np.array(user, dtype=np.int32),
        item=np.array(item, dtype=np.int32),
        time=np.array(time, dtype=np.float64),
        kind=np.array(kinds or [CLICK] * len(rows), dtype=np.uint8),
        value=np.full(len(rows), np.nan, dtype=np.float32),
    )


def build(rows: list[tuple[int, int, float]], *, items: int = 5, kinds: list[EventKind] | None = None) -> Interactions:
    users = sorted({row[0] for row in rows})
    return Interactions.from_events(
        "test", users=[f"u{n}" for n in users], catalogue=shelf(items), events=columns(rows, kinds=kinds)
    )


def test_events_are_sorted_by_user_and_time_and_ties_keep_file_order() -> None:
    data = build([(1, 0, 5.0), (0, 3, 9.0), (0, 1, 2.0), (0, 4, 2.0), (0, 2, 2.0), (1, 1, 4.0)])
    assert data.item[data.of(0)].tolist() == [1, 4, 2, 3]
    assert data.item[data.of(1)].tolist() == [1, 0]
    assert data.offsets.tolist() == [0, 4, 6]
    assert data.has_times
    assert len(data) == 6
    kinds = [column.dtype for column in (data.user, data.item, data.time, data.kind, data.value, data.offsets)]
    assert kinds == [np.int32, np.int32, np.float64, np.uint8, np.float32, np.int64]


def test_without_times_file_order_is_the_order() -> None:
    data = build([(1, 0, NAN), (0, 3, NAN), (0, 1, NAN), (1, 1, NAN)])
    assert not data.has_times
    assert data.item.tolist() == [3, 1, 0, 1]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=40))
def test_every_history_is_the_stable_sort_of_its_rows(rows: list[tuple[int, int, int]]) -> None:
    present = sorted({user for user, _, _ in rows})
    data = build([(present.index(user), item, float(time)) for user, item, time in rows])
    for position, user in enumerate(present):
        mine = sorted((row for row in rows if row[0] == user), key=lambda row: row[2])
        assert data.item[data.of(position)].tolist() == [item for _, item, _ in mine]
        assert (data.user[data.of(position)] == position).all()


def test_columns_that_cannot_be_histories_are_refused() -> None:
    with pytest.raises(DataError, match="found no events"):
        build([])
    with pytest.raises(DataError, match=r"item index outside 0\.\.4"):
        build([(0, 5, 1.0)])
    with pytest.raises(DataError, match="times for some events only"):
        build([(0, 1, 1.0), (0, 2, NAN)])
    with pytest.raises(DataError, match="user 'idle' without events"):
        Interactions.from_events("t", users=["a", "idle"], catalogue=shelf(1), events=columns([(0, 0, 1.0)]))
    short = dataclasses.replace(columns([(0, 0, 1.0)]), time=np.zeros(2))
    with pytest.raises(DataError, match=r"lengths \[1, 2\]"):
        Interactions.from_events("t", users=["a"], catalogue=shelf(1), events=short)


def test_rare_items_and_then_empty_users_are_dropped() -> None:
    data = build([(0, 0, 1.0), (0, 2, 2.0), (1, 1, 1.0), (2, 2, 1.0), (2, 0, 5.0)])
    kept = data.with_min_item_count(2)
    assert kept.users == ("u0", "u2")
    assert [item.id for item in kept.catalogue.items] == ["i0", "i2"]
    assert kept.item.tolist() == [0, 1, 1, 0]
    assert kept.offsets.tolist() == [0, 2, 4]
    assert data.with_min_item_count(0) is data
    with pytest.raises(DataError, match="no item with 9 events"):
        data.with_min_item_count(9)
    with pytest.raises(DataError, match="found -1"):
        data.with_min_item_count(-1)


def test_users_are_found_by_id() -> None:
    data = build([(0, 0, 1.0), (1, 1, 1.0)])
    assert data.user_index("u1") == 1
    with pytest.raises(DataError, match="did you mean 'u1'"):
        data.user_index("u11")
    with pytest.raises(DataError, match="the first one is 'u0'"):
        data.user_index("somebody")


def test_report_counts_by_hand() -> None:
    rows = [
        (0, 0, 10.0),
        (0, 1, 20.0),
        (0, 2, 20.0),  # user 0 ties at the end
        (1, 0, 5.0),
        (1, 0, 5.0),  # a tie, and the pair (1, 0) twice
        (1, 3, 86_400.0),
        (2, 1, 7.0),
    ]
    kinds = [CLICK, CLICK, CLICK, IMPRESSION, CLICK, SKIP, CLICK]
    report = inspect(build(rows, kinds=kinds))
    assert (report.users, report.items, report.events) == (3, 5, 7)
    assert report.kinds == {"impression": 1, "click": 5, "skip": 1}
    assert (report.first, report.last) == ("1970-01-01T00:00:05Z", "1970-01-02T00:00:00Z")
    assert (report.users_with_ties, report.users_tied_at_end) == (2, 1)
    assert report.duplicate_pairs == 1
    assert report.items_without_events == 1
    assert report.short_histories == 2
    assert report.events_per_user["median"] == 3.0
    assert json.loads(json.dumps(dataclasses.asdict(report)))["users"] == 3


def test_report_without_times() -> None:
    report = inspect(build([(0, 0, NAN), (0, 1, NAN)]))
    assert (report.first, report.last, report.users_with_ties, report.users_tied_at_end) == (None, None, 0, 0)
