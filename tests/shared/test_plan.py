"""A budget is split as asked, met exactly where there is a closed form, and never exceeded."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import PrivacyError
from shared.privacy.accounting import Release, epsilon_of
from shared.privacy.plan import PHASES, Demand, LayerPlan, lattice_sensitivity, plan_layer, price_layer
from tests.shared.test_accounting import exact_delta

DELTA = 1e-5
SHARES = {"popularity": 0.1, "train": 0.8, "validate": 0.1}


def wish(**changes: Any) -> Demand:
    return Demand(**{"unit": "event", "shares": SHARES, "steps": 4, **changes})


def releases_of(plan: LayerPlan, *, steps: int, unit: str = "event") -> list[Release]:
    """What a device is charged in a whole run."""
    return [
        Release("popularity", plan.popularity, unit=unit),
        Release("train", plan.train, 1.0, steps, unit),
        Release("validate", plan.validate, unit=unit),
    ]


@pytest.mark.parametrize("unit", ["event", "user"])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0, 1000.0])
@pytest.mark.parametrize("delta", [1e-9, 1e-5])
@pytest.mark.parametrize("steps", [0, 1, 24])
def test_a_plan_spends_exactly_the_budget(unit: str, epsilon: float, delta: float, steps: int) -> None:
    plan = plan_layer(wish(unit=unit, steps=steps), epsilon=epsilon, delta=delta)
    releases = releases_of(plan, steps=max(1, steps), unit=unit)
    spent = epsilon_of(releases, delta=delta)
    assert spent == plan.epsilon
    assert spent <= epsilon
    assert spent == pytest.approx(epsilon, rel=1e-6)
    assert exact_delta(math.sqrt(sum(r.steps / r.noise_multiplier**2 for r in releases)), epsilon) <= delta * (1 + 1e-6)


def test_a_plan_splits_what_adds_up_by_the_shares() -> None:
    shares = {"popularity": 0.2, "train": 0.75, "validate": 0.05}
    plan = plan_layer(wish(shares=shares, steps=12), epsilon=8.0, delta=DELTA)
    parts = [1 / plan.popularity**2, 12 / plan.train**2, 1 / plan.validate**2]
    assert [part / sum(parts) for part in parts] == pytest.approx([0.2, 0.75, 0.05])


def test_a_plan_with_sampling_meets_the_budget_with_less_noise() -> None:
    sampled = plan_layer(wish(steps=10, sample_rate=0.1), epsilon=8.0, delta=DELTA)
    whole = plan_layer(wish(steps=10), epsilon=8.0, delta=DELTA)
    assert 7.95 < sampled.epsilon <= 8.0
    assert sampled.train < whole.train


def test_a_plan_with_integer_noise_meets_the_budget_with_a_little_more_noise() -> None:
    sizes = {"popularity": 100, "prior": 900, "train": 5000, "validate": 2}
    shares = {"popularity": 0.1, "prior": 0.3, "train": 0.5, "validate": 0.1}
    wanted = {"unit": "user", "shares": shares}
    integer = plan_layer(wish(**wanted, dimensions=sizes, grid=2.0**20), epsilon=8.0, delta=DELTA)
    real = plan_layer(wish(**wanted), epsilon=8.0, delta=DELTA)
    assert 7.9 < integer.epsilon <= 8.0
    for phase in PHASES:
        assert getattr(real, phase) < getattr(integer, phase) < 1.2 * getattr(real, phase)


@pytest.mark.parametrize("left_out", ["prior", "train", "popularity"])
def test_a_phase_that_is_not_asked_has_no_noise_and_costs_nothing(left_out: str) -> None:
    shares = {"popularity": 0.1, "prior": 0.3, "train": 0.5, "validate": 0.1, left_out: 0.0}
    for dimensions, grid in (({}, 0.0), (dict.fromkeys(set(PHASES) - {left_out}, 50), 2.0**20)):
        plan = plan_layer(wish(shares=shares, dimensions=dimensions, grid=grid), epsilon=8.0, delta=DELTA)
        assert [phase for phase in PHASES if getattr(plan, phase) == 0.0] == [left_out]
        assert 7.9 < plan.epsilon <= 8.0


@pytest.mark.parametrize("steps", [1, 7])
def test_a_price_and_a_plan_are_inverse(steps: int) -> None:
    plan = plan_layer(wish(steps=steps), epsilon=2.0, delta=DELTA)
    priced = price_layer(wish(steps=steps), train_multiplier=plan.train, delta=DELTA)
    for name in (*PHASES, "epsilon"):
        assert getattr(priced, name) == pytest.approx(getattr(plan, name), rel=1e-6)
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(PrivacyError, match="expected a positive one"):
            price_layer(wish(), train_multiplier=bad, delta=DELTA)
    untrained = wish(shares={**SHARES, "train": 0.0})
    with pytest.raises(PrivacyError, match="no training rounds"):
        price_layer(untrained, train_multiplier=1.0, delta=DELTA)


#: The table in `lattice_sensitivity`, by brute force: vectors rounded to whole steps.
@given(grid=st.floats(0.5, 40.0), dimension=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_table_of_sensitivities_after_rounding(grid: float, dimension: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    here = generator.uniform(-30, 30, dimension)
    step = generator.normal(size=dimension)
    step *= grid * generator.uniform(0.9, 1.0) / np.linalg.norm(step)
    changes = {"event": np.round(here + step) - np.round(here), "user": np.round(step)}
    for unit, change in changes.items():
        l2, l1 = lattice_sensitivity(unit, grid=grid, dimension=dimension)
        assert np.linalg.norm(change) <= l2 + 1e-9
        assert np.abs(change).sum() <= l1 + 1e-9


def test_sensitivities_after_rounding_by_hand() -> None:
    assert lattice_sensitivity("user", grid=10.0, dimension=4) == (11.0, 22.0)  # sqrt(4) x 11 < 11 x 11
    assert lattice_sensitivity("event", grid=10.0, dimension=4) == (12.0, 24.0)
    assert lattice_sensitivity("user", grid=1.0, dimension=100) == (6.0, 36.0)  # 6 x 6 < 10 x 6
