"""The audit's bounds are right, the correct aggregator passes, and every planted bug is caught."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from client.trainer import Step, train_locally
from server.aggregation import Aggregator
from shared.adapter import AdapterState
from shared.errors import ConfigError, PrivacyError, RunError
from shared.privacy.accounting import Release, epsilon_of
from simulations.audit import canaries, membership
from simulations.audit.aggregator import ERROR, MOST_EPSILON, audit_aggregator, gaussian, guess, minus_twin, separation
from simulations.audit.bounds import Guesses, chance, epsilon_bound, mu_bound, refutes_gaussian
from simulations.audit.canaries import Claim, Rounds, play
from simulations.audit.membership import MembershipAudit, area_under_curve, audit_membership, clopper_pearson
from simulations.audit.report import audit_report, audit_tables, has_passed
from tests.simulations.planted_bugs import BUGS

# --- bounds ------------------------------------------------------------------------------------------------

pytestmark = pytest.mark.slow  # half a minute of attacks


def response(generator: np.random.Generator, *, epsilon: float, coins: int) -> Guesses:
    """Randomised response to each coin, the pure epsilon-DP mechanism that leaks most; every coin is guessed."""
    return Guesses(coins, coins, int(generator.binomial(coins, 1 / (1 + math.exp(-epsilon)))))


def shifts(generator: np.random.Generator, *, mu: float, coins: int, share: int) -> Guesses:
    """A Gaussian of mean mu or 0 for each coin; the highest and lowest 1/share are guessed."""
    included = generator.random(coins) < 0.5
    values = mu * included + generator.normal(size=coins)
    return guess(values, included, highest=coins // share, lowest=coins // share)


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_the_bound_holds_for_randomised_response_and_is_close_with_many_coins(epsilon: float) -> None:
    generator = np.random.default_rng(0)
    for coins, times, least in ((60, 200, 0.0), (20_000, 10, 0.9 * epsilon)):
        found = [response(generator, epsilon=epsilon, coins=coins) for _ in range(times)]
        bounds = {guesses: epsilon_bound(guesses, delta=0.0, error=0.05) for guesses in set(found)}
        wrong = sum(bounds[guesses] > epsilon for guesses in found)
        assert stats.binomtest(wrong, times, 0.05, alternative="greater").pvalue > 0.01
        assert min(bounds.values()) >= least


def test_the_gaussian_bound_holds_for_gaussians_and_beats_the_other() -> None:
    generator = np.random.default_rng(1)
    found = [shifts(generator, mu=1.0, coins=2000, share=16) for _ in range(60)]
    bounds = [mu_bound(guesses, error=0.05) for guesses in found]
    assert sum(bound > 1.0 for bound in bounds) <= 3  # 5 % of 60
    assert np.median(bounds) > 0.5
    plain = [epsilon_bound(guesses, delta=1e-5, error=0.05) for guesses in found]
    assert np.median([gaussian(bound, delta=1e-5) for bound in bounds]) > 1.2 * np.median(plain)


def test_chance_against_sums_by_hand() -> None:
    """Two coins, both guessed, one right, epsilon = ln 3, so that a guess is right with probability 3/4."""
    third = math.log(3)
    assert chance(Guesses(2, 2, 0), epsilon=third, delta=0.1) == 1.0
    assert chance(Guesses(2, 2, 1), epsilon=third, delta=0.0) == pytest.approx(15 / 16)
    assert chance(Guesses(2, 2, 2), epsilon=third, delta=0.0) == pytest.approx(9 / 16)
    # one less: (f(1) - f(2)) / 1 = 6/16; two less: (f(0) - f(2)) / 2 = 7/32; so 2 m delta * 6/16
    assert chance(Guesses(2, 2, 2), epsilon=third, delta=0.01) == pytest.approx(9 / 16 + 0.04 * 6 / 16)
    assert chance(Guesses(3, 2, 2), epsilon=third, delta=0.01) == pytest.approx(9 / 16 + 0.06 * 6 / 16)


def test_bounds_in_closed_form() -> None:
    """r right guesses of r: (1 / (1 + e^-eps))^r = error. One Gaussian guess: error = Phi(mu / 2)."""
    accuracy = 0.05 ** (1 / 100)
    found = epsilon_bound(Guesses(100, 100, 100), delta=0.0, error=0.05)
    assert found == pytest.approx(math.log(accuracy / (1 - accuracy)), rel=1e-3)
    assert mu_bound(Guesses(1, 1, 1), error=0.9) == pytest.approx(2 * stats.norm.ppf(0.9), rel=1e-3)
    assert refutes_gaussian(Guesses(1, 1, 1), mu=2.0, error=0.85)
    assert not refutes_gaussian(Guesses(1, 1, 1), mu=2.0, error=0.84)


@pytest.mark.parametrize("guesses", [Guesses(0, 0, 0), Guesses(9, 0, 0), Guesses(9, 5, 0), Guesses(100, 60, 30)])
def test_guesses_no_better_than_chance_bound_nothing(guesses: Guesses) -> None:
    assert epsilon_bound(guesses, delta=1e-5, error=0.05) == 0.0
    assert mu_bound(guesses, error=0.05) == 0.0


def test_more_right_guesses_bound_more_and_more_delta_bounds_less() -> None:
    found = [epsilon_bound(Guesses(400, 100, right), delta=1e-5, error=0.05) for right in range(60, 101, 5)]
    assert found == sorted(found)
    assert found[-1] > found[0]
    found = [mu_bound(Guesses(400, 100, right), error=0.05) for right in range(60, 101, 5)]
    assert found == sorted(found)
    assert epsilon_bound(Guesses(400, 100, 95), delta=1e-3, error=0.05) < epsilon_bound(
        Guesses(400, 100, 95), delta=1e-5, error=0.05
    )


def test_impossible_guesses_are_refused() -> None:
    with pytest.raises(PrivacyError, match="right <= made"):
        Guesses(10, 5, 6)


# --- the real aggregator -----------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [2.0, 4.0, 8.0])
def test_the_correct_aggregator_passes_and_the_audit_is_not_blind(epsilon: float) -> None:
    found = audit_aggregator(Claim(epsilon), groups=96, canaries=32, seed=1)
    assert found.passed
    assert 0.25 * epsilon < found.lower <= epsilon
    assert 0.4 * epsilon < found.lower_gaussian <= epsilon
    assert found.estimate == pytest.approx(epsilon, rel=0.15)


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught_at_a_claim_of_two(bug: str) -> None:
    found = audit_aggregator(Claim(2.0), make_aggregator=BUGS[bug], groups=96, canaries=32, seed=1)
    assert not found.passed
    assert found.lower > 2.0
    assert found.lower_gaussian > 2.0
    assert found.estimate > 2.0


def test_false_alarms_are_rare() -> None:
    found = [audit_aggregator(Claim(2.0), groups=32, canaries=16, seed=seed) for seed in range(8)]
    assert all(audit.passed for audit in found)


def test_a_person_in_several_rounds_costs_what_they_add_up_to() -> None:
    claim = Claim(2.0, participations=2)
    release = Release("train", claim.noise_multiplier, steps=2, unit="user")
    assert epsilon_of([release], delta=1e-5) == pytest.approx(2.0, rel=1e-6)
    found = audit_aggregator(claim, groups=64, canaries=16, seed=2)
    assert (found.rounds, found.canaries) == (128, 1024)
    assert found.passed
    assert found.estimate == pytest.approx(2.0, abs=0.75)  # three standard errors
    for bug in ("clipping skipped for one client", "the same noise drawn twice"):
        assert not audit_aggregator(claim, make_aggregator=BUGS[bug], groups=64, canaries=16, seed=2).passed


def test_half_the_noise_is_caught() -> None:
    """Not one of the planted bugs: nothing in the audit knows them."""

    def half(shapes: dict, *, bound: float, noise_std: float) -> Aggregator:
        return Aggregator(shapes, bound=bound, noise_std=noise_std / 4)

    assert not audit_aggregator(Claim(2.0), make_aggregator=half, groups=96, canaries=32, seed=0).passed


def test_without_a_seed_every_audit_is_another() -> None:
    first, second = (play(Claim(2.0), make_aggregator=Aggregator, groups=4, canaries=8, seed=None) for _ in range(2))
    assert not np.array_equal(first.released, second.released)
    fixed, again = (play(Claim(2.0), make_aggregator=Aggregator, groups=4, canaries=8, seed=3) for _ in range(2))
    np.testing.assert_array_equal(fixed.released, again.released)


def test_canaries_are_louder_than_the_clip_and_the_real_server_clips_them() -> None:
    claim = Claim(1e4)  # next to no noise
    rounds = play(claim, make_aggregator=Aggregator, groups=6, canaries=8, seed=0)
    np.testing.assert_allclose(rounds.released[0], canaries.BOUND * rounds.included, atol=0.1)
    assert np.abs(rounds.quiet).max() < 0.1
    open_rounds = play(claim, make_aggregator=BUGS["clipping skipped for one client"], groups=6, canaries=8, seed=0)
    assert (open_rounds.released > 1000).sum(axis=(0, 2)).tolist() == [1] * 6


def test_a_canary_that_the_server_refuses_ends_the_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canaries, "LOUDNESS", math.inf)
    with pytest.raises(RunError, match="not-finite"):
        play(Claim(2.0), make_aggregator=Aggregator, groups=2, canaries=8, seed=0)


@pytest.mark.parametrize(("epsilon", "delta", "participations"), [(0.0, 1e-5, 1), (math.inf, 1e-5, 1), (1.0, 1.0, 1)])
def test_a_claim_that_says_nothing_is_refused(epsilon: float, delta: float, participations: int) -> None:
    with pytest.raises(ConfigError, match="positive epsilon"):
        Claim(epsilon, delta, participations)


def test_too_few_canaries_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2 groups of 4"):
        audit_aggregator(Claim(2.0), groups=1)


def test_guessing_by_hand() -> None:
    included = np.array([True, False, True, False])
    values = np.array([5.0, 6.0, 1.0, 0.0])  # the highest is wrong, the lowest right
    assert guess(values, included, highest=1, lowest=1) == Guesses(4, 2, 1)
    assert guess(values, included, highest=2, lowest=0) == Guesses(4, 2, 1)
    assert separation(np.array([3.0, 2.0, 3.0, 0.0]), included) == pytest.approx(2.0)
    assert separation(np.array([1.0, 0.0]), np.array([True, False])) == math.inf
    assert gaussian(math.inf, delta=1e-5) == MOST_EPSILON
    assert gaussian(-1.0, delta=1e-5) == 0.0


def test_twins_are_the_rounds_with_the_same_noise() -> None:
    noise = np.random.default_rng(0).normal(size=(1, 4, 6))
    noise[0, 3] = noise[0, 0]
    signal = np.zeros((1, 4, 3))
    signal[0, 0, 1] = 1.0
    found = minus_twin(Rounds(signal[0] > 0, noise[..., :3] + signal, noise[..., 3:]))
    np.testing.assert_allclose(found[0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(found[0, 3], [0, -1, 0], atol=1e-12)


# --- membership inference ----------------------------------------------------------------------------------


def test_without_noise_every_window_is_found() -> None:
    found = audit_membership(None, trials=5, seed=0)
    assert (found.rate, found.alarms, found.auc, found.ceiling, found.passed) == (1.0, 0, 1.0, 1.0, True)


def test_with_noise_the_attack_reaches_what_theory_allows_and_no_more() -> None:
    found = audit_membership(8.0, trials=70, seed=0)
    assert found.passed
    mu = Claim(8.0).mu
    assert found.ceiling == pytest.approx(stats.norm.cdf(stats.norm.ppf(0.01) + mu))
    assert found.auc == pytest.approx(stats.norm.cdf(mu / math.sqrt(2)), abs=0.09)  # three standard errors
    assert found.rate > 0.1


def test_a_trainer_with_a_quarter_of_the_noise_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(*arguments: object, step: Step, seed: int | None) -> AdapterState:
        return train_locally(*arguments, step=replace(step, noise_multiplier=step.noise_multiplier / 4), seed=seed)

    monkeypatch.setattr(membership, "train_locally", careless)
    assert not audit_membership(8.0, trials=30, seed=0).passed


def test_an_attack_above_the_ceiling_does_not_pass() -> None:
    assert MembershipAudit(2.0, 1e-5, trials=300, alarms=3, hits=12, auc=0.6, ceiling=0.034).passed
    assert not MembershipAudit(2.0, 1e-5, trials=300, alarms=3, hits=60, auc=0.6, ceiling=0.034).passed
    with pytest.raises(ConfigError, match="trials"):
        audit_membership(2.0, trials=1)


def test_intervals_and_areas_by_hand() -> None:
    assert clopper_pearson(0, 10, error=0.05) == (0.0, pytest.approx(1 - 0.025**0.1))
    assert clopper_pearson(10, 10, error=0.05) == (pytest.approx(0.025**0.1), 1.0)
    expected = stats.binomtest(7, 30).proportion_ci(0.95)
    assert clopper_pearson(7, 30, error=0.05) == pytest.approx((expected.low, expected.high))
    assert area_under_curve(np.array([2.0, 3.0]), np.array([1.0, 2.0])) == 0.875


# --- what people read --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["correct", "noise scaled for the mean, added to the sum"])
def test_the_report_says_whether_the_claim_stands(name: str) -> None:
    make = {"correct": Aggregator, **BUGS}[name]
    found = audit_aggregator(Claim(2.0), make_aggregator=make, groups=32, canaries=16, seed=1)
    attacks = [MembershipAudit(2.0, 1e-5, trials=300, alarms=3, hits=12, auc=0.6, ceiling=0.034)]
    report = json.loads(json.dumps(audit_report(found, attacks), allow_nan=False))
    assert report["passed"] == has_passed(found, attacks) == (name == "correct")
    assert report["aggregator"]["confidence"] == 1 - ERROR
    assert len(report["aggregator"]["attacks"]) == 5
    console = Console(width=100, file=io.StringIO())
    with console.capture() as shown:
        console.print(audit_tables(found, attacks))
    text = shown.get()
    assert ("not refuted" in text) == (name == "correct")
    assert "4.0%" in text
