"""What releases cost, against independent calculations."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp, mpf
from scipy import special, stats

from shared.errors import PrivacyError
from shared.privacy.accounting import Release, accountant_of, epsilon_of, gaussian_delta, gaussian_epsilon, least
from shared.privacy.skellam import skellam_rdp

DELTA = 1e-5


def exact_delta(mu: float, epsilon: float) -> float:
    """Theorem 8 of Balle & Wang 2018, with 60 digits."""
    with mp.workdps(60):
        m, e = mpf(mu), mpf(epsilon)
        return float(mp.ncdf(m / 2 - e / m) - mp.exp(e) * mp.ncdf(-m / 2 - e / m))


@pytest.mark.parametrize("mu", [1e-3, 0.1, 0.5, 1.0, 3.0, 10.0, 50.0])
@pytest.mark.parametrize("epsilon", [0.0, 1e-3, 0.5, 1.0, 8.0, 100.0])
def test_delta_of_the_gaussian_is_that_of_sixty_digits(mu: float, epsilon: float) -> None:
    assert gaussian_delta(mu, epsilon=epsilon) == pytest.approx(exact_delta(mu, epsilon), rel=1e-6, abs=1e-14)


@pytest.mark.parametrize("mu", [1e-3, 0.1, 0.5, 1.0, 3.0, 10.0, 50.0])
@pytest.mark.parametrize("delta", [1e-10, 1e-5, 1e-2])
def test_epsilon_meets_delta_and_a_little_less_does_not(mu: float, delta: float) -> None:
    epsilon = gaussian_epsilon(mu, delta=delta)
    assert exact_delta(mu, epsilon) <= delta * (1 + 1e-5)
    if epsilon > 0:
        assert exact_delta(mu, epsilon * (1 - 1e-4)) > delta


@pytest.mark.parametrize(
    ("sigma", "epsilon"),
    [(0.5, 9.9973), (1.0, 4.3772), (2.0, 1.9931), (3.7304, 1.0001)],
)
def test_known_values_at_delta_1e_minus_5(sigma: float, epsilon: float) -> None:
    """sigma = 3.730 for (1, 1e-5) is the textbook value of the analytic Gaussian mechanism."""
    assert epsilon_of([Release("train", sigma)], delta=DELTA) == pytest.approx(epsilon, abs=1e-4)


def test_an_independent_accountant_agrees() -> None:
    """Google's privacy-loss-distribution accountant, a numerical method, is close and never far below."""
    dp_accounting = pytest.importorskip("dp_accounting", reason="dp-accounting is an extra of flwr")
    from dp_accounting.pld import PLDAccountant

    releases = [
        Release("popularity", 12.0),
        Release("train", 9.0, steps=5),
        Release("validate", 20.0, steps=2),
    ]
    accountant = PLDAccountant(value_discretization_interval=1e-4)
    for release in releases:
        accountant.compose(dp_accounting.GaussianDpEvent(release.noise_multiplier), release.steps)
    assert epsilon_of(releases, delta=DELTA) == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-3)


def test_an_independent_accountant_of_sampling_is_close_to_the_price() -> None:
    """Opacus' Renyi accountant is another method and another code base; its bound is looser, never tighter."""
    from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

    orders = [1 + x / 10 for x in range(1, 200)] + list(range(21, 256))
    renyi = compute_rdp(q=0.1, noise_multiplier=1.0, steps=20, orders=orders)
    bound, _ = get_privacy_spent(orders=orders, rdp=renyi, delta=DELTA)
    price = epsilon_of([Release("train", 1.0, sample_rate=0.1, steps=20)], delta=DELTA)
    assert price <= bound <= price * 1.5


multipliers = st.floats(0.3, 50.0)


@given(st.lists(st.tuples(multipliers, st.integers(1, 20)), min_size=1, max_size=6))
def test_releases_compose_to_one_gaussian(parts: list[tuple[float, int]]) -> None:
    releases = [Release("train", z, steps=steps) for z, steps in parts]
    single = Release("train", 1 / math.sqrt(sum(steps / z**2 for z, steps in parts)))
    assert epsilon_of(releases, delta=DELTA) == pytest.approx(epsilon_of([single], delta=DELTA), rel=1e-6)
    assert epsilon_of(releases[::-1], delta=DELTA) == pytest.approx(epsilon_of(releases, delta=DELTA))


