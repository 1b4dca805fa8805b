"""From noisy counts to log popularity."""

from __future__ import annotations

import numpy as np
import pytest

from server.popularity import log_popularity


def test_without_noise_it_is_the_centred_log_of_the_counts() -> None:
    counts = np.array([0.0, 1.0, 3.0, 7.0])
    logs = np.log([1.0, 2.0, 4.0, 8.0])
    found = log_popularity(counts, noise_std=0.0)
    assert found.dtype == np.float32
    assert found == pytest.approx(logs - logs.mean(), abs=1e-6)
    assert found.mean() == pytest.approx(0.0, abs=1e-6)


def test_counts_that_are_all_noise_give_a_flat_popularity() -> None:
    noise = np.random.default_rng(0).normal(0.0, 5.0, 500)
    assert np.all(log_popularity(noise, noise_std=5.5) == 0.0)


@pytest.mark.parametrize("counts", [np.zeros(6), np.full(6, 4.0), np.array([2.0])])
def test_equal_counts_are_flat(counts: np.ndarray) -> None:
    assert np.all(log_popularity(counts, noise_std=0.0) == 0.0)
    assert np.all(log_popularity(counts, noise_std=1.0) == 0.0)


def test_the_share_of_variance_that_is_noise_is_shrunk_away() -> None:
    """Counts 2 and 6: mean 4, variance 4. Noise variance 1 keeps three quarters: 2.5 and 5.5."""
    logs = np.log([3.5, 6.5])
    assert log_popularity(np.array([2.0, 6.0]), noise_std=1.0) == pytest.approx(logs - logs.mean(), abs=1e-6)


def test_more_noise_never_means_more_spread() -> None:
    counts = np.random.default_rng(1).gamma(0.5, 20.0, 200)
    spreads = [float(log_popularity(counts, noise_std=std).std()) for std in (0.0, 5.0, 10.0, 20.0, 200.0)]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[-1] == 0.0


def test_negative_noisy_counts_are_zero() -> None:
    found = log_popularity(np.array([-5.0, -50.0, 100.0, 0.0]), noise_std=0.0)
    assert np.isfinite(found).all()
    assert found[0] == found[1] == found[3] < found[2]


def test_counts_that_are_mostly_noise_are_not_used() -> None:
    """MovieLens 1M under trust = local: a standard deviation of 1,180 over counts that spread by 385."""
    counts = np.random.default_rng(0).normal(290, np.hypot(385, 1180), 3000)
    assert not log_popularity(counts, noise_std=1180.0).any()
    assert log_popularity(counts, noise_std=300.0).any()
