"""The server's optimiser: turns a mean update into the next adapter (Reddi et al. 2021, arXiv 2003.00295)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shared.adapter import AdapterState
from shared.sections import Federation

SECOND_MOMENT_DECAY = 0.99
EPSILON = 1e-8


def schedule(federation: Federation, number: int) -> float:
    """What the server's step size is multiplied with in round 1, 2, …"""
    if not federation.learning_rate_decay:
        return 1.0
    return max(0.05, 1.0 - (number - 1) / federation.rounds)


@dataclass
class ServerOptimiser:
    """FedAvg (`sgd`: the mean update is applied as it is, times the rate) or FedAdam with bias correction.

    Moments and step counts are kept per parameter, because a rule like `alternate` moves only some each round.
    """

    kind: str
    rate: float
    momentum: float
    anchor: float = 0.0
    first: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    second: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_config(cls, federation: Federation) -> ServerOptimiser:
        """A fresh optimiser."""
        return cls(
            federation.server_optimizer,
            federation.server_learning_rate,
            federation.server_momentum,
            anchor=federation.anchor,
        )

    def apply(
        self, state: AdapterState, update: AdapterState, *, factor: float = 1.0, start: AdapterState | None = None
    ) -> AdapterState:
        """The next state. factor: schedule value the learning rate is multiplied with.

        start: what the run started from. The whole state then goes the part `anchor * factor` of the way back there,
        so that it unlearns less of what it knew (L2-SP, Li et al., ICML 2018; apart from the gradient's step, like
        Loshchilov & Hutter, ICLR 2019). It reads nothing but released numbers, so it costs no privacy.

        Raises AdapterError when the update has names or shapes that the state has not.
        """
        state.replace(update)  # nothing may broadcast
        moved = {
            name: state.arrays[name] + np.float32(self.rate * factor) * self._direction(name, delta)
            for name, delta in update.arrays.items()
        }
        state = state.replace(AdapterState(moved))
        return state if start is None or not self.anchor else state + (start - state) * (self.anchor * factor)

    def _direction(self, name: str, delta: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.kind == "sgd":
            return delta
        step = self.steps[name] = self.steps.get(name, 0) + 1
        zero = np.zeros_like(delta)
        m = self.momentum * self.first.get(name, zero) + (1 - self.momentum) * delta
        v = SECOND_MOMENT_DECAY * self.second.get(name, zero) + (1 - SECOND_MOMENT_DECAY) * delta**2
        self.first[name], self.second[name] = m.astype(np.float32), v.astype(np.float32)
        corrected_m = m / (1 - self.momentum**step)
        corrected_v = v / (1 - SECOND_MOMENT_DECAY**step)
        return (corrected_m / (np.sqrt(corrected_v) + EPSILON)).astype(np.float32)

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """Moments as flat named arrays, for a checkpoint."""
        pairs = (("first", self.first), ("second", self.second))
        return {f"{prefix}/{name}": array for prefix, table in pairs for name, array in table.items()}

    def restore(self, arrays: Mapping[str, NDArray[np.float32]], steps: Mapping[str, int]) -> None:
        """Inverse of `to_arrays`."""
        for prefix, table in (("first", self.first), ("second", self.second)):
            table.clear()
            for key, array in arrays.items():
                kind, _, name = key.partition("/")
                if kind == prefix:
                    table[name] = array
        self.steps = dict(steps)
