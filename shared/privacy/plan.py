"""A budget split over everything a device's data will flow into, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shared.errors import PrivacyError
from shared.privacy.accounting import Release, epsilon_of, least

PHASES = ("popularity", "prior", "train", "validate")


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """Noise multipliers z of one unit's releases, by phase, and what they add up to at the planned delta.

    0 for a phase that is not asked.
    """

    popularity: float
    train: float
    validate: float
    epsilon: float
    prior: float = 0.0


@dataclass(frozen=True, slots=True)
class NoisePlan:
    """What a device will be charged for over its life. A layer that is not protected is None.

    participations: training rounds one device may join. user_rate, user_steps: Poisson rate and number of rounds
    that the person's layer is priced with; 1 and 0 unless cohorts are Poisson sampled and that may be claimed.
    steps: integer steps of a whole reply's clip under secure aggregation, 0 for real numbers.
    """

    participations: int
    event: LayerPlan | None = None
    user: LayerPlan | None = None
    user_rate: float = 1.0
    user_steps: int = 0
    steps: float = 0.0


@dataclass(frozen=True)
class Demand:
    """What one unit's data will flow into.

    shares: part of the budget (of `sum steps / z^2`) for each phase; 0 for one that is not asked. steps, sample_rate:
    how often, and with which Poisson rate, the unit joins training. dimensions: entries of each phase's reply when
    integer Skellam noise is used, empty for Gaussian noise. grid: integer steps per sensitivity in that case.
    """

    unit: str
    shares: Mapping[str, float]
    steps: int
    sample_rate: float = 1.0
    dimensions: Mapping[str, int] = field(default_factory=dict)
    grid: float = 0.0

    def releases(self, scale: float) -> list[Release]:
        """All planned releases at a common noise scale."""
        return [self._release(phase, scale) for phase in PHASES if self.shares.get(phase, 0.0) > 0]

    def _release(self, phase: str, scale: float) -> Release:
        training = phase == "train"
        steps = max(1, self.steps) if training else 1
        z = scale * math.sqrt(steps / self.shares[phase])
        if self.dimensions:
            l2, l1 = lattice_sensitivity(self.unit, grid=self.grid, dimension=self.dimensions[phase])
            return Release(phase, z, 1.0, steps, self.unit, l2, l1)
        return Release(phase, z, self.sample_rate if training else 1.0, steps, self.unit)


def lattice_sensitivity(unit: str, *, grid: float, dimension: int) -> tuple[float, float]:
    """L2 and L1 sensitivity in integer steps of a vector rounded to the nearest integers.

    | unit | changes by | L2 after rounding |
    |---|---|---|
    | user | a whole vector of at most `grid` steps comes or goes | grid + sqrt(d) / 2 |
    | event | a vector changes by at most `grid` steps | grid + sqrt(d) |

    Each entry is rounded by at most half a step. L1 <= min(sqrt(d) L2, L2^2), the latter because steps are whole.
    """
    l2 = grid + math.sqrt(dimension) * (0.5 if unit == "user" else 1.0)
    return l2, max(l2, min(math.sqrt(dimension) * l2, l2**2))


def plan_layer(demand: Demand, *, epsilon: float, delta: float) -> LayerPlan:
    """The least noise with which all of a unit's releases cost at most epsilon at delta.

    PrivacyError when no noise meets them.
    """

    def affordable(scale: float) -> bool:
        return epsilon_of(demand.releases(scale), delta=delta) <= epsilon

    exact = demand.sample_rate == 1.0 and not demand.dimensions
    releases = demand.releases(least(affordable, precision=1e-9 if exact else 1e-3))
    return layer_of(releases, epsilon=epsilon_of(releases, delta=delta))


def price_layer(demand: Demand, *, train_multiplier: float, delta: float) -> LayerPlan:
    """What a chosen training noise costs when the other phases keep their shares of the budget.

    PrivacyError for a multiplier that is not positive, or when there is no training.
    """
    if not train_multiplier > 0:
        raise PrivacyError(f"found noise multiplier {train_multiplier}; expected a positive one")
    if not demand.shares["train"]:
        raise PrivacyError("found a noise multiplier for training, and no training rounds; leave it out")
    scale = train_multiplier / math.sqrt(max(1, demand.steps) / demand.shares["train"])
    releases = demand.releases(scale)
    return layer_of(releases, epsilon=epsilon_of(releases, delta=delta))


def layer_of(releases: Sequence[Release], *, epsilon: float) -> LayerPlan:
    """The plan that these releases, one a phase, carry out."""
    multipliers = {release.phase: release.noise_multiplier for release in releases}
    return LayerPlan(**{phase: multipliers.get(phase, 0.0) for phase in PHASES}, epsilon=epsilon)
