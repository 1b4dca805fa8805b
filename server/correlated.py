"""Noise that is anticorrelated between rounds, so that most of it cancels in the sum of many rounds.

The released sequence is `x + C^-1 z` with white noise z and C the lower triangular Toeplitz matrix whose coefficients
are the first `bands` ones of the square root of the prefix-sum matrix, `c_0 = 1, c_k = c_{k-1} (2k - 1) / (2k)`
(banded square root factorisation, Kalinin & Lampert 2024, arXiv 2405.13763; matrix mechanism for learning: Denisov et
al. 2022, arXiv 2202.08312).

Formal guarantee: when each device takes part at most k times and at least `bands` rounds apart, the columns of C that
it touches have disjoint supports, so the whole sequence is one Gaussian release with sensitivity
`S sqrt(k sum c_j^2)` under white noise of standard deviation `std`. White noise of `z S sqrt(sum c_j^2)` is
therefore charged like k independent releases with noise multiplier z, also when later replies depend on earlier
releases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def band_coefficients(bands: int) -> NDArray[np.float64]:
    """The first coefficients of the square root of the prefix-sum matrix, float64 (bands,)."""
    steps = np.arange(1, bands)
    return np.concatenate([[1.0], np.cumprod((2 * steps - 1) / (2 * steps))])


class Correlation:
    """The state of the noise: the last `bands - 1` noise vectors, oldest first, each float64 (d,) at unit scale.

    They are as secret as the updates: whoever has them can subtract the noise.
    """

    def __init__(self, bands: int, past: Sequence[NDArray[np.float64]] = ()) -> None:
        self.coefficients = band_coefficients(bands)
        self.past = list(past)

    @property
    def factor(self) -> float:
        """How much larger the white noise must be than independent noise: sqrt(sum c_j^2)."""
        return math.sqrt(float(np.sum(self.coefficients**2)))

    def colour(self, white: NDArray[np.float64]) -> NDArray[np.float64]:
        """The next noise vector `y_t = z_t - sum_j c_j y_(t-j)`, scaled by `factor`; remembers it."""
        scaled = white * self.factor
        for coefficient, earlier in zip(self.coefficients[1:], reversed(self.past), strict=False):
            scaled = scaled - coefficient * earlier
        self.past = [*self.past, scaled][1 - len(self.coefficients) :] if len(self.coefficients) > 1 else []
        return scaled
