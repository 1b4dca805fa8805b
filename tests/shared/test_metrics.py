"""Metrics against numbers worked out by hand, and the negatives against the leak."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shared import metrics
from shared.errors import ConfigError, DataError
from shared.metrics import (
    bootstrap_interval,
    draw_negatives,
    hit_rate,
    ndcg,
    negatives_generator,
    paired_bootstrap,
    rank_among,
    rank_of,
    reciprocal_rank,
    summary,
)

SCORES = np.array([0.9, 0.5, 0.5, 0.1, 0.7, 0.5], dtype=np.float32)
FEW_SCORES = hnp.arrays(np.float32, st.integers(2, 30), elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0]))


def test_the_examples_in_the_docstrings_are_right() -> None:
    result = doctest.testmod(metrics)
    assert result.attempted >= 7
    assert result.failed == 0


@pytest.mark.parametrize(
    ("target", "removed", "rank"),
    [
        (0, [], 1),
        (4, [], 2),
        (4, [0], 1),
        (1, [], 5),  # 0 and 4 are better, 2 and 5 tie
        (1, [2], 4),
        (1, [2, 2, 0, 5, 4], 1),  # repeats in the history do not count twice
        (3, [], 6),
    ],
)
def test_rank_of(target: int, removed: list[int], rank: int) -> None:
    assert rank_of(SCORES, target, removed=np.array(removed, dtype=np.int64)) == rank


@pytest.mark.parametrize("value", [0.0, -3.5, np.inf, -np.inf, np.nan])
def test_a_constant_scorer_puts_the_target_last(value: float) -> None:
    scores = np.full(50, value, dtype=np.float32)
    removed = np.arange(10)
    assert {rank_of(scores, target, removed=removed) for target in range(10, 50)} == {40}
    assert rank_among(scores, 20, np.arange(30, 50)) == 21


def test_nan_never_helps() -> None:
    scores = np.array([0.1, np.nan, 0.3, 0.2], dtype=np.float32)
    assert rank_of(scores, 1) == 4
    assert rank_of(scores, 2) == 2  # the item without a score counts as better
    assert rank_among(scores, 1, np.array([0, 2])) == 3
    assert rank_among(scores, 2, np.array([0, 1, 3])) == 2


def test_a_target_that_was_seen_is_refused() -> None:
    with pytest.raises(DataError, match=r"found target item 4 among the removed items; expected"):
        rank_of(SCORES, 4, removed=[0, 4])


@pytest.mark.parametrize("target", [-1, 6])
def test_a_target_outside_the_catalogue_is_refused(target: int) -> None:
    with pytest.raises(DataError, match="expected 0 to 5"):
        rank_of(SCORES, target)


def test_an_empty_history_removes_nothing() -> None:
    assert rank_of(SCORES, 3) == rank_of(SCORES, 3, removed=np.array([], dtype=np.int64)) == 6


@given(FEW_SCORES, st.data())
def test_rank_is_one_plus_everything_not_worse(scores: np.ndarray, data: st.DataObject) -> None:
    items = range(len(scores))
    target = data.draw(st.sampled_from(items))
    removed = data.draw(st.lists(st.sampled_from([i for i in items if i != target])))
    others = [i for i in items if i != target and i not in removed]
    expected = 1 + sum(bool(scores[i] >= scores[target]) for i in others)
    assert rank_of(scores, target, removed=removed) == expected
    assert rank_among(scores, target, np.array(others, dtype=np.int64)) == expected
    assert rank_among(scores, target, np.array([target, *others])) == expected


def test_ranking_leaves_the_scores_alone() -> None:
    before = SCORES.copy()
    rank_of(SCORES, 1, removed=[0])
    np.testing.assert_array_equal(SCORES, before)


# --- negatives ---------------------------------------------------------------------------------------------


def test_negatives_never_exclude_the_users_held_out_items() -> None:
    """The leak: an evaluation that spares a user's validation or test item when it draws negatives."""
    training, validation, test = np.array([0, 1, 2]), 3, 4
    drawn_for_test: set[int] = set()
    drawn_for_validation: set[int] = set()
    for user in range(200):
        options = {"count_items": 30, "training_items": training, "size": 5}
        drawn_for_test |= set(draw_negatives(negatives_generator(0, user), target=test, **options))
        drawn_for_validation |= set(draw_negatives(negatives_generator(0, user), target=validation, **options))
    assert drawn_for_test == set(range(30)) - {0, 1, 2, test}
    assert drawn_for_validation == set(range(30)) - {0, 1, 2, validation}
    assert validation in drawn_for_test
    assert test in drawn_for_validation


def test_held_out_items_are_drawn_as_often_as_any_other() -> None:
    draws = [
        draw_negatives(negatives_generator(1, user), count_items=42, training_items=np.array([0]), target=1, size=10)
        for user in range(4000)
    ]
    counts = np.bincount(np.concatenate(draws), minlength=42)
    assert counts[:2].tolist() == [0, 0]
    # each of 40 items is in a draw with probability 1/4: 1000 of 4000, standard deviation 27.4
    assert np.abs(counts[2:] - 1000).max() < 5 * 27.4


@given(st.integers(2, 60), st.data())
def test_negatives_are_distinct_allowed_and_enough(count_items: int, data: st.DataObject) -> None:
    items = st.integers(0, count_items - 1)
    target = data.draw(items)
    training = data.draw(st.lists(items))
    size = data.draw(st.integers(0, 70))
    drawn = draw_negatives(
        negatives_generator(3, 5),
        count_items=count_items,
        training_items=np.array(training, dtype=np.int64),
        target=target,
        size=size,
    )
    allowed = set(range(count_items)) - set(training) - {target}
    assert drawn.dtype == np.int64
    assert len(drawn) == len(set(drawn.tolist())) == min(size, len(allowed))
    assert set(drawn.tolist()) <= allowed


