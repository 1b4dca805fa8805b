"""What releases cost, against independent calculations."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp, mpf

from shared.config import Privacy
from shared.errors import PrivacyError
from shared.privacy.accounting import (
    Release,
    epsilon_of,
    gaussian_delta,
    gaussian_epsilon,
    plan_noise,
)

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


def test_an_independent_accountant_of_sampling_is_below_the_rdp_price() -> None:
    dp_accounting = pytest.importorskip("dp_accounting", reason="dp-accounting is an extra of flwr")
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(value_discretization_interval=1e-3)
    event = dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(1.0))
    accountant.compose(event, 20)
    price = epsilon_of([Release("train", 1.0, sample_rate=0.1, steps=20)], delta=DELTA)
    assert accountant.get_epsilon(DELTA) <= price <= accountant.get_epsilon(DELTA) * 1.5


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


@pytest.mark.parametrize("z", [0.5, 1.0, 2.0, 10.0, 100.0])
@pytest.mark.parametrize("steps", [1, 10])
def test_the_rdp_price_bounds_the_closed_form_from_above(z: float, steps: int) -> None:
    """At a sampling rate a hair below 1 the price comes from Opacus; it must not be lower, nor absurdly higher."""
    closed = epsilon_of([Release("train", z, steps=steps)], delta=DELTA)
    rdp = epsilon_of([Release("train", z, sample_rate=1 - 1e-12, steps=steps)], delta=DELTA)
    assert closed <= rdp <= 1.6 * closed + 0.05


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
        Release("train", 0.05, sample_rate=0.5),
        Release("train", 1e4, sample_rate=0.001),
        Release("train", 0.2, sample_rate=0.9, steps=1000),
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


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0, 1000.0])
@pytest.mark.parametrize("delta", [1e-9, 1e-5])
@pytest.mark.parametrize("participations", [0, 1, 24])
def test_a_plan_spends_exactly_the_budget(epsilon: float, delta: float, participations: int) -> None:
    privacy = Privacy(mode="event", epsilon=epsilon, delta=delta)
    plan = plan_noise(privacy, participations=participations, local_steps=1, sample_rate=1.0)
    releases = [
        Release("popularity", plan.popularity),
        Release("train", plan.train, steps=max(1, participations)),
        Release("validate", plan.validate),
    ]
    spent = epsilon_of(releases, delta=delta)
    assert spent == plan.epsilon
    assert spent <= epsilon
    assert spent == pytest.approx(epsilon, rel=1e-6)
    assert exact_delta(math.sqrt(sum(r.steps / r.noise_multiplier**2 for r in releases)), epsilon) <= delta * (1 + 1e-6)


def test_a_plan_splits_what_adds_up_by_the_shares() -> None:
    privacy = Privacy(mode="event", popularity_share=0.2, validation_share=0.05)
    plan = plan_noise(privacy, participations=4, local_steps=3, sample_rate=1.0)
    parts = [1 / plan.popularity**2, 12 / plan.train**2, 1 / plan.validate**2]
    assert [part / sum(parts) for part in parts] == pytest.approx([0.2, 0.75, 0.05])
    assert plan.participations == 4


def test_a_plan_with_sampling_meets_the_budget_with_less_noise() -> None:
    privacy = Privacy(mode="event", epsilon=8.0)
    sampled = plan_noise(privacy, participations=10, local_steps=1, sample_rate=0.1)
    whole = plan_noise(privacy, participations=10, local_steps=1, sample_rate=1.0)
    assert 7.99 < sampled.epsilon <= 8.0
    assert sampled.train < whole.train
