"""Lower bounds on epsilon from one run in which m canaries took part or not by independent fair coins.

An attacker who sees only what is released guesses r of the coins and abstains on the rest; v guesses are right. Under
a privacy claim many right guesses are unlikely, so they refute the claim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from shared.errors import PrivacyError
from shared.privacy.accounting import least

#: Relative precision to which the bounds are searched for.
PRECISION = 1e-4


@dataclass(frozen=True, slots=True)
class Guesses:
    """What an attack came to: `made` guesses about `canaries` coins, `right` of them right."""

    canaries: int
    made: int
    right: int

    def __post_init__(self) -> None:
        if not 0 <= self.right <= self.made <= self.canaries:
            raise PrivacyError(f"found {self}; expected 0 <= right <= made <= canaries")


def chance(guesses: Guesses, *, epsilon: float, delta: float) -> float:
    """Upper bound on the probability of so many right guesses, or more, under (epsilon, delta)-DP.

    Steinke, Nasr & Jagielski 2023, arXiv 2305.08846, Proposition 5.1 and Theorem 5.2: with
    `f(v) = P[Binomial(r, e^eps / (1 + e^eps)) >= v]` it is `f(v) + 2 m delta max_i (f(v - i) - f(v)) / i`.

    | guesses | result |
    |---|---|
    | none right | 1 |
    | delta = 0 | the binomial tail f(v), exact for randomised response |
    | all right, delta = 0 | (e^eps / (1 + e^eps))^r |
    """
    from scipy.stats import binom

    if guesses.right == 0:
        return 1.0
    accuracy = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(guesses.right - 1, guesses.made, accuracy))
    fewer = np.cumsum(binom.pmf(np.arange(guesses.right - 1, -1, -1), guesses.made, accuracy))  # f(v - i) - f(v)
    steepest = float(np.max(fewer / np.arange(1, guesses.right + 1)))
    return min(1.0, tail + 2 * guesses.canaries * delta * steepest)


def epsilon_bound(guesses: Guesses, *, delta: float, error: float) -> float:
    """Largest epsilon that the guesses refute at this delta, 0 if none: above the true one with chance <= `error`."""

    def is_possible(epsilon: float) -> bool:
        return chance(guesses, epsilon=epsilon, delta=delta) > error

    return 0.0 if is_possible(0.0) else least(is_possible, precision=PRECISION) * (1 - PRECISION)


def refutes_gaussian(guesses: Guesses, *, mu: float, error: float) -> bool:
    """Whether so many right guesses, or more, have a probability below `error` under Gaussian DP with this `mu`.

    Mahloujifar, Melis & Chaudhuri 2024, arXiv 2410.22235, for membership and the trade-off function of
    N(0, 1) against N(mu, 1). Let p_i be the probability of exactly i right guesses of r, `above_i` the sum of
    `p_j j / m` and `beside_i` that of `p_j (r - j) / m`, both over j >= i. Flipping one coin turns "i + 1 right, this
    one too" into "i right, this one wrong", so privacy demands
    `beside_i >= Phi(Phi^-1(above_(i + 1)) - mu)`. Starting with all of `error` at v, the recursion adds the least
    probability this needs below; if the total exceeds one, the hypothesis is refuted.

    | guesses | result |
    |---|---|
    | none made, or none right | False |
    | one made of one canary, right | error > Phi(mu / 2) |
    """
    from scipy.special import ndtr, ndtri

    if guesses.right == 0:
        return False
    above = error * guesses.right / guesses.canaries
    beside = error * (guesses.made - guesses.right) / guesses.canaries
    for count in range(guesses.right - 1, -1, -1):
        needed = max(beside, float(ndtr(ndtri(above) - mu)))
        above += count / (guesses.made - count) * (needed - beside)
        beside = needed
        if above + beside > guesses.made / guesses.canaries:
            return True
    return False


def mu_bound(guesses: Guesses, *, error: float) -> float:
    """Largest Gaussian-DP parameter mu that the guesses refute, 0 if none: too large with chance <= `error`."""

    def is_possible(mu: float) -> bool:
        return not refutes_gaussian(guesses, mu=mu, error=error)

    return 0.0 if is_possible(0.0) else least(is_possible, precision=PRECISION) * (1 - PRECISION)
