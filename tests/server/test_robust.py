"""Robust rules: hand-computed numbers, their tables of edge cases, and how far one update can move them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from server.robust import CENTRES, FILTERS, NORM_FACTOR, median, multi_krum, norm_filter, robust_mean, trimmed_mean
from shared.adapter import AdapterState
from shared.config_rules import ROBUST_RULES
from shared.errors import AdapterError, ConfigError

#: Every chain of at most two filters and one centre.
CHAINS = [
    (*filters, *centre)
    for filters in ((), ("norm-filter",), ("multi-krum",), ("norm-filter", "multi-krum"), ("multi-krum", "norm-filter"))
    for centre in ((), ("mean",), ("trimmed-mean",), ("median",))
]
PROTECTED = [names for names in CHAINS if set(names) - {"mean"}]


def rows(*values: Sequence[float]) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def column(*values: float) -> np.ndarray:
    return rows(*([value] for value in values))


def states(packed: np.ndarray) -> list[AdapterState]:
    """One update per row, in two arrays so that names and shapes matter."""
    return [AdapterState({"a": row[:-1].reshape(1, -1), "b": row[-1:]}) for row in packed]


def estimate(packed: np.ndarray, *names: str, share: float = 0.2) -> np.ndarray:
    return robust_mean(states(packed), names=names, share=share).pack()


def whole_numbers(count: st.SearchStrategy[int]) -> st.SearchStrategy[np.ndarray]:
    """Updates (n, 3) whose sums and products are exact."""
    entries = st.integers(-50, 50).map(float)
    return count.flatmap(lambda n: arrays(np.float32, (n, 3), elements=entries))


# --- numbers by hand ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "hostile", "expected"),
    [
        ((1, 2, 3, 4, 100), 0, 22),
        ((1, 2, 3, 4, 100), 1, 3),
        ((100, -7, 1, 2, 3, 6), 1, 3),
        ((100, -7, 1, 2, 3, 6), 2, 2.5),
        ((4, 4, 4), 1, 4),
        ((5,), 0, 5),
    ],
)
def test_the_trimmed_mean_by_hand(values: tuple[float, ...], hostile: int, expected: float) -> None:
    assert trimmed_mean(column(*values), hostile).tolist() == [expected]


@pytest.mark.parametrize(
    ("values", "expected"),
    [((9, 1, 2), 2), ((9, 1, 2, 4), 3), ((5,), 5), ((1, 2), 1.5), ((7, 7, 7), 7), ((0, 0, 0, 8, 9), 0)],
)
def test_the_median_by_hand(values: tuple[float, ...], expected: float) -> None:
    assert median(column(*values), 0).tolist() == [expected]


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ((0, 0), (True, True)),
        ((2, -2, 2), (True, True, True)),
        ((1e9,), (True,)),
        ((1, -2, 3, 6, 6.01), (True, True, True, True, True)),  # median 3, bound 9
        ((1, -2, 3, 9, 9.01), (True, True, True, True, False)),
        ((1, 3, 6.01), (True, True, True)),
        ((1, 2, 4, 9, 9.01, 4), (True, True, True, True, True, True)),  # median 4, bound 12
        ((1, 3, 6, 100), (True, True, True, False)),  # median 4.5, bound 13.5
        ((0, 0, 0, 0, 1, 2), (True,) * 6),  # silence does not lower the bound
    ],
)
def test_the_norm_filter_by_hand(values: tuple[float, ...], kept: tuple[bool, ...]) -> None:
    assert NORM_FACTOR == 3.0
    assert norm_filter(column(*values), 0).tolist() == list(kept)


def test_the_norm_filter_measures_all_entries_together() -> None:
    assert norm_filter(rows([3, 4], [4, 3], [5, 0], [12, 9], [12, 9.1]), 0).tolist() == [True] * 4 + [False]


@pytest.mark.parametrize(
    ("values", "hostile", "kept"),
    [
        # n - f - 2 = 2 neighbours: 0: 1 + 4, 1: 1 + 1, 2: 1 + 1, 3: 1 + 4, 50: 47² + 48²
        ((0, 1, 2, 3, 50), 1, (True, True, True, True, False)),
        # n - f - 2 = 3: 0: 1 + 4 + 9, 1: 1 + 1 + 4, 2: 6, 3: 14, 4: 1 + 4 + 9 → with 40, 41 dropped and 0, 4 kept
        ((0, 1, 2, 3, 4, 40, 41), 2, (True, True, True, True, True, False, False)),
        ((0, 1, 2, 3, 50), 0, (True,) * 5),
        ((7, 7, 7, 7), 1, (True,) * 4),
        ((0, 1, 50), 1, (True, True, False)),  # too few for the theorem
        ((0, 1, 5, 6), 1, (True,) * 4),  # all have a neighbour at distance 1: a tie
        ((0, 1e30), 0, (True, True)),
    ],
)
def test_multi_krum_by_hand(values: tuple[float, ...], hostile: int, kept: tuple[bool, ...]) -> None:
    assert multi_krum(column(*values), hostile).tolist() == list(kept)


def test_a_huge_update_does_not_hide_the_distances_between_the_others() -> None:
    assert multi_krum(rows([0, 1e-3], [0, 0], [1e-3, 0], [9, 9], [1e30, 0], [0, 1e-3]), 2).tolist() == [
        *(True, True, True, False, False, True)
    ]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), 22.0),
        (("mean",), 22.0),
        (("median",), 3.0),
        (("trimmed-mean",), 3.0),
        (("multi-krum",), 2.5),
        (("norm-filter",), 2.5),  # median 3, bound 9
        (("norm-filter", "median"), 2.5),
        (("norm-filter", "trimmed-mean"), 2.5),  # f was counted before: 1 of 5, so 1 of 4 is trimmed
        (("norm-filter", "multi-krum"), 2.5),
        (("norm-filter", "multi-krum", "median"), 2.5),
    ],
)
def test_chains_by_hand(names: tuple[str, ...], expected: float) -> None:
    updates = [AdapterState({"w": np.full((2, 2), value)}) for value in (1, 2, 3, 4, 100)]
    assert robust_mean(updates, names=names, share=0.2) == AdapterState({"w": np.full((2, 2), expected)})


def test_the_hostile_are_counted_before_a_filter_drops_others() -> None:
    values = column(1, 1, 1, 2, 5, 9, 99, 99, 99, 99)  # f = 4; the filter's bound is 3 * 7 and leaves six
    assert robust_mean([AdapterState({"w": v}) for v in values], names=["norm-filter", "trimmed-mean"], share=0.4) == (
        AdapterState({"w": np.array([1.5])})  # min(4, (6 - 1) // 2) = 2 trimmed on each side
    )


def test_more_entries_than_one_piece_holds() -> None:
    packed = np.random.default_rng(0).normal(size=(7, 40_000)).astype(np.float32)
    np.testing.assert_array_equal(estimate(packed, "median"), np.median(packed, axis=0))
    np.testing.assert_allclose(estimate(packed), packed.mean(axis=0), atol=1e-6)
    ordered = np.sort(packed, axis=0)
    np.testing.assert_allclose(estimate(packed, "trimmed-mean", share=0.3), ordered[2:-2].mean(axis=0), atol=1e-6)
    packed[3] += 1
    np.testing.assert_allclose(estimate(packed, "multi-krum"), np.delete(packed, 3, axis=0).mean(axis=0), atol=1e-6)


# --- the table of robust_mean ------------------------------------------------------------------------------


@pytest.mark.parametrize("names", CHAINS)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_one_update_or_equal_updates_give_that_update(names: tuple[str, ...], count: int) -> None:
    update = rows([1.5, -2.0, 0.25])
    np.testing.assert_array_equal(estimate(np.repeat(update, count, axis=0), *names, share=0.4), update[0])
    np.testing.assert_array_equal(estimate(np.zeros((count, 3), dtype=np.float32), *names), np.zeros(3))


@pytest.mark.parametrize("name", ["trimmed-mean", "multi-krum"])
def test_too_few_for_one_hostile_update_give_the_mean(name: str) -> None:
    packed = rows([0, 1, 2], [3, 5, 7], [60, 0, 0], [1, 2, 3])
    np.testing.assert_array_equal(estimate(packed, name, share=0.24), [16, 2, 3])
    assert estimate(packed, name, share=0.25)[0] < 16


@pytest.mark.parametrize(
    ("share", "count", "hostile"), [(0.29, 100, 29), (0.3, 10, 3), (0.2, 5, 1), (0.19, 5, 0), (0.49, 3, 1)]
)
def test_f_is_the_whole_part_of_the_share(share: float, count: int, hostile: int) -> None:
    values = np.zeros((count, 2), dtype=np.float32)
    values[:hostile] = 1e6
    assert estimate(values, "trimmed-mean", share=share).tolist() == [0, 0]
    values[hostile] = 1e6
    if hostile + 1 <= count // 2:
        assert estimate(values, "trimmed-mean", share=share)[0] > 0


@given(names=st.sampled_from(CHAINS), data=st.data())
def test_the_order_of_updates_does_not_matter(names: tuple[str, ...], data: st.DataObject) -> None:
    packed = data.draw(whole_numbers(st.integers(1, 9)))
    order = data.draw(st.permutations(range(len(packed))))
    share = data.draw(st.sampled_from([0.0, 0.2, 0.4]))
    np.testing.assert_allclose(
        estimate(packed, *names, share=share), estimate(packed[order], *names, share=share), atol=1e-4
    )


def test_the_arguments_are_not_changed() -> None:
    packed = rows([5, 1, 2], [3, 9, 7], [60, 0, 0], [1, 2, 3], [4, 4, 4])
    updates = states(packed)
    for names in CHAINS:
        robust_mean(updates, names=names, share=0.4)
    assert all(update == before for update, before in zip(updates, states(packed), strict=True))


def test_no_update_and_other_forms_are_refused() -> None:
    with pytest.raises(AdapterError, match="no update"):
        robust_mean([], names=["median"], share=0.2)
    first, second = AdapterState({"w": np.zeros(2)}), AdapterState({"w": np.zeros((2, 1))})
    with pytest.raises(AdapterError, match="one form"):
        robust_mean([first, second], names=["median"], share=0.2)


@pytest.mark.parametrize(
    ("names", "share", "said"),
    [
        (["medain"], 0.2, "Did you mean 'median'"),
        (["multikrum"], 0.2, "Did you mean 'multi-krum'"),
        (["none"], 0.2, "norm-filter, multi-krum, mean, trimmed-mean, median"),
        (["median", "trimmed-mean"], 0.2, "after 'median'"),
        (["median", "norm-filter"], 0.2, "filters .* first"),
        (["norm-filter", "norm-filter"], 0.2, "twice"),
        (["median"], 0.5, "half must be honest"),
        (["median"], -0.1, "half must be honest"),
        (["median"], float("nan"), "found nan"),
    ],
)
def test_unknown_rules_and_orders_are_refused(names: list[str], share: float, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        robust_mean([AdapterState({"w": np.zeros(2)})], names=names, share=share)


# --- what one hostile update can do ------------------------------------------------------------------------


@given(
    names=st.sampled_from(PROTECTED),
    honest=st.integers(4, 9).flatmap(lambda n: arrays(np.float32, (n, 3), elements=st.integers(1, 50).map(float))),
    size=st.sampled_from([1e3, 1e12, 1e30, 3e38]),
    direction=st.sampled_from([(1, 0, 0), (-1, -1, -1), (0.5, -1, 0)]),
)
def test_one_huge_update_moves_the_result_by_a_bounded_amount(
    names: tuple[str, ...], honest: np.ndarray, size: float, direction: tuple[float, ...]
) -> None:
    packed = np.concatenate([honest, rows(direction) * np.float32(size)])
    longest = np.linalg.norm(honest, axis=1).max()
    assert np.abs(estimate(packed, *names, share=0.25)).max() <= NORM_FACTOR * longest


@given(size=st.sampled_from([1e6, 1e12, 1e30]))
def test_one_huge_update_moves_the_mean_by_any_amount(size: float) -> None:
    packed = np.concatenate([np.ones((9, 3)), [[size, 0, 0]]]).astype(np.float32)
    for names in ((), ("mean",)):
        assert estimate(packed, *names)[0] >= size / 10


@given(packed=whole_numbers(st.integers(5, 12)), data=st.data())
def test_coordinate_rules_stay_between_the_honest_values(packed: np.ndarray, data: st.DataObject) -> None:
    hostile = int(0.4 * len(packed) + 1e-9)
    attack: Any = arrays(np.float32, (hostile, 3), elements=st.floats(-(2.0**100), 2.0**100, width=32))
    packed[:hostile] = data.draw(attack)
    for name in ("median", "trimmed-mean"):
        found = estimate(packed, name, share=0.4)
        assert (found >= packed[hostile:].min(axis=0)).all()
        assert (found <= packed[hostile:].max(axis=0)).all()


@given(packed=whole_numbers(st.integers(1, 12)), hostile=st.integers(0, 5))
def test_filters_keep_at_least_half(packed: np.ndarray, hostile: int) -> None:
    for rule in FILTERS.values():
        assert rule(packed, min(hostile, (len(packed) - 1) // 2)).sum() >= len(packed) / 2


def test_the_configuration_knows_the_same_rules() -> None:
    assert {*FILTERS, *CENTRES} == set(ROBUST_RULES)
