"""What lists are like: numbers worked out by hand, and the rank metrics against an independent library."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.store import History
from shared.catalogue import Catalogue
from shared.errors import DataError
from shared.metrics import hit_rate, ndcg, rank_of, reciprocal_rank
from shared.schema import EventKind, Item
from simulations.quality import measures
from simulations.quality.measures import Touched


def history(*items: int, kind: EventKind = EventKind.CLICK) -> History:
    """One event on each item."""
    count = len(items)
    zeros = np.zeros(count, dtype=np.int64)
    floats = zeros.astype(np.float64)
    return History(np.array(items, dtype=np.int64), floats, zeros + int(kind), zeros, floats)


#: Four people: all touched item 0, two item 1, one item 2, nobody items 3 and 4.
TOUCHED = Touched(np.array([4, 2, 1, 0, 0]), devices=4)


# --- popularity and its opposites --------------------------------------------------------------------------


def test_each_person_counts_once_and_only_with_what_they_wanted() -> None:
    touched = Touched.of([history(0, 1, 0), history(0), history(2, kind=EventKind.SKIP)], items=4)
    assert touched.people.tolist() == [2, 1, 0, 0]
    assert touched.devices == 2  # the third wanted nothing
    assert Touched.of([], items=4).devices == 1


def test_the_tail_is_the_less_popular_four_fifths() -> None:
    assert TOUCHED.tail.tolist() == [False, True, True, True, True]
    flat = Touched(np.zeros(10, dtype=np.int64), devices=1)
    assert flat.tail.tolist() == [False] * 2 + [True] * 8  # ties go by catalogue order


def test_popularity_novelty_and_tail_are_means_over_what_is_shown() -> None:
    lists = np.array([[0, 1], [2, 3], [1, -1], [-1, -1]])
    np.testing.assert_allclose(measures.popularity(lists, TOUCHED), [0.75, 0.125, 0.5, np.nan])
    # bits: log2(4/4) = 0, log2(4/2) = 1, log2(4/1) = 2, and untouched as if touched by one
    np.testing.assert_allclose(measures.novelty(lists, TOUCHED), [0.5, 2.0, 1.0, np.nan])
    np.testing.assert_allclose(measures.tail_share(lists, TOUCHED), [0.5, 1.0, 1.0, np.nan])


# --- diversity ---------------------------------------------------------------------------------------------


def test_diversity_of_equal_opposite_and_perpendicular_items() -> None:
    vectors = np.array([[1, 0], [1, 0], [-1, 0], [0, 1]], dtype=np.float32)
    lists = np.array([[0, 1, -1], [0, 2, -1], [0, 3, -1], [0, 1, 3], [0, -1, -1]])
    np.testing.assert_allclose(measures.diversity(lists, vectors), [0.0, 2.0, 1.0, 2 / 3, np.nan])


@given(st.integers(0, 10_000))
def test_diversity_is_the_mean_over_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(9, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    shown = rng.permutation(9)[: rng.integers(2, 6)]
    pairs = [1 - float(vectors[i] @ vectors[j]) for a, i in enumerate(shown) for j in shown[:a]]
    np.testing.assert_allclose(measures.diversity(shown[None], vectors), [np.mean(pairs)], rtol=1e-5, atol=1e-6)


# --- calibration -------------------------------------------------------------------------------------------


def tagged(*tags: tuple[str, ...]) -> Catalogue:
    """An item for each tuple of tags."""
    return Catalogue(tuple(Item(f"i{n}", f"title {n}", f"text {n}", tags=one) for n, one in enumerate(tags)))


def test_tags_of_an_item_share_its_weight() -> None:
    shares = measures.tag_shares(tagged(("b",), ("a", "b"), ()))
    assert shares is not None
    assert shares.tolist() == [[0, 1], [0.5, 0.5], [0, 0]]
    assert measures.tag_shares(tagged((), ())) is None


def test_a_list_like_the_history_is_calibrated_and_another_is_not() -> None:
    shares = measures.tag_shares(tagged(("a",), ("b",), ("a",), ("b",), ()))
    assert shares is not None
    both, lists = history(0, 1, 4), np.array([[2, 3], [2, 2], [4, 4], [2, 3]])
    found = measures.miscalibration(lists, [both, both, both, history(4)], shares)
    # all a: the list's share of b is 0.01 * 0.5 after mixing, that of a 0.99 + 0.005
    expected = 0.5 * math.log(0.5 / 0.995) + 0.5 * math.log(0.5 / 0.005)
    np.testing.assert_allclose(found, [0.0, expected, np.nan, np.nan], atol=1e-12)


# --- all lists ---------------------------------------------------------------------------------------------


def test_coverage_counts_each_item_once_and_padding_never() -> None:
    assert measures.coverage(np.array([[0, 1], [1, -1]]), items=8) == 0.25


def test_gini_of_equal_and_of_concentrated_exposure() -> None:
    assert measures.gini(np.array([[0, 1], [2, 3]]), items=4) == 0.0
    assert measures.gini(np.array([[0], [0], [0]]), items=4) == pytest.approx(0.75)  # 1 - 1/N
    assert measures.gini(np.full((2, 3), -1), items=4) == 0.0


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_gini_is_half_the_relative_mean_difference(shown: list[int]) -> None:
    counts = np.bincount(shown, minlength=6)
    differences = np.abs(counts[:, None] - counts[None, :]).mean()
    found = measures.gini(np.array(shown)[:, None], items=6)
    assert found == pytest.approx(differences / (2 * counts.mean()))


# --- worst served ------------------------------------------------------------------------------------------


def test_the_share_behind_is_one_for_the_first_and_zero_for_the_last() -> None:
    np.testing.assert_allclose(measures.share_behind([1, 11, 6, 1], [10, 10, 10, 0]), [1.0, 0.0, 0.5, 1.0])


def test_the_worst_tenth_is_at_least_one_user() -> None:
    assert measures.worst_tenth(np.arange(20)) == 0.5
    assert measures.worst_tenth([3.0, 1.0]) == 1.0
    with pytest.raises(DataError, match="expected at least one"):
        measures.worst_tenth([])


def test_the_examples_hold() -> None:
    assert doctest.testmod(measures).attempted == 2
    assert doctest.testmod(measures).failed == 0


# --- the metrics of ranks, against ranx --------------------------------------------------------------------


@pytest.mark.slow  # ranx compiles itself first
@pytest.mark.filterwarnings("ignore:unsafe cast")  # of numba, which ranx compiles with
def test_rank_metrics_agree_with_ranx() -> None:
    ranx = pytest.importorskip("ranx", reason="ranx is not installed; it is only here to check our metrics")
    rng = np.random.default_rng(3)
    scores = rng.permuted(np.tile(np.arange(40.0), (25, 1)), axis=1)  # (25 users, 40 items) no ties
    targets = rng.integers(0, 40, 25)  # ranx sorts users by name, so names sort as numbers
    ranks = [rank_of(row, int(target)) for row, target in zip(scores, targets, strict=True)]
    qrels = ranx.Qrels({f"u{user:02}": {f"i{target}": 1} for user, target in enumerate(targets)})
    answers = {f"u{user:02}": {f"i{item}": score for item, score in enumerate(row)} for user, row in enumerate(scores)}
    theirs = ranx.evaluate(qrels, ranx.Run(answers), ["hit_rate@10", "ndcg@10", "mrr"], return_mean=False)
    np.testing.assert_allclose(theirs["hit_rate@10"], hit_rate(ranks, 10))
    np.testing.assert_allclose(theirs["ndcg@10"], ndcg(ranks, 10))
    np.testing.assert_allclose(theirs["mrr"], reciprocal_rank(ranks))
