"""Splits computed by hand, and what must hold for every split."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.datasets import leave_one_out, make_split, temporal
from shared.datasets.splits import qualifying
from shared.errors import ConfigError, DataError
from shared.schema import POSITIVE_KINDS, SEEN_KINDS, EventKind
from tests.shared.test_datasets_interactions import build

CLICK, SKIP, IMPRESSION = EventKind.CLICK, EventKind.SKIP, EventKind.IMPRESSION


def test_leave_one_out_takes_the_last_and_the_one_before() -> None:
    rows = [(0, item, float(item)) for item in range(5)] + [(1, item, float(item)) for item in range(3)]
    split = make_split(build(rows), "leave-one-out")
    assert split.train_end.tolist() == [3, 6]
    assert split.valid.tolist() == [3, 6]
    assert split.test.tolist() == [4, 7]
    assert split.cutoffs is None


def test_short_histories_train_only() -> None:
    split = leave_one_out(build([(0, 0, 1.0), (0, 1, 2.0), (1, 0, 1.0), (1, 1, 2.0), (1, 2, 3.0)]))
    assert split.train_end.tolist() == [2, 3]
    assert split.valid.tolist() == [-1, 3]
    assert split.test.tolist() == [-1, 4]


def test_repeats_skips_and_impressions_are_not_targets() -> None:
    story = [
        (0, CLICK),
        (1, IMPRESSION),
        (1, CLICK),  # seeing an impression before does not count
        (2, SKIP),
        (3, CLICK),
        (2, CLICK),  # skipped before, so it would be left out of the ranking
        (0, CLICK),  # a repeat
        (4, IMPRESSION),
    ]
    rows = [(0, item, float(time)) for time, (item, _) in enumerate(story)]
    data = build(rows, kinds=[kind for _, kind in story])
    assert np.flatnonzero(qualifying(data)).tolist() == [0, 2, 4]
    split = leave_one_out(data)
    assert (split.train_end.tolist(), split.valid.tolist(), split.test.tolist()) == ([2], [2], [4])


def test_temporal_cuts_everybody_at_the_same_moments() -> None:
    # times 0..9: the 0.5 and 0.75 quantiles are 4.5 and 6.75
    rows = [(0, 0, 0.0), (0, 1, 2.0), (0, 2, 5.0), (0, 3, 6.0), (0, 4, 9.0)]
    rows += [(1, 0, 1.0), (1, 1, 3.0), (1, 2, 4.0), (1, 3, 7.0), (1, 4, 8.0)]
    split = temporal(build(rows), quantiles=(0.5, 0.75))
    assert split.cutoffs == (4.5, 6.75)
    assert split.train_end.tolist() == [2, 8]
    assert split.valid.tolist() == [2, -1]
    assert split.test.tolist() == [4, 8]


def test_temporal_target_has_a_history() -> None:
    rows = [(0, item, float(item)) for item in range(5)] + [(1, 0, 100.0), (1, 1, 101.0)]
    split = temporal(build(rows), quantiles=(0.4, 0.6))
    assert split.train_end.tolist() == [3, 5]
    assert split.test.tolist() == [4, 6]


def test_temporal_needs_times_that_differ() -> None:
    with pytest.raises(DataError, match="Use the leave-one-out split"):
        temporal(build([(0, 0, float("nan"))]))
    with pytest.raises(DataError, match="the same time at quantiles"):
        temporal(build([(0, 0, 1.0), (0, 1, 1.0)]))
    with pytest.raises(ConfigError, match=r"found 0\.9, 0\.8"):
        temporal(build([(0, 0, 1.0), (0, 1, 2.0)]), quantiles=(0.9, 0.8))


def test_unknown_method_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'temporal'"):
        make_split(build([(0, 0, 1.0)]), "temporel")


EVENTS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 9), st.sampled_from(EventKind)),
    min_size=2,
    max_size=60,
)


@given(EVENTS, st.sampled_from(["leave-one-out", "temporal"]))
def test_every_split_keeps_targets_out_of_what_comes_before(
    events: list[tuple[int, int, int, EventKind]], method: str
) -> None:
    present = sorted({user for user, *_ in events})
    rows = [(present.index(user), item, float(time)) for user, item, time, _ in events]
    data = build(rows, kinds=[kind for *_, kind in events])
    if method == "temporal" and len(set(np.quantile(data.time, (0.8, 0.9)))) == 1:
        with pytest.raises(DataError, match="same time"):
            make_split(data, method)
        return
    split = make_split(data, method)
    for user in range(len(data.users)):
        start, end = data.offsets[user], data.offsets[user + 1]
        assert start <= split.train_end[user] <= end
        for target in (split.valid[user], split.test[user]):
            if target < 0:
                continue
            assert split.train_end[user] <= target < end
            assert target > start
            assert EventKind(data.kind[target]) in POSITIVE_KINDS
            before = zip(data.item[start:target], data.kind[start:target], strict=True)
            seen = {item for item, kind in before if EventKind(kind) in SEEN_KINDS}
            assert data.item[target] not in seen
        if split.test[user] >= 0 and split.valid[user] >= 0:
            assert split.valid[user] < split.test[user]