@given(multipliers, st.floats(1.01, 2.0), st.integers(1, 30))
def test_epsilon_grows_with_steps_and_falls_with_noise_and_delta(z: float, more: float, steps: int) -> None:
    here = epsilon_of([Release("train", z, steps=steps)], delta=DELTA)
    assert epsilon_of([Release("train", z * more, steps=steps)], delta=DELTA) <= here
    assert epsilon_of([Release("train", z, steps=steps + 1)], delta=DELTA) >= here
    assert epsilon_of([Release("train", z, steps=steps)], delta=DELTA * more) <= here
    assert epsilon_of([Release("train", z, steps=steps), Release("validate", z)], delta=DELTA) >= here


@pytest.mark.parametrize(("z", "steps"), [(0.5, 1), (2.0, 10), (100.0, 10)])
def test_the_sampled_price_bounds_the_closed_form_from_above(z: float, steps: int) -> None:
    """At a sampling rate a hair below 1 the price is numerical; it must not be lower, nor much higher."""
    closed = epsilon_of([Release("train", z, steps=steps)], delta=DELTA)
    sampled = epsilon_of([Release("train", z, sample_rate=1 - 1e-12, steps=steps)], delta=DELTA)
    assert closed * (1 - 1e-6) <= sampled <= 1.01 * closed + 0.001


@pytest.mark.parametrize("z", [0.7, 1.0, 4.0])
def test_sampling_fewer_windows_costs_less(z: float) -> None:
    prices = [
        epsilon_of([Release("train", z, sample_rate=rate, steps=10)], delta=DELTA) for rate in (0.01, 0.1, 0.5, 0.999)
    ]
    assert prices == sorted(prices)
    assert prices[0] < prices[-1] / 2


@pytest.mark.parametrize(
    "release",
    [
        Release("train", 0.1, sample_rate=0.5),
        Release("train", 1e4, sample_rate=0.001),
        Release("train", 0.5, sample_rate=0.9, steps=1000),
    ],
)
def test_extreme_sampled_releases_have_a_price_without_warnings(release: Release) -> None:
    price = epsilon_of([release], delta=DELTA)
    assert 0 <= price < math.inf


#: The table in `epsilon_of`.
def test_table_of_epsilon_of() -> None:
    assert epsilon_of([], delta=DELTA) == 0.0
    assert epsilon_of([Release("train", 1.0)], delta=DELTA) == pytest.approx(gaussian_epsilon(1.0, delta=DELTA))
    mixed = [Release("popularity", 2.0), Release("train", 1.0, sample_rate=0.5)]
    whole = [Release("popularity", 2.0), Release("train", 1.0)]
    assert 0 < epsilon_of(mixed, delta=DELTA) < epsilon_of(whole, delta=DELTA)


def test_hardly_any_signal_costs_nothing_and_no_delta_has_no_price() -> None:
    assert gaussian_epsilon(1e-9, delta=DELTA) == 0.0
    for delta in (0.0, 1.0, -1e-5, math.nan, 2.0):
        with pytest.raises(PrivacyError, match="delta"):
            epsilon_of([Release("train", 1.0)], delta=delta)
    for mu in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(PrivacyError, match="mu"):
            gaussian_epsilon(mu, delta=DELTA)


@pytest.mark.parametrize(
    ("multiplier", "rate", "steps"),
    [
        (0.0, 1.0, 1),
        (-1.0, 1.0, 1),
        (math.inf, 1.0, 1),
        (math.nan, 1.0, 1),
        (1.0, 0.0, 1),
        (1.0, 1.1, 1),
        (1.0, math.nan, 1),
        (1.0, 1.0, 0),
    ],
)
def test_releases_that_protect_nothing_are_refused(multiplier: float, rate: float, steps: int) -> None:
    with pytest.raises(PrivacyError, match="expected a positive finite noise multiplier"):
        Release("train", multiplier, rate, steps)


def test_releases_of_two_units_are_never_added_up() -> None:
    person = Release("train", 1.0, unit="user")
    assert epsilon_of([person], delta=DELTA) == epsilon_of([Release("train", 1.0)], delta=DELTA)
    with pytest.raises(PrivacyError, match="expected one unit, priced apart"):
        epsilon_of([Release("train", 1.0), person], delta=DELTA)
    with pytest.raises(PrivacyError, match="found unit 'household'; expected event or user"):
        Release("train", 1.0, unit="household")


# --- integer noise -----------------------------------------------------------------------------------------


def skellam(z: float, *, l2: float = 1000.0, l1: float = 30_000.0, steps: int = 1) -> Release:
    return Release("train", z, 1.0, steps, "user", l2, l1)


