"""The personal part as the service holds it: learned from the person's own events, kept in one private file.

Learned anew when an adapter comes and when the person switches it on; see `client.personal`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from client.engine import Engine, Parts
from client.journal import Journal
from client.profile import Profile
from shared.artifacts import load_arrays, save_arrays

#: Newest events that weights are learned from at most; several windows.
NEWEST = 1024
NAME = "weights"


class Weights:
    """A person's weights of the parts of a score, None while there are none."""

    def __init__(self, profile: Profile) -> None:
        self._path = profile.personal
        self.values: NDArray[np.float32] | None = load_arrays(self._path)[NAME] if self._path.exists() else None

    def learn(self, engine: Engine, journal: Journal) -> None:
        """Learn them from the newest events and keep them. An engine that cannot learn leaves them as they are."""
        found = engine.own_weights(journal.newest(NEWEST))
        if found is not None:
            save_arrays(self._path, {NAME: found}, private=True)
            self.values = found

    def forget(self) -> None:
        """Have none; the file is removed by `Profile.forget`."""
        self.values = None


def mixed(parts: Parts, weights: NDArray[np.float32], popularity: NDArray[np.float32]) -> Parts:
    """The parts of a score with a person's weights (3,), and one more for their taste. popularity: log, (N,)."""
    linear, expected, taste = (np.float32(value) for value in weights)
    own = {name: (expected if name == "prior" else linear) * values for name, values in parts.items()}
    return {**own, "personal": taste * popularity}
