"""The prior on the server: groups of devices, their summed moments, and the matrices solved from them.

A prior that was made from a device's own events knows the answers of that device's training windows, and a part that
is trained on top of it then learns nothing (it sees no errors left to mend). So devices are split into groups, and each
group trains against the prior of the *other* groups: cross-fitting (Chernozhukov et al., Econometrics Journal 2018).
Each device still sends its moments once. What is shipped is the prior of all groups together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.adapter import AdapterState
from shared.artifacts import load_arrays, save_arrays
from shared.config import Config
from shared.errors import AdapterError, RunError
from shared.layout import MOMENTS
from shared.prior import solve_prior

FILE = "prior.safetensors"
#: Rounds in a row that ask one group: both factors of a low-rank product train against the same prior.
TURN = 2


def groups_of(config: Config, nodes: Sequence[int]) -> list[list[int]]:
    """Devices by group when moments are asked for; one group when there is nothing to cross-fit, or nobody in one."""
    count = config.prior.folds if config.prior.half_lives and config.federation.rounds else 1
    groups = split(nodes, count)
    return groups if all(groups) else [list(nodes)]


def split(nodes: Sequence[int], count: int) -> list[list[int]]:
    """Devices by group, possibly none in some. The same node is always in the same group, whoever else is connected."""
    return [[node for node in nodes if node % count == group] for group in range(count)]


def turn_of(number: int, *, groups: int) -> tuple[int, int]:
    """Which group is asked in training round 1, 2, …, and for the how-manieth time (1 for the first).

    >>> [turn_of(number, groups=2) for number in range(1, 7)]
    [(0, 1), (0, 2), (1, 1), (1, 2), (0, 3), (0, 4)]
    """
    block, place = divmod(number - 1, TURN)
    return block % groups, (block // groups) * TURN + place + 1


def round_of(number: int, *, nodes: Sequence[int], groups: int) -> tuple[int, int, list[int]]:
    """Group, turn as in `turn_of`, and members of training round 1, 2, …; groups with nobody here are left out."""
    members = split(nodes, groups)
    present = [group for group in range(groups) if members[group]]
    place, turn = turn_of(number, groups=len(present))
    return present[place], turn, members[present[place]]


@dataclass
class Priors:
    """Solved priors. whole: of all groups, float32 (F, k). without: by group, that of all others; empty for one group.

    Sums are added as they are released; `solve` makes the matrices.
    """

    whole: NDArray[np.float32]
    without: list[NDArray[np.float32]] = field(default_factory=list)

    @classmethod
    def solve(cls, sums: Sequence[AdapterState], *, ridge: float, noise_stds: Sequence[float]) -> Priors:
        """From the released sums of each group and the standard deviation of the noise in them."""
        variances = np.square(noise_stds)

        def solved(kept: Sequence[int]) -> NDArray[np.float32]:
            triangle, targets = (
                np.stack([sums[group].arrays[name] for group in kept]).sum(axis=0, dtype=np.float64) for name in MOMENTS
            )
            noise = float(np.sqrt(sum(variances[group] for group in kept)))
            return solve_prior(triangle, targets, ridge=ridge, noise_std=noise)

        everyone = range(len(sums))
        others = [[other for other in everyone if other != group] for group in everyone] if len(sums) > 1 else []
        return cls(solved(list(everyone)), [solved(kept) for kept in others])

    @property
    def groups(self) -> int:
        """How many groups train against priors of their own."""
        return max(1, len(self.without))

    def for_group(self, group: int) -> NDArray[np.float32]:
        """What a group trains against."""
        return self.without[group] if self.without else self.whole

    def save(self, folder: Path) -> str:
        """Write to `folder`; returns the file's SHA-256, which the checkpoint keeps."""
        arrays = {"whole": self.whole, **{f"without/{group}": matrix for group, matrix in enumerate(self.without)}}
        save_arrays(folder / FILE, arrays)
        return _digest(folder)

    @classmethod
    def load(cls, folder: Path, *, digest: str) -> Priors:
        """Read what a checkpoint rests on; RunError when it is missing or another."""
        try:
            if _digest(folder) != digest:
                raise AdapterError("it is not the one that the checkpoint was written with")
            arrays = load_arrays(folder / FILE)
            return cls(arrays["whole"], [arrays[f"without/{group}"] for group in range(len(arrays) - 1)])
        except (AdapterError, KeyError, OSError) as error:
            raise RunError(
                f"{folder / FILE}: found no usable prior ({error}); start a new run in another folder"
            ) from None


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / FILE).read_bytes()).hexdigest()
