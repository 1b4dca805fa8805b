"""Aggregators with one privacy bug each, to show that the audit catches them. Nothing else may use them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from server.aggregation import Aggregator
from shared.adapter import AdapterState
from simulations.audit.canaries import EXAMPLES, MakeAggregator


class DeclaredWeights(Aggregator):
    """Weighs each clipped update by the number of examples that its sender declares."""

    def contribution(self, reply: AdapterState) -> NDArray[np.float64]:
        """The clipped update, multiplied."""
        return super().contribution(reply) * float(reply.arrays[EXAMPLES][0])


class NoiseOfTheMean(Aggregator):
    """Adds noise that is right for the mean over a cohort to the sum."""

    def noise(self, size: int, generator: np.random.Generator) -> NDArray[np.float64]:
        """Too little by a factor of the cohort, half as many as there are canaries in a round."""
        return super().noise(size, generator) / (size // 4)


class FirstUnclipped(Aggregator):
    """Forgets to clip the first reply of a round."""

    def add_up(self, replies: Iterable[AdapterState]) -> NDArray[np.float64] | None:
        """The first reply as it came, and the rest as it should be."""
        waiting = iter(replies)
        first = next(waiting, None)
        if first is None:
            return None
        rest = super().add_up(waiting)
        whole = first.pack().astype(np.float64)
        return whole if rest is None else whole + rest


class NoiseTwice(Aggregator):
    """Draws noise for every second sum only and uses it for two."""

    _kept: NDArray[np.float64] | None = None

    def noise(self, size: int, generator: np.random.Generator) -> NDArray[np.float64]:
        """New noise, or that of the round before."""
        kept, self._kept = self._kept, None
        if kept is None:
            kept = self._kept = super().noise(size, generator)
        return kept


#: What the table calls them.
BUGS: dict[str, MakeAggregator] = {
    "weights by client-declared counts": DeclaredWeights,
    "noise scaled for the mean, added to the sum": NoiseOfTheMean,
    "clipping skipped for one client": FirstUnclipped,
    "the same noise drawn twice": NoiseTwice,
}
