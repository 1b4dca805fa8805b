"""From releases to epsilon, and from a budget to noise multipliers.

A `Release` says what happened; functions here say what it costs. Adjacency is add/remove one unit (one window
of events under privacy = event), and every release has L2 sensitivity `clip` with Gaussian noise of standard
deviation `noise_multiplier * clip`.

When nothing is subsampled the composition of Gaussian releases is one Gaussian with
`mu = sqrt(sum steps / z^2)`, and epsilon has a closed form (Balle & Wang 2018, arXiv 1805.06530; Dong, Roth &
Su 2019, arXiv 1905.02383). With a Poisson sampling rate below 1 the price comes from Opacus's RDP accountant.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from shared.config import Privacy
from shared.errors import PrivacyError


@dataclass(frozen=True, slots=True)
class Release:
    """One thing a device's data flowed into.

    phase: popularity, train or validate. noise_multiplier: z of the protected quantity (the sum under trust =
    aggregate, the reply under trust = local). sample_rate: Poisson rate q of windows. steps: how many times.
    """

    phase: str
    noise_multiplier: float
    sample_rate: float = 1.0
    steps: int = 1

    def __post_init__(self) -> None:
        ok = self.noise_multiplier > 0 and math.isfinite(self.noise_multiplier)
        if not (ok and 0 < self.sample_rate <= 1 and self.steps >= 1):
            raise PrivacyError(f"found {self}; expected a positive finite noise multiplier, 0 < q <= 1, steps >= 1")


@dataclass(frozen=True, slots=True)
class NoisePlan:
    """Noise multipliers that spend a budget over a device's life.

    participations: training rounds one device may join. epsilon: what all planned releases add up to at
    delta.
    """

    popularity: float
    train: float
    validate: float
    participations: int
    epsilon: float


def epsilon_of(releases: Sequence[Release], *, delta: float) -> float:
    """Smallest epsilon such that the releases together are (epsilon, delta)-DP.

    | releases | result |
    |---|---|
    | none | 0 |
    | all with q = 1 | closed form, exact for the composed Gaussian |
    | any with q < 1 | Opacus RDP bound, an upper bound |
    """
    if not 0 < delta < 1:
        raise PrivacyError(f"found delta = {delta}; expected 0 < delta < 1")
    return _epsilon(tuple(releases), delta)


@lru_cache(maxsize=4096)
def _epsilon(releases: tuple[Release, ...], delta: float) -> float:
    if not releases:
        return 0.0
    if all(release.sample_rate == 1.0 for release in releases):
        mu = math.sqrt(sum(release.steps / release.noise_multiplier**2 for release in releases))
        return gaussian_epsilon(mu, delta=delta)
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(r.noise_multiplier, r.sample_rate, r.steps) for r in releases]
    with warnings.catch_warnings():  # at an outermost order the bound is looser, and still a bound
        warnings.filterwarnings("ignore", message="Optimal order is the", category=UserWarning)
        return max(0.0, float(accountant.get_epsilon(delta=delta, alphas=_ORDERS)))


#: Renyi orders tried; wide enough that the best one is inside for epsilon between 0.01 and 1000.
_ORDERS = [*(1 + x / 10 for x in range(1, 20)), *(3 + x / 4 for x in range(32)), *range(11, 64)] + [
    2.0**k for k in range(6, 14)
]


def gaussian_epsilon(mu: float, *, delta: float) -> float:
    """Epsilon of a Gaussian release with sensitivity over noise `mu`; 0 where delta alone covers it."""
    if not mu > 0 or not math.isfinite(mu):
        raise PrivacyError(f"found mu = {mu}; expected a positive finite sensitivity-to-noise ratio")
    if gaussian_delta(mu, epsilon=0.0) <= delta:
        return 0.0
    return _bisect(lambda value: gaussian_delta(mu, epsilon=value) <= delta, start=1.0)


def gaussian_delta(mu: float, *, epsilon: float) -> float:
    """Delta(epsilon) of the Gaussian mechanism, `Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu)`."""
    from scipy.special import log_ndtr, ndtr

    tail = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    return float(ndtr(mu / 2 - epsilon / mu)) - math.exp(min(tail, 0.0))


def plan_noise(privacy: Privacy, *, participations: int, local_steps: int, sample_rate: float) -> NoisePlan:
    """Split the budget: popularity and validation get their shares of it, training rounds the rest.

    Shares are of `sum steps / z^2`, the quantity that adds up. The common scale is found by bisection so that
    all planned releases together cost at most `privacy.epsilon` at `privacy.delta`.
    """
    training_share = 1.0 - privacy.popularity_share - privacy.validation_share
    steps = max(1, participations * local_steps)

    def at(scale: float) -> tuple[Release, Release, Release]:
        return (
            Release("popularity", scale / math.sqrt(privacy.popularity_share)),
            Release("train", scale * math.sqrt(steps / training_share), sample_rate, steps),
            Release("validate", scale / math.sqrt(privacy.validation_share)),
        )

    def affordable(scale: float) -> bool:
        return epsilon_of(at(scale), delta=privacy.delta) <= privacy.epsilon

    precision = 1e-9 if sample_rate == 1.0 else 1e-4  # one RDP price takes a tenth of a second
    popularity, train, validate = releases = at(_bisect(affordable, start=1.0, precision=precision))
    return NoisePlan(
        popularity=popularity.noise_multiplier,
        train=train.noise_multiplier,
        validate=validate.noise_multiplier,
        participations=participations,
        epsilon=epsilon_of(releases, delta=privacy.delta),
    )


def _bisect(holds: Callable[[float], bool], *, start: float, precision: float = 1e-9) -> float:
    """Smallest x > 0, from above to a relative precision, where a condition that stays true holds."""
    low, high = 0.0, start
    while not holds(high):
        low, high = high, high * 2
        if high > 1e12:
            raise PrivacyError("no noise level meets this epsilon and delta; raise one of them")
    while high - low > precision * high:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
