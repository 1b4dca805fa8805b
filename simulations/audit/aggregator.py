"""One run of the real aggregator with canaries, and what it says about the claimed epsilon."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.aggregation import Aggregator
from shared.errors import ConfigError
from shared.privacy.accounting import gaussian_epsilon
from simulations.audit.bounds import Guesses, epsilon_bound, mu_bound
from simulations.audit.canaries import Claim, MakeAggregator, Rounds, play

#: Probability that any of an audit's lower bounds is too high.
ERROR = 0.05
#: Estimates stop here: noise this small hides nothing.
MOST_EPSILON = 1000.0

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Attack:
    """Guesses of one kind, and the two lower bounds on epsilon that they give.

    lower: for any (epsilon, delta) mechanism. lower_gaussian: for Gaussian ones, like the one that is audited.
    """

    name: str
    guesses: Guesses
    lower: float
    lower_gaussian: float


@dataclass(frozen=True)
class AggregatorAudit:
    """What an audit found. All lower bounds together hold with a probability of 1 - ERROR.

    canaries: number of coins. rounds: number of released sums. estimate: epsilon of a Gaussian mechanism with the
    measured distance between canaries that took part and canaries that did not, in standard deviations of the latter.
    """

    claim: Claim
    canaries: int
    rounds: int
    attacks: tuple[Attack, ...]
    estimate: float

    @property
    def lower(self) -> float:
        """Lower bound on epsilon without an assumption on the mechanism (arXiv 2305.08846)."""
        return max(attack.lower for attack in self.attacks)

    @property
    def lower_gaussian(self) -> float:
        """Lower bound on epsilon for a Gaussian mechanism (arXiv 2410.22235)."""
        return max(attack.lower_gaussian for attack in self.attacks)

    @property
    def best(self) -> Attack:
        """The attack with the highest bound."""
        return max(self.attacks, key=lambda attack: max(attack.lower, attack.lower_gaussian))

    @property
    def passed(self) -> bool:
        """Whether no lower bound exceeds the claim."""
        return max(self.lower, self.lower_gaussian) <= self.claim.epsilon


def audit_aggregator(
    claim: Claim,
    *,
    make_aggregator: MakeAggregator = Aggregator,
    groups: int = 384,
    canaries: int = 16,
    seed: int | None = None,
) -> AggregatorAudit:
    """Run rounds of canaries through the aggregator with the noise that the claim asks for, and attack the releases.

    groups: of `canaries` canaries each; a group has `claim.participations` rounds of its own. seed: a fixed run, for
    tests; None draws coins and noise from the operating system.

    Formal guarantee: an aggregator that keeps the claim fails with a probability of at most ERROR, which is divided
    evenly over the attacks and the two bounds of each. Which guesses an attack makes is fixed before the run; they
    depend on the released sums only.

    | attack | guesses | made for |
    |---|---|---|
    | loudest | the highest scores took part, one per group | one device a round that escapes the clip |
    | extremes | the highest and the lowest 1/16 | too little noise |
    | quarters | the highest and the lowest 1/4 | the same, when hardly a guess is wrong |
    | twins | as extremes and quarters, minus the most similar release | noise that was drawn before |

    Raises ConfigError when there are too few canaries.
    """
    if groups < 2 or canaries < 4:
        raise ConfigError(f"found {groups} groups of {canaries} canaries; expected at least 2 groups of 4")
    rounds = play(claim, make_aggregator=make_aggregator, groups=groups, canaries=canaries, seed=seed)
    plain, twins = scores(rounds.released), scores(minus_twin(rounds))
    few, many = plain.size // 16, plain.size // 4
    plan = [
        ("loudest", plain, groups, 0),
        ("extremes", plain, few, few),
        ("quarters", plain, many, many),
        ("twins, extremes", twins, few, few),
        ("twins, quarters", twins, many, many),
    ]
    error = ERROR / (2 * len(plan))
    attacks = [
        attack(name, guess(values, rounds.included.ravel(), highest=highest, lowest=lowest), claim=claim, error=error)
        for name, values, highest, lowest in plan
    ]
    mu = max(separation(values, rounds.included.ravel()) for values in (plain, twins))
    return AggregatorAudit(
        claim, plain.size, groups * claim.participations, tuple(attacks), gaussian(mu, delta=claim.delta)
    )


def scores(released: NDArray[np.float64]) -> Scores:
    """Each canary's coordinate, summed over its rounds; from (P, G, n) to (G n,)."""
    return np.asarray(released.sum(axis=0).ravel())


def minus_twin(rounds: Rounds) -> NDArray[np.float64]:
    """Each release minus the one whose quiet coordinates are most like its own; (P, G, n).

    Noise that went into both is gone; noise of its own has twice the variance.
    """
    quiet = rounds.quiet.reshape(-1, rounds.quiet.shape[-1])  # (P G, n)
    squares = (quiet**2).sum(axis=1)
    distances = squares[:, None] + squares[None, :] - 2 * quiet @ quiet.T
    np.fill_diagonal(distances, np.inf)
    released = rounds.released.reshape(quiet.shape)
    return np.asarray((released - released[distances.argmin(axis=1)]).reshape(rounds.released.shape))


def guess(values: Scores, included: NDArray[np.bool_], *, highest: int, lowest: int) -> Guesses:
    """Say "took part" of the highest scores and "did not" of the lowest, and count the right ones."""
    order = np.argsort(values, kind="stable")
    right = int(included[order[len(order) - highest :]].sum()) + int((~included[order[:lowest]]).sum())
    return Guesses(len(values), highest + lowest, right)


def attack(name: str, guesses: Guesses, *, claim: Claim, error: float) -> Attack:
    """Both bounds, each of which is too high with a probability of at most `error`."""
    lower = epsilon_bound(guesses, delta=claim.delta, error=error)
    return Attack(name, guesses, lower, gaussian(mu_bound(guesses, error=error), delta=claim.delta))


def separation(values: Scores, included: NDArray[np.bool_]) -> float:
    """Distance of the mean scores over the standard deviation without the canary; infinite without noise."""
    with_canary, without = values[included], values[~included]
    spread = float(without.std())
    distance = float(with_canary.mean() - without.mean())
    return distance / spread if spread > 0 else math.inf


def gaussian(mu: float, *, delta: float) -> float:
    """Epsilon for a measured mu: 0 for none, at most MOST_EPSILON."""
    if mu <= 0:
        return 0.0
    return min(MOST_EPSILON, gaussian_epsilon(min(mu, math.sqrt(2 * MOST_EPSILON)), delta=delta))
