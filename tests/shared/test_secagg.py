"""Ring, Skellam noise and neighbour graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from shared.errors import ConfigError, PrivacyError, ProtocolError
from shared.privacy.skellam import skellam_rdp
from shared.secagg import graph
from shared.secagg.ring import SecurePlan, decode, encode, reduce, ring_scale
from shared.secagg.skellam import MOST_VARIANCE, share_variance, skellam_noise

# --- ring --------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 50))
def test_a_sum_is_off_by_at_most_half_a_step_for_each_vector(seed: int, number: int, size: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(number, size))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    scale = ring_scale(1.0, cohort=number)
    total = np.zeros(size, dtype=np.uint32)
    for row in rows:
        total += reduce(encode(row, bound=1.0, scale=scale))
    assert np.abs(decode(total, scale=scale) - rows.sum(axis=0)).max() <= number / (2 * scale) + 1e-12


@pytest.mark.parametrize(("cohort", "noise"), [(1, 0.0), (1000, 0.0), (10**6, 0.0), (1000, 1.0), (10, 50.0)])
def test_the_worst_sum_and_ten_deviations_of_noise_do_not_wrap(cohort: int, noise: float) -> None:
    scale = ring_scale(3.0, cohort=cohort, noise=noise)
    assert cohort * (3.0 * scale + 0.5) + 10 * noise * 3.0 * scale < 2**31
    worst = np.array([cohort * round(3.0 * scale)])
    for sign in (1, -1):
        assert decode(reduce(sign * worst), scale=scale)[0] == pytest.approx(sign * 3.0 * cohort, rel=1e-3)


@given(st.integers(0, 2**32 - 1), st.integers(1, 400), st.floats(0.0, 2.0))
def test_rounding_moves_norms_by_no_more_than_stated(seed: int, size: int, change: float) -> None:
    rng = np.random.default_rng(seed)
    first, move = rng.normal(size=size), rng.normal(size=size)
    first /= np.linalg.norm(first)
    second = first + change * move / np.linalg.norm(move)
    a, b = (encode(v, bound=10.0, scale=7.0) for v in (first, second))
    assert np.linalg.norm(a) <= 7.0 + np.sqrt(size) / 2 + 1e-9
    assert np.linalg.norm(a - b) <= 7.0 * change + np.sqrt(size) + 1e-9


def test_encode_walks_its_table() -> None:
    assert encode(np.array([0.3, -0.4]), bound=1.0, scale=10.0).tolist() == [3, -4]
    assert encode(np.array([30.0, -40.0]), bound=1.0, scale=10.0).tolist() == [6, -8]
    assert encode(np.zeros(2), bound=1.0, scale=10.0).tolist() == [0, 0]
    for bad in (np.nan, np.inf):
        with pytest.raises(ProtocolError, match="NaN or inf") as caught:
            encode(np.array([0.0, bad]), bound=1.0, scale=10.0)
        assert caught.value.code == "failed"


@pytest.mark.parametrize("values", [(0.0, 1.0, 3), (1.0, np.inf, 3), (1.0, 1.0, 0), (1.0, 1.0, 3, -1.0)])
def test_an_impossible_plan_is_refused(values: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError, match="expected finite"):
        SecurePlan(*values)


def test_an_impossible_ring_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected finite"):
        ring_scale(np.inf, cohort=3)


# --- Skellam noise -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", [0.5, 40.0, 1e9, 1e12])
def test_skellam_noise_has_mean_zero_and_the_stated_variance(variance: float) -> None:
    noise = skellam_noise(100_000, variance=variance, rng=np.random.default_rng(3))
    assert noise.dtype == np.int64
    assert abs(noise.mean()) < 5 * np.sqrt(variance / 100_000)
    assert noise.var() == pytest.approx(variance, rel=0.03)


def test_large_skellam_noise_has_a_gaussian_shape() -> None:
    noise = skellam_noise(50_000, variance=2.0**41, rng=np.random.default_rng(4)) / 2.0**20.5
    assert stats.kstest(noise, "norm").pvalue > 1e-3


def test_no_noise_is_zero_and_the_system_seeds_every_draw_differently() -> None:
    assert not skellam_noise(5, variance=0.0).any()
    assert not np.array_equal(skellam_noise(50, variance=1e6), skellam_noise(50, variance=1e6))


def test_shares_of_a_quorum_add_up_to_the_needed_variance() -> None:
    assert 8 * share_variance(6.0, quorum=8) == pytest.approx(36.0)
    with pytest.raises(PrivacyError):
        share_variance(1.0, quorum=0)
    with pytest.raises(PrivacyError):
        share_variance(float("nan"), quorum=3)


@pytest.mark.parametrize("quorum", [1, 4, 64])
def test_noise_beyond_what_the_generator_draws_exactly_is_refused(quorum: int) -> None:
    assert MOST_VARIANCE == 2.0**44
    most = 2.0**22 * quorum**0.5
    assert share_variance(most, quorum=quorum) == pytest.approx(MOST_VARIANCE)
    for std in (most * (1 + 1e-9), float("inf")):
        with pytest.raises(PrivacyError, match="use a smaller scale"):
            share_variance(std, quorum=quorum)


@pytest.mark.parametrize("variance", [2.0, 10.0, 100.0])
@pytest.mark.parametrize("shift", [1, 2])
@pytest.mark.parametrize("order", [2, 5, 16])
def test_the_renyi_bound_is_no_smaller_than_the_divergence(variance: float, shift: int, order: int) -> None:
    at = np.arange(-60 * int(variance**0.5 + 1), 60 * int(variance**0.5 + 1) + 1)
    log_p, log_q = (stats.skellam.logpmf(at + move, variance / 2, variance / 2) for move in (0, shift))
    sound = np.isfinite(log_p) & np.isfinite(log_q)
    divergence = np.logaddexp.reduce(order * log_p[sound] - (order - 1) * log_q[sound]) / (order - 1)
    assert 0 < divergence <= skellam_rdp(order, l2=shift, l1=shift, variance=variance) + 1e-9


def test_the_renyi_bound_approaches_the_gaussian_one() -> None:
    l2 = 2.0**16
    for order in (2, 32, 512):
        cost = skellam_rdp(order, l2=l2, l1=l2 * np.sqrt(150_000), variance=l2**2)
        assert cost == pytest.approx(order / 2, rel=1e-6)
        assert cost > order / 2


def test_the_renyi_bound_walks_its_table() -> None:
    assert skellam_rdp(2, l2=0.0, l1=0.0, variance=1.0) == 0.0
    # 2 * 4 / 20 + min((3 * 4 + 6 * 2) / 400, 3 * 2 / 20) by hand
    assert skellam_rdp(2, l2=2.0, l1=2.0, variance=10.0) == pytest.approx(0.4 + 0.06)
    # 2 * 1 / 1 + min((3 + 6) / 1, 3 / 1)
    assert skellam_rdp(2, l2=1.0, l1=1.0, variance=0.5) == pytest.approx(2.0 + 3.0)
    for order, l2, l1, variance in [(1.5, 1, 1, 1), (1, 1, 1, 1), (2, 1, 1, 0), (2, 2, 1, 1), (2, -1, 1, 1)]:
        with pytest.raises(PrivacyError):
            skellam_rdp(order, l2=l2, l1=l1, variance=variance)  # type: ignore[arg-type]


# --- graph -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [0, 1, 2, 3, 10, 49, 50, 51, 200])
def test_graphs_are_symmetric_regular_and_as_dense_as_stated(devices: int) -> None:
    lists = graph.neighbour_lists(devices)
    assert len(lists) == devices
    for device, found in enumerate(lists):
        assert len(found) == len(set(found)) == graph.degree(devices)
        assert device not in found
        assert all(device in lists[other] for other in found)


def test_small_cohorts_are_complete_and_large_ones_logarithmic() -> None:
    assert [graph.degree(n) for n in (10, 49, 50, 100, 1000, 100_000)] == [9, 48, 48, 56, 80, 136]
    assert all(graph.degree(n) >= graph.SPARSE_FROM for n in range(50, 3000))
    assert all(graph.degree(n) == n - 1 for n in range(1, 50))


@pytest.mark.parametrize("devices", [50, 100, 128, 129, 256, 257, 1000, 4096, 10_000, 100_000])
def test_sparse_graphs_fail_as_rarely_as_stated(devices: int) -> None:
    k = graph.degree(devices)
    t = graph.threshold(k)
    hostile = devices * stats.hypergeom.sf(t - 1, devices - 1, devices // 10, k)
    parted = devices * (0.1 + 0.2) ** k
    stuck = devices * stats.hypergeom.cdf(t - 1, devices - 1, int(0.8 * (devices - 1)), k)
    assert hostile <= 2**-40
    assert parted <= 2**-60
    assert stuck <= 2**-10


@pytest.mark.parametrize("neighbours", [2, 3, 9, 48, 56])
def test_two_groups_that_open_a_secret_always_share_a_member(neighbours: int) -> None:
    assert 2 * graph.threshold(neighbours) > neighbours
    assert graph.threshold(neighbours) >= 2


def test_the_quorum_is_enforced_where_it_can_be_seen() -> None:
    assert graph.least_survivors(9, asked=5, quorum=8) == 7
    assert graph.least_survivors(9, asked=5, quorum=3) == 5
    assert graph.least_survivors(56, asked=29, quorum=80) == 29
