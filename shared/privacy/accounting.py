"""From releases to epsilon, and from a budget to noise multipliers.

A `Release` says what happened; functions here say what it costs. Adjacency is add/remove one unit: one window of
events, or everything one person did. A release with L2 sensitivity S carries noise of standard deviation
`noise_multiplier * S`.

Gaussian releases that are not subsampled compose to one Gaussian with `mu = sqrt(sum steps / z^2)`, and epsilon has
a closed form (Balle & Wang 2018, arXiv 1805.06530; Dong, Roth & Su 2019, arXiv 1905.02383). Poisson subsampled ones
are priced by dp_accounting's privacy loss distributions (Doroshenko et al. 2022, arXiv 2207.04380), and integer
Skellam noise, which secure aggregation needs, by Renyi bounds (Agarwal et al. 2021, arXiv 2110.04995).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version

from shared.errors import PrivacyError
from shared.privacy.skellam import skellam_rdp

UNITS = ("event", "user")
#: Grid of privacy losses, rounded up; ten times finer changes epsilon by a part in 100,000 and takes ten times longer.
GRAIN = 1e-3


@dataclass(frozen=True, slots=True)
class Release:
    """One thing a device's data flowed into.

    phase: popularity, train or validate. noise_multiplier: z of the protected quantity (the sum under trust =
    aggregate, the reply under trust = local). sample_rate: Poisson rate q with which the unit joins a step.
    steps: how many times. unit: event or user. l2, l1: sensitivities of integer Skellam noise, 0 for Gaussian noise.
    """

    phase: str
    noise_multiplier: float
    sample_rate: float = 1.0
    steps: int = 1
    unit: str = "event"
    l2: float = 0.0
    l1: float = 0.0

    def __post_init__(self) -> None:
        ok = self.noise_multiplier > 0 and math.isfinite(self.noise_multiplier)
        if not (ok and 0 < self.sample_rate <= 1 and self.steps >= 1):
            raise PrivacyError(f"found {self}; expected a positive finite noise multiplier, 0 < q <= 1, steps >= 1")
        if self.unit not in UNITS:
            raise PrivacyError(f"found unit {self.unit!r}; expected event or user")
        if self.l2 and not (self.l2 > 0 and self.l1 >= self.l2 and self.sample_rate == 1.0):
            raise PrivacyError(f"found {self}; Skellam noise needs l1 >= l2 > 0 and no subsampling")


def epsilon_of(releases: Sequence[Release], *, delta: float) -> float:
    """Smallest known epsilon such that the releases together are (epsilon, delta)-DP for one unit.

    | releases | result |
    |---|---|
    | none | 0 |
    | Gaussian, all with q = 1 | closed form, exact for the composed Gaussian |
    | Gaussian, any with q < 1 | privacy loss distribution, an upper bound |
    | any with Skellam noise | Renyi bound without amplification, an upper bound |
    | of two units | PrivacyError: an event and a person are priced apart |
    """
    if not 0 < delta < 1:
        raise PrivacyError(f"found delta = {delta}; expected 0 < delta < 1")
    if len({release.unit for release in releases}) > 1:
        raise PrivacyError("found releases for events and for whole people; expected one unit, priced apart")
    counted: dict[tuple[float, ...], int] = {}
    for release in releases:
        kind = (release.noise_multiplier, release.sample_rate, release.l2, release.l1)
        counted[kind] = counted.get(kind, 0) + release.steps
    return _epsilon(tuple(sorted(counted.items())), delta)


def accountant_of(releases: Sequence[Release]) -> str:
    """What `epsilon_of` prices these with, by name and version."""
    if any(release.l2 for release in releases):
        return f"Renyi bound of the Skellam mechanism (arXiv 2110.04995), dp_accounting {version('dp-accounting')}"
    if any(release.sample_rate < 1 for release in releases):
        return f"privacy loss distributions, dp_accounting {version('dp-accounting')}"
    return "exact Gaussian composition (arXiv 1805.06530)"


@lru_cache(maxsize=4096)
def _epsilon(counted: tuple[tuple[tuple[float, ...], int], ...], delta: float) -> float:
    if not counted:
        return 0.0
    if any(l2 for (_, _, l2, _), _ in counted):
        return _renyi_epsilon(counted, delta)
    if all(q == 1.0 for (_, q, _, _), _ in counted):
        mu = math.sqrt(sum(steps / z**2 for (z, _, _, _), steps in counted))
        return gaussian_epsilon(mu, delta=delta)
    return _subsampled_epsilon(counted, delta)


def _subsampled_epsilon(counted: tuple[tuple[tuple[float, ...], int], ...], delta: float) -> float:
    from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent, SelfComposedDpEvent
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=GRAIN)
    for (z, q, _, _), steps in counted:
        event = GaussianDpEvent(z) if q == 1.0 else PoissonSampledDpEvent(q, GaussianDpEvent(z))
        accountant.compose(SelfComposedDpEvent(event, steps))
    return float(accountant.get_epsilon(delta))


#: Renyi orders tried for Skellam noise; wide enough that the best one is inside for epsilon between 0.01 and 1000.
_ORDERS = (*range(2, 64), *(2**k for k in range(6, 14)))


def _renyi_epsilon(counted: tuple[tuple[tuple[float, ...], int], ...], delta: float) -> float:
    from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

    # Subsampled Gaussians are priced as if they were not: sampling only lowers a Renyi divergence.
    costs = [
        sum(
            steps * (skellam_rdp(order, l2=l2, l1=l1, variance=(z * l2) ** 2) if l2 else order / (2 * z**2))
            for (z, _, l2, l1), steps in counted
        )
        for order in _ORDERS
    ]
    return max(0.0, float(compute_epsilon(_ORDERS, costs, delta)[0]))


def gaussian_epsilon(mu: float, *, delta: float) -> float:
    """Epsilon of a Gaussian release with sensitivity over noise `mu`; 0 where delta alone covers it."""
    if not mu > 0 or not math.isfinite(mu):
        raise PrivacyError(f"found mu = {mu}; expected a positive finite sensitivity-to-noise ratio")
    if gaussian_delta(mu, epsilon=0.0) <= delta:
        return 0.0
    return least(lambda value: gaussian_delta(mu, epsilon=value) <= delta)


def gaussian_delta(mu: float, *, epsilon: float) -> float:
    """Delta(epsilon) of the Gaussian mechanism, `Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu)`."""
    from scipy.special import log_ndtr, ndtr

    tail = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    return float(ndtr(mu / 2 - epsilon / mu)) - math.exp(min(tail, 0.0))


def least(holds: Callable[[float], bool], *, start: float = 1.0, precision: float = 1e-9) -> float:
    """Smallest x > 0, from above to a relative precision, where a condition that stays true holds.

    PrivacyError when it does not hold up to 1e12.
    """
    low, high = 0.0, start
    while not holds(high):
        low, high = high, high * 2
        if high > 1e12:
            raise PrivacyError("no noise level meets this epsilon and delta; raise one of them")
    while high - low > precision * high:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
