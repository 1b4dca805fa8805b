"""Exploration: Thompson sampling on a few leading directions of the item vectors, learned from feedback on the device.

    reward ~ N(<theta, x_i>, 1),   theta ~ N(0, I / ridge)  before any feedback

so after feedback theta ~ N(A^-1 b, A^-1) with A = ridge I + sum x x^T and b = sum reward x. A slate is explored with
one draw of theta: what is unknown gets a large random bonus, what feedback has settled gets its mean (Thompson 1933;
Agrawal & Goyal, ICML 2013, for the linear case). A and b are this person's and stay on the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from client.scale import Floats
from client.store import History
from shared.errors import ConfigError
from shared.schema import POSITIVE_KINDS, Event, EventKind

DIRECTIONS = 8
#: Events' worth of evidence that a person has no taste in any direction.
RIDGE = 4.0
_REWARDS = np.array(
    [1.0 if kind in POSITIVE_KINDS else -1.0 if kind is EventKind.SKIP else 0.0 for kind in sorted(EventKind)]
)


def leading_directions(vectors: NDArray[np.float32], *, count: int = DIRECTIONS) -> NDArray[np.float32]:
    """Coordinates of items along the leading principal directions, float32 (N, p), root-mean-square length 1.

    vectors: (N, d). p is `count`, cut to d. Public: nothing but the catalogue is in it.
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    _, directions = np.linalg.eigh(centred.T @ centred)
    found = centred @ directions[:, ::-1][:, :count]  # (N, p)
    length = float(np.sqrt((found**2).sum(axis=1).mean()))
    return (found / max(length, 1e-12)).astype(np.float32)


@dataclass(frozen=True)
class Taste:
    """What feedback has taught so far: A, float64 (p, p), and b, float64 (p,)."""

    precision: Floats
    moment: Floats

    @classmethod
    def unknown(cls, directions: int = DIRECTIONS, *, ridge: float = RIDGE) -> Taste:
        """Nothing learned yet. ConfigError unless ridge is above 0."""
        if not ridge > 0:
            raise ConfigError(f"found ridge = {ridge}; expected a number above 0")
        return cls(ridge * np.eye(directions), np.zeros(directions))

    def learn(self, features: NDArray[np.floating], rewards: ArrayLike) -> Taste:
        """The taste after more feedback; the order of feedback does not matter.

        features: (n, p), of the items shown. rewards: (n,), -1 to 1.
        """
        rows, values = np.asarray(features, dtype=np.float64), np.asarray(rewards, dtype=np.float64)
        return Taste(self.precision + rows.T @ rows, self.moment + rows.T @ values)

    def learn_from(self, history: History, features: NDArray[np.floating]) -> Taste:
        """The taste after a history's events: 1 for what was wanted, -1 for skips, 0 for what was only shown."""
        return self.learn(features[history.items], _REWARDS[history.kinds])

    def learn_event(self, event: Event, features: NDArray[np.floating]) -> Taste:
        """The taste after one more event."""
        return self.learn(features[[event.item]], _REWARDS[[int(event.kind)]])

    @property
    def mean(self) -> Floats:
        """Posterior mean of theta, float64 (p,)."""
        return np.linalg.solve(self.precision, self.moment).astype(np.float64)

    def draw(self, seed: int) -> Floats:
        """One draw of theta from the posterior, float64 (p,); the same for the same seed."""
        factor = np.linalg.cholesky(self.precision)  # A = F F^T, so F^-T z has covariance A^-1
        noise = np.random.default_rng(seed).standard_normal(len(self.moment))
        return self.mean + np.linalg.solve(factor.T, noise)


@dataclass(frozen=True)
class Explorer:
    """A draw of the taste, ready to score items. features: (N, p), from `leading_directions`. theta: (p,)."""

    features: NDArray[np.float32]
    theta: Floats

    @classmethod
    def drawn(cls, features: NDArray[np.float32], taste: Taste, *, seed: int) -> Explorer:
        """Draw once; one seed for one slate, so that a slate can be made again."""
        return cls(features, taste.draw(seed))

    def bonus(self, items: NDArray[np.int64]) -> Floats:
        """What the draw expects of each item, float64 (n,)."""
        return self.features[items].astype(np.float64) @ self.theta