@pytest.mark.parametrize(("l2", "l1", "rate"), [(-1.0, 1.0, 1.0), (2.0, 1.0, 1.0), (2.0, 4.0, 0.5)])
def test_integer_noise_that_has_no_price_is_refused(l2: float, l1: float, rate: float) -> None:
    with pytest.raises(PrivacyError, match="Skellam noise needs l1 >= l2 > 0 and no subsampling"):
        Release("train", 1.0, rate, 1, "user", l2, l1)


@pytest.mark.parametrize("z", [1.0, 4.0])
def test_fine_integer_noise_costs_a_little_more_than_real_noise(z: float) -> None:
    """Renyi accounting is looser than the closed form, and integers are no cheaper than real numbers."""
    real = epsilon_of([Release("train", z, unit="user")], delta=DELTA)
    fine = epsilon_of([skellam(z, l2=1e6, l1=1e9)], delta=DELTA)
    coarse = epsilon_of([skellam(z, l2=10.0, l1=100.0)], delta=DELTA)
    assert real < fine < 1.25 * real
    assert fine < coarse


def test_integer_and_real_noise_compose_to_more_than_either() -> None:
    one, other = skellam(4.0), Release("validate", 4.0, unit="user")
    both = epsilon_of([one, other], delta=DELTA)
    assert max(epsilon_of([one], delta=DELTA), epsilon_of([other], delta=DELTA)) < both
    assert both == pytest.approx(epsilon_of([skellam(4.0, steps=2)], delta=DELTA), rel=0.01)


@pytest.mark.parametrize("rate", [1e-3, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 30])
def test_beside_integer_noise_sampling_is_no_discount(rate: float, steps: int) -> None:
    """Priced as if everybody joined every step, so never below what either costs alone."""
    integer, sampled = skellam(4.0), Release("train", 4.0, rate, steps, "user")
    together = epsilon_of([integer, sampled], delta=DELTA)
    assert together == epsilon_of([integer, Release("train", 4.0, 1.0, steps, "user")], delta=DELTA)
    assert together > epsilon_of([integer], delta=DELTA)
    assert together > epsilon_of([sampled], delta=DELTA)
    assert accountant_of([integer, sampled]).startswith("Renyi bound of the Skellam mechanism")


def test_the_skellam_bound_by_hand() -> None:
    """Order 2, l2 = 2, l1 = 4, variance 100: 8 / 200 + min((3 * 4 + 24) / 40000, 12 / 200)."""
    assert skellam_rdp(2, l2=2.0, l1=4.0, variance=100.0) == pytest.approx(0.04 + 36 / 40_000)
    assert skellam_rdp(2, l2=0.0, l1=0.0, variance=1.0) == 0.0
    for order in (1, 0, 2.5):
        with pytest.raises(PrivacyError, match="integer of at least 2"):
            skellam_rdp(order, l2=1.0, l1=1.0, variance=1.0)  # type: ignore[arg-type]
    for values in ({"l2": 2.0, "l1": 1.0, "variance": 1.0}, {"l2": 1.0, "l1": 1.0, "variance": 0.0}):
        with pytest.raises(PrivacyError, match="expected l1 >= l2 >= 0, variance > 0"):
            skellam_rdp(2, **values)


@pytest.mark.parametrize("order", [2, 5, 16])
def test_the_skellam_bound_holds_for_a_shift_of_one_step(order: int) -> None:
    """The exact Renyi divergence between integer noise and itself, one step to the side."""
    variance, span = 9.0, np.arange(-50, 51)
    here, there = (stats.skellam.logpmf(values, variance / 2, variance / 2) for values in (span, span - 1))
    exact = float(special.logsumexp(order * here + (1 - order) * there)) / (order - 1)
    assert exact <= skellam_rdp(order, l2=1.0, l1=1.0, variance=variance) < 1.6 * exact


# --- searching and naming ----------------------------------------------------------------------------------


@given(st.floats(1e-6, 1e6))
def test_the_least_is_found_from_above(limit: float) -> None:
    found = least(lambda value: value >= limit)
    assert limit <= found <= limit * (1 + 1e-8) + 1e-300


def test_what_no_noise_meets_is_refused() -> None:
    with pytest.raises(PrivacyError, match="no noise level meets this epsilon and delta"):
        least(lambda value: False)


def test_the_accountant_that_priced_it_is_named() -> None:
    assert accountant_of([Release("train", 1.0)]) == "exact Gaussian composition (arXiv 1805.06530)"
    sampled = [Release("popularity", 1.0), Release("train", 1.0, 0.5)]
    assert re.fullmatch(r"privacy loss distributions, dp_accounting \d.*", accountant_of(sampled))
    assert re.fullmatch(r"Renyi bound of the Skellam mechanism .*, dp_accounting \d.*", accountant_of([skellam(1.0)]))
