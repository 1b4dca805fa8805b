"""Windows stay where they are, each training event is in one, and targets and gaps are computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.samples import (
    attribute_counts,
    gap_buckets,
    hour_buckets,
    next_targets,
    ranking_windows,
    seen_items,
    stack_windows,
    training_windows,
    value_buckets,
)
from client.store import History, Role
from shared.schema import EventKind
from shared.windows import (
    ATTRIBUTE_BUCKETS,
    GAP_BUCKETS,
    GAP_EDGES,
    HOUR_BUCKETS,
    IGNORE,
    VALUE_BUCKETS,
    VALUE_EDGES,
    Windows,
)

UNKNOWN, NO_VALUE, NO_HOUR = GAP_BUCKETS - 1, VALUE_BUCKETS - 1, HOUR_BUCKETS - 1
K = EventKind


def history(
    items: list[int],
    *,
    kinds: list[EventKind] | None = None,
    times: list[float] | None = None,
    roles: list[Role] | None = None,
    values: list[float] | None = None,
    **attributes: str,
) -> History:
    count = len(items)
    return History(
        items=np.array(items, dtype=np.int64),
        times=np.array(times if times is not None else range(count), dtype=np.float64),
        kinds=np.array(kinds or [K.CLICK] * count, dtype=np.int64),
        roles=np.array(roles or [Role.TRAIN] * count, dtype=np.int64),
        values=np.array(values or [math.nan] * count),
        attributes=attributes,
    )


def members(windows: Windows) -> list[list[int]]:
    return [items[real].tolist() for items, real in zip(windows.items, windows.real, strict=True)]


kinds = st.sampled_from(list(EventKind))
roles = st.sampled_from([Role.TRAIN, Role.TRAIN, Role.VALIDATE, Role.HISTORY])
events = st.lists(st.tuples(kinds, roles), max_size=40)


def numbered(rows: list[tuple[EventKind, Role]]) -> History:
    """A history whose items are the positions of its events."""
    return history(list(range(len(rows))), kinds=[kind for kind, _ in rows], roles=[role for _, role in rows])


@settings(max_examples=40)
@given(events, st.integers(2, 9))
def test_each_training_event_is_in_exactly_one_window(rows: list[tuple[EventKind, Role]], length: int) -> None:
    windows = training_windows(numbered(rows), length=length)
    found = [item for window in members(windows) for item in window]
    assert found == [position for position, (_, role) in enumerate(rows) if role == Role.TRAIN]
    assert len(windows) == math.ceil(len(found) / length)
    assert all(len(window) == length for window in members(windows)[:-1])


@settings(max_examples=40)
@given(events, events, st.integers(2, 9))
def test_new_events_never_move_an_old_one_to_another_window(
    old: list[tuple[EventKind, Role]], new: list[tuple[EventKind, Role]], length: int
) -> None:
    before = members(training_windows(numbered(old), length=length))
    after = members(training_windows(numbered(old + new), length=length))
    assert len(after) >= len(before)
    for earlier, later in zip(before, after, strict=False):
        assert later[: len(earlier)] == earlier
    assert after[: max(len(before) - 1, 0)] == before[:-1]


@settings(max_examples=40)
@given(events, events, st.integers(2, 9))
def test_full_windows_are_bit_for_bit_the_same_after_new_events(
    old: list[tuple[EventKind, Role]], new: list[tuple[EventKind, Role]], length: int
) -> None:
    before = training_windows(numbered(old), length=length)
    after = training_windows(numbered(old + new), length=length)
    full = before.real.all(1).nonzero()[:, 0]
    for name in Windows.__dataclass_fields__:
        assert torch.equal(getattr(before.pick(full), name), getattr(after.pick(full), name))


@settings(max_examples=40)
@given(events, events, st.integers(2, 9))
def test_one_window_does_not_depend_on_another(
    first: list[tuple[EventKind, Role]], second: list[tuple[EventKind, Role]], length: int
) -> None:
    """Changing everything in window 0 changes nothing in window 1: no target and no gap crosses the border."""
    rest = [(kind, Role.TRAIN) for kind, _ in second]
    mine = [(kind, Role.TRAIN) for kind, _ in first][:length]
    head = mine + [(K.CLICK, Role.TRAIN)] * (length - len(mine))
    other = [(K.SKIP, Role.TRAIN)] * length
    left, right = (training_windows(numbered(start + rest), length=length) for start in (head, other))
    later = torch.arange(1, len(left))
    for name in Windows.__dataclass_fields__:
        assert torch.equal(getattr(left.pick(later), name), getattr(right.pick(later), name))


def test_a_device_without_training_events_has_no_windows() -> None:
    for empty in (history([]), history([1, 2], roles=[Role.VALIDATE, Role.HISTORY])):
        windows = training_windows(empty, length=4)
        assert len(windows) == 0
        assert windows.items.shape == (0, 4)


def test_a_window_by_hand() -> None:
    windows = training_windows(
        history(
            [5, 6, 7, 8, 9, 3],
            kinds=[K.CLICK, K.SKIP, K.IMPRESSION, K.PURCHASE, K.LIKE, K.RATING],
            times=[0, 60, 61, math.nan, 90_000, 90_001],
            values=[math.nan, 0.5, 4.0, 12.5, 1e6, 1.0],
            age="25-34",
            roles=[Role.TRAIN] * 5 + [Role.VALIDATE],
        ),
        length=4,
    )
    assert windows.items.tolist() == [[5, 6, 7, 8], [9, 0, 0, 0]]
    assert windows.kinds.tolist() == [[K.CLICK, K.SKIP, K.IMPRESSION, K.PURCHASE], [K.LIKE, 0, 0, 0]]
    assert windows.real.tolist() == [[True] * 4, [True, False, False, False]]
    assert windows.content.tolist() == [[True, False, False, True], [True, False, False, False]]
    assert windows.seen.tolist() == [[True, True, False, True], [True, False, False, False]]
    # The validation item 3 is not a target of anything, and the window's end has nothing to predict.
    assert windows.targets.tolist() == [[8, 8, 8, IGNORE], [IGNORE] * 4]
    assert windows.gaps.tolist() == [[UNKNOWN, 0, 0, UNKNOWN], [UNKNOWN] * 4]
    assert windows.values.tolist() == [[NO_VALUE, 0, 3, 10], [12, NO_VALUE, NO_VALUE, NO_VALUE]]
    assert windows.hours.tolist() == [[0, 0, 0, NO_HOUR], [1, NO_HOUR, NO_HOUR, NO_HOUR]]
    assert windows.attributes.sum(1).tolist() == [1.0, 1.0]
    assert windows.last.tolist() == [3, 0]
    columns = ("items", "kinds", "gaps", "values", "hours", "targets")
    assert all(getattr(windows, name).dtype == torch.int64 for name in columns)
    assert windows.attributes.dtype == torch.float32


@pytest.mark.parametrize(
    ("kinds_", "targets"),
    [
        ([K.CLICK, K.LIKE, K.RATING], [11, 12, IGNORE]),
        ([K.CLICK, K.SKIP, K.PURCHASE], [12, 12, IGNORE]),
        ([K.CLICK, K.IMPRESSION, K.SKIP], [IGNORE, IGNORE, IGNORE]),
        ([K.SKIP, K.CLICK, K.IMPRESSION], [11, IGNORE, IGNORE]),
        ([], []),
    ],
)
def test_targets_are_the_next_liked_item(kinds_: list[EventKind], targets: list[int]) -> None:
    part = history([10, 11, 12][: len(kinds_)], kinds=kinds_)
    assert next_targets(part).tolist() == targets


@pytest.mark.parametrize(
    ("gap", "bucket"),
    [
        (0.0, 0),
        (-5.0, 0),  # a clock that was set back
        (60.0, 0),
        (60.5, 1),
        (3_600.0, 1),
        (3_601.0, 2),
        (86_400.0, 3),
        (604_800.0, 4),
        (2_592_000.0, 5),
        (2_592_001.0, 6),
        (1e12, 6),
        (math.nan, UNKNOWN),
    ],
)
def test_gaps_fall_into_buckets(gap: float, bucket: int) -> None:
    assert gap_buckets(np.array([1e9, 1e9 + gap])).tolist() == [UNKNOWN, bucket]


def test_every_bucket_is_used_and_a_source_without_times_has_one() -> None:
    assert (len(GAP_EDGES), GAP_BUCKETS) == (6, 8)
    assert gap_buckets(np.full(3, np.nan)).tolist() == [UNKNOWN] * 3
    assert gap_buckets(np.zeros(0)).shape == (0,)


@pytest.mark.parametrize(
    ("value", "bucket"),
    [(-3.0, 0), (0.5, 0), (1.0, 0), (1.5, 1), (5.0, 4), (10.0, 9), (10.5, 10), (100.0, 10), (1_000.0, 11), (1e9, 12)],
)
def test_ratings_and_amounts_fall_into_buckets(value: float, bucket: int) -> None:
    assert (len(VALUE_EDGES), VALUE_BUCKETS) == (12, 14)
    assert value_buckets(np.array([value, math.nan])).tolist() == [bucket, NO_VALUE]


def test_hours_of_the_day_are_in_utc_whatever_the_day() -> None:
    midnight = 1_704_067_200.0  # 2024-01-01T00:00:00Z
    times = np.array(
        [midnight, midnight + 3_599, midnight + 3_600, midnight - 1, midnight + 86_400 * 40, math.nan, -1.0]
    )
    assert hour_buckets(times).tolist() == [0, 0, 1, 23, 0, NO_HOUR, 23]
    assert HOUR_BUCKETS == 25


def test_attributes_are_hashed_name_and_value_together() -> None:
    one, other = attribute_counts({"age": "25-34"}), attribute_counts({"age": "18-24"})
    assert one.shape == (ATTRIBUTE_BUCKETS,)
    assert one.dtype == np.float32
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, attribute_counts({"year": "25-34"}))
    assert np.array_equal(
        attribute_counts({"age": "25-34", "year": "25-34"}), one + attribute_counts({"year": "25-34"})
    )
    assert not attribute_counts({}).any()
    assert int(attribute_counts({"gender": "women"}).argmax()) == 19  # the same on every machine: it is public


def test_windows_of_one_person_share_their_attributes_and_keep_them_when_cut() -> None:
    windows = training_windows(history(list(range(5)), age="25-34"), length=2)
    assert windows.attributes.shape == (3, ATTRIBUTE_BUCKETS)
    assert (windows.attributes == windows.attributes[0]).all()
    assert torch.equal(windows.shorten(1).attributes, windows.attributes)
    assert windows.shorten(1).values.shape == (3, 1)
    both = ranking_windows([history([1], age="25-34"), history([1])], length=2)
    assert both.attributes.sum(1).tolist() == [1.0, 0.0]


def test_ranking_reads_the_newest_events_of_all_roles_without_targets() -> None:
    roles_ = [Role.TRAIN, Role.TRAIN, Role.VALIDATE, Role.HISTORY]
    windows = ranking_windows([history([1, 2, 3, 4], roles=roles_), history([9]), history([])], length=3)
    assert members(windows) == [[2, 3, 4], [9], []]
    assert (windows.targets == IGNORE).all()
    assert windows.last.tolist() == [2, 0, 0]


def test_seen_items_are_those_consumed_or_skipped() -> None:
    past = history([4, 2, 2, 7, 9], kinds=[K.CLICK, K.SKIP, K.IMPRESSION, K.IMPRESSION, K.RATING])
    assert seen_items(past).tolist() == [2, 4, 9]
    assert seen_items(history([])).tolist() == []


def test_a_piece_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        stack_windows([history([1, 2, 3])], length=2, with_targets=True)