def test_negatives_depend_on_seed_and_user_only() -> None:
    def draw(seed: int, user: int) -> list[int]:
        rng = negatives_generator(seed, user)
        return draw_negatives(rng, count_items=1000, training_items=np.arange(5), target=9).tolist()

    assert draw(0, 7) == draw(0, 7)
    assert len(draw(0, 7)) == 99
    assert draw(0, 7) != draw(0, 8)
    assert draw(0, 7) != draw(1, 7)


# --- figures -----------------------------------------------------------------------------------------------


def test_figures_by_hand() -> None:
    ranks = np.array([1, 2, 10, 11, 100])
    assert hit_rate(ranks, 10).tolist() == [1, 1, 1, 0, 0]
    assert hit_rate(ranks, 1).tolist() == [1, 0, 0, 0, 0]
    assert ndcg(ranks, 10).tolist() == pytest.approx([1, 1 / math.log2(3), 1 / math.log2(11), 0, 0])
    assert reciprocal_rank(ranks).tolist() == [1, 1 / 2, 1 / 10, 1 / 11, 1 / 100]
    assert all(figure.dtype == np.float64 for figure in (hit_rate(ranks, 10), ndcg(ranks, 10)))


def test_summary_is_plain_floats() -> None:
    figures = summary(np.array([1, 3]), np.array([1, 1]))
    assert figures == {
        "hr@10": 1.0,
        "ndcg@10": 0.75,
        "mrr": pytest.approx(2 / 3),
        "hr@10_99neg": 1.0,
        "ndcg@10_99neg": 1.0,
    }
    assert {type(value) for value in figures.values()} == {float}


@given(hnp.arrays(np.int64, st.integers(1, 40), elements=st.integers(1, 5000)), st.integers(1, 50))
def test_figures_lie_in_order(ranks: np.ndarray, k: int) -> None:
    hits, gains = hit_rate(ranks, k), ndcg(ranks, k)
    assert ((gains >= 0) & (gains <= hits) & (hits <= 1)).all()
    assert (hit_rate(ranks, k) <= hit_rate(ranks, k + 1)).all()
    assert (hit_rate(ranks, 1) <= reciprocal_rank(ranks)).all()


def test_ranks_below_one_and_no_users_are_refused() -> None:
    with pytest.raises(DataError, match="found rank 0; expected ranks that count from 1"):
        ndcg([3, 0], 10)
    with pytest.raises(DataError, match="at least one user"):
        summary([], [])


# --- bootstrap ---------------------------------------------------------------------------------------------


def test_interval_agrees_with_the_normal_approximation() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=2000)  # 2,000 distinct values: several chunks
    low, high = bootstrap_interval(values, resamples=4000, seed=1)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_interval_of_few_distinct_values_agrees_with_drawing_users() -> None:
    hits = np.repeat([1.0, 0.0], [30, 70])
    rng = np.random.default_rng(2)
    drawn = hits[rng.integers(0, 100, size=(20_000, 100))].mean(axis=1)
    expected = np.quantile(drawn, [0.05, 0.95])
    assert bootstrap_interval(hits, resamples=20_000, seed=3, level=0.9) == pytest.approx(expected, abs=0.011)


def test_interval_ignores_the_order_of_users_and_repeats_by_seed() -> None:
    values = np.random.default_rng(4).random(200)
    once = bootstrap_interval(values, resamples=300, seed=5)
    assert once == bootstrap_interval(values[::-1], resamples=300, seed=5)
    assert once != bootstrap_interval(values, resamples=300, seed=6)


def test_equal_values_have_an_interval_without_width() -> None:
    low, high = bootstrap_interval(np.full(50, 0.25), resamples=20, seed=0)
    assert (low, high) == (0.25, 0.25)


def test_pairing_finds_a_small_difference_between_very_different_users() -> None:
    rng = np.random.default_rng(7)
    theirs = rng.random(400)
    ours = theirs + 0.01 + rng.normal(0, 0.02, size=400)
    found = paired_bootstrap(ours, theirs, resamples=1000, seed=0)
    assert found["difference"] == pytest.approx((ours - theirs).mean())
    assert 0 < found["low"] < found["difference"] < found["high"] < 0.02
    apart = bootstrap_interval(ours, resamples=1000, seed=0)
    assert apart[0] < theirs.mean() < apart[1]  # without pairing the same difference drowns


def test_pairing_is_antisymmetric() -> None:
    rng = np.random.default_rng(8)
    a, b = ndcg(rng.integers(1, 30, 500), 10), ndcg(rng.integers(1, 25, 500), 10)
    there = paired_bootstrap(a, b, resamples=4000, seed=0)
    back = paired_bootstrap(b, a, resamples=4000, seed=0)
    assert there["difference"] == pytest.approx(-back["difference"])
    assert there["low"] == pytest.approx(-back["high"], abs=0.003)


def test_bad_bootstraps_are_refused() -> None:
    with pytest.raises(DataError, match="found values of 3 and 2 users"):
        paired_bootstrap([1, 2, 3], [1, 2], resamples=10, seed=0)
    with pytest.raises(DataError, match="not finite"):
        bootstrap_interval([1.0, float("nan")], resamples=10, seed=0)
    with pytest.raises(ConfigError, match="level 95"):
        bootstrap_interval([1.0], resamples=10, seed=0, level=95)
