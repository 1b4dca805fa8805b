"""Exploration: the posterior of Bayesian linear regression, its draws, and what feedback does to them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.exploration import Explorer, Taste, leading_directions
from client.store import History
from shared.errors import ConfigError
from shared.schema import EventKind


def test_the_posterior_by_hand() -> None:
    taste = Taste.unknown(2, ridge=1.0).learn(np.array([[1.0, 0], [1, 0], [0, 1]]), [1.0, 1.0, -1.0])
    assert taste.mean == pytest.approx([2 / 3, -1 / 2])


def test_draws_have_the_posterior_mean_and_covariance() -> None:
    taste = Taste.unknown(2, ridge=1.0).learn(np.array([[1.0, 1], [1, 0]]), [1.0, 0.0])
    draws = np.array([taste.draw(seed) for seed in range(4_000)])
    assert draws.mean(0) == pytest.approx(taste.mean, abs=0.05)
    assert np.cov(draws.T) == pytest.approx(np.linalg.inv(taste.precision), abs=0.05)
    assert np.array_equal(taste.draw(7), taste.draw(7))


@given(st.integers(0, 1_000))
@settings(max_examples=30, deadline=None)
def test_the_order_of_feedback_does_not_matter(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows, rewards = generator.normal(size=(6, 3)), generator.uniform(-1, 1, 6)
    at_once, one_by_one = Taste.unknown(3).learn(rows, rewards), Taste.unknown(3)
    for row in generator.permutation(6):
        one_by_one = one_by_one.learn(rows[row : row + 1], rewards[row : row + 1])
    assert one_by_one.mean == pytest.approx(at_once.mean)


def test_likes_and_skips_move_the_bonus_and_settle_it() -> None:
    features = np.array([[1.0, 0], [0, 1]], dtype=np.float32)
    kinds = np.array([EventKind.LIKE, EventKind.SKIP] * 50, dtype=np.int64)
    history = History(np.tile([0, 1], 50), np.zeros(100), kinds, np.zeros(100, np.int64), np.zeros(100))
    taste = Taste.unknown(2).learn_from(history, features)
    bonuses = np.array([Explorer.drawn(features, taste, seed=s).bonus(np.array([0, 1])) for s in range(50)])
    assert (bonuses[:, 0] > 0.3).all()
    assert (bonuses[:, 1] < -0.3).all()
    unknown = [Explorer.drawn(features, Taste.unknown(2), seed=s).bonus(np.array([0]))[0] for s in range(50)]
    assert np.std(unknown) > 2 * bonuses[:, 0].std()


def test_the_directions_are_the_leading_ones_with_unit_length_on_average() -> None:
    rows = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32) * [9, 1, 5, 1, 1]
    found = leading_directions(rows.astype(np.float32), count=2)
    assert found.shape == (200, 2)
    assert (found.astype(float) ** 2).sum(1).mean() == pytest.approx(1.0)
    assert abs(np.corrcoef(found[:, 0], rows[:, 0])[0, 1]) > 0.99
    assert leading_directions(rows.astype(np.float32), count=9).shape == (200, 5)


def test_a_ridge_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="ridge"):
        Taste.unknown(2, ridge=0.0)
