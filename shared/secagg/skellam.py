"""Integer noise in shares: the sum of Skellam variables is a Skellam variable, so devices can make it together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared.errors import PrivacyError

#: numpy's Poisson sampler is right to one per cent up to a variance of 2^42; far above, its results are coarse.
MOST_VARIANCE = 2.0**44


def share_variance(std: float, *, quorum: int) -> float:
    """Variance of one device's share when the sum of at least `quorum` shares needs standard deviation `std`.

    Shares are sized for the fewest survivors that will ever be summed. More survivors mean more noise, never less, so
    drop-outs do not weaken epsilon. std: noise multiplier times L2 sensitivity, in integer steps.
    """
    if not std >= 0 or quorum < 1:
        raise PrivacyError(f"found std {std}, quorum {quorum}; expected std >= 0 and quorum >= 1")
    if std**2 / quorum > MOST_VARIANCE:
        raise PrivacyError(
            f"found noise of {std:.3g} steps, which no generator here draws exactly; use a smaller scale"
        )
    return std**2 / quorum


def skellam_noise(size: int, *, variance: float, rng: np.random.Generator | None = None) -> NDArray[np.int64]:
    """Independent Skellam variables (size,) of mean 0: differences of two Poisson variables of half the variance.

    rng: a simulation's seeded generator; without one numpy's PCG64 is seeded by the operating system. Agarwal, Kairouz
    & Liu 2021, arXiv 2110.04995.
    """
    if variance == 0:
        return np.zeros(size, dtype=np.int64)
    rng = rng or np.random.default_rng()
    return rng.poisson(variance / 2, size) - rng.poisson(variance / 2, size)
