"""Real vectors as integers mod 2^32, where sums of masks cancel exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.errors import ConfigError, ProtocolError

Residues = NDArray[np.uint32]

#: Steps to which the clip is resolved at most: finer than float32, whose vectors these are.
MOST_STEPS = 2**20
#: Half of the ring's positive side for the sum of all vectors; the other half is left for the noise.
STEPS_OF_SUM = 2**30
#: Standard deviation of the sum's noise in steps: ten of them stay far below 2^30, and numpy's Poisson sampler,
#: which compares logarithms of size variance * log(variance) in float64, is still right to about one per cent.
STEPS_OF_NOISE = 2**21


@dataclass(frozen=True)
class SecurePlan:
    """What both sides must know to add up vectors in the ring. Public; part of the manifest's settings.

    bound: L2 norm S that every vector is clipped to. scale: integer steps per unit, see `ring_scale`. quorum: least
    number of vectors that may be summed. variance: of the noise that one device adds to each entry, in steps
    squared, see `skellam.share_variance`; 0 without noise.
    """

    bound: float
    scale: float
    quorum: int
    variance: float = 0.0

    def __post_init__(self) -> None:
        sound = 0 < self.bound < math.inf and 0 < self.scale < math.inf and 0 <= self.variance < math.inf
        if not (sound and self.quorum >= 1):
            raise ConfigError(f"found {self}; expected finite positive bound and scale, quorum >= 1, variance >= 0")


def ring_scale(bound: float, *, cohort: int, noise: float = 0.0) -> float:
    """Integer steps per unit such that the sum of a whole cohort does not wrap.

    bound: L2 norm S of one vector. cohort: the planned number of vectors K. noise: standard deviation of the sum's
    noise divided by S. Steps of S: `min(2^20, 2^30 / K, 2^21 / noise)`. An entry of the sum is at most K S, so it
    takes at most 2^30 + K/2 steps, and ten standard deviations of noise at most 2^24.4 more: below 2^31. A sum that
    wraps all the same is wrong but costs no privacy, because reduction mod 2^32 follows the noise.
    """
    if not (0 < bound < math.inf and cohort >= 1 and 0 <= noise < math.inf):
        raise ConfigError(f"found bound {bound}, cohort {cohort}, noise {noise}; expected finite positive numbers")
    return min(MOST_STEPS, STEPS_OF_SUM / cohort, STEPS_OF_NOISE / noise if noise else math.inf) / bound


def encode(vector: NDArray[np.float64], *, bound: float, scale: float) -> NDArray[np.int64]:
    """The nearest integer steps (d,) of a vector (d,), clipped to the bound first.

    The clip is repeated here because the guarantee rests on it. In steps, and with every entry rounded by at most
    half a step, one vector has an L2 norm of at most `scale * bound + sqrt(d) / 2`, and a change of L2 norm E inside
    one moves it by at most `scale * E + sqrt(d)`.

    | vector | result |
    |---|---|
    | norm up to the bound | rounded |
    | longer | scaled to the bound, then rounded |
    | NaN or infinity | ProtocolError `failed` |
    """
    values = np.asarray(vector, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ProtocolError("found NaN or infinite entries in the vector to send", code="failed")
    norm = float(np.linalg.norm(values))
    factor = min(1.0, bound / norm) if norm > 0 else 1.0
    return np.rint(values * (factor * scale)).astype(np.int64)


def reduce(steps: NDArray[np.int64]) -> Residues:
    """Integers mod 2^32."""
    return (steps & 0xFFFFFFFF).astype(np.uint32)


def decode(residues: Residues, *, scale: float) -> NDArray[np.float64]:
    """Residues (d,) read between -2^31 and 2^31 - 1, in units again.

    A sum of n vectors that did not wrap is off by at most `n / (2 scale)` in each entry, noise apart.
    """
    return residues.astype(np.uint32).view(np.int32).astype(np.float64) / scale
