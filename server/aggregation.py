"""Which parameters train in a round, and how replies become one update. Pure functions.

Averaging the factors A and B of a low-rank product separately is not the average of the products. `alternate` trains
one factor per round, B first, so the mean is exact, noise enters linearly, and the LoRA upload halves. `ffa` never
trains A (Sun et al. 2024, arXiv 2403.12313). `fedit` trains both and accepts the error (Zhang et al. 2023, arXiv
2305.05644).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from server.correlated import Correlation
from shared.adapter import AdapterState
from shared.errors import AdapterError, ConfigError

#: Endings of a low-rank product's two factors: (first, second). The second starts at zero.
FACTORS = (
    (".lora_A.weight", ".lora_B.weight"),
    ("low.0.weight", "low.1.weight"),
    ("output.0.weight", "output.1.weight"),
    ("output.0.bias", "output.1.weight"),
)


def trained_names(rule: str, *, round_number: int, names: Sequence[str]) -> tuple[str, ...]:
    """Parameters that train in round 1, 2, …, in sorted order.

    | rule | odd rounds | even rounds |
    |---|---|---|
    | alternate | all but the first factors (A) | all but the second factors (B) |
    | ffa | all but the first factors | the same |
    | fedit | all | all |

    A full output matrix has no partner and always trains.
    """
    first = {name for name in names for one, two in FACTORS if name.endswith(one) and _swap(name, one, two) in names}
    second = {_swap(name, one, two) for name in first for one, two in FACTORS if name.endswith(one)}
    if rule == "fedit":
        left_out: set[str] = set()
    elif rule == "ffa" or (rule == "alternate" and round_number % 2 == 1):
        left_out = first
    elif rule == "alternate":
        left_out = second
    else:
        raise ConfigError(f"found aggregation rule {rule!r}; expected alternate, ffa or fedit")
    return tuple(sorted(set(names) - left_out))


class Aggregator:
    """Turns the replies of one exchange into one released sum.

    shapes: names and shapes every reply must have. bound: L2 norm C that each reply is clipped to (infinity: not at
    all). noise_std: standard deviation of the noise this side adds to the sum.

    Formal guarantee: with `noise_std = z C`, what `release` returns is a Gaussian mechanism with noise multiplier z
    under adding or removing all of one device's data, whatever that device sends, because every reply counts once,
    with weight 1, and moves the sum by at most C. It says nothing about replies that depend on one another.

    | reply | contribution |
    |---|---|
    | norm <= C | itself |
    | norm > C | scaled by C / norm |
    | all zero | zero |
    | of other names or shapes | AdapterError |
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        bound: float = math.inf,
        noise_std: float = 0.0,
        correlation: Correlation | None = None,
    ) -> None:
        if not (bound > 0 and 0 <= noise_std < math.inf):
            raise ConfigError(f"found clip {bound} and noise {noise_std}; expected a positive clip and finite noise")
        self.shapes = dict(shapes)
        self.bound = bound
        self.noise_std = noise_std
        self.correlation = correlation

    def add_up(self, replies: Iterable[AdapterState]) -> NDArray[np.float64] | None:
        """The sum of contributions, float64 (d,); None when there is no reply. Not a release: it has no noise yet."""
        total: NDArray[np.float64] | None = None
        for reply in replies:
            if reply.shapes != self.shapes:
                raise AdapterError("found an update of other names or shapes than this round's; expected one form")
            share = self.contribution(reply)
            if total is None:
                total = share
            else:
                total += share
        return total

    def contribution(self, reply: AdapterState) -> NDArray[np.float64]:
        """What one reply adds to the sum, a new float64 (d,) array of norm at most `bound`."""
        vector = reply.pack().astype(np.float64)
        if math.isinf(self.bound):
            return vector
        norm = float(np.linalg.norm(vector))
        return vector * (self.bound / norm) if norm > self.bound else vector

    def noise(self, size: int, generator: np.random.Generator) -> NDArray[np.float64]:
        """Gaussian noise, float64 (size,); `generator` must not have given noise to another sum."""
        if not self.noise_std:
            return np.zeros(size)
        white = generator.standard_normal(size)
        return self.noise_std * (self.correlation.colour(white) if self.correlation else white)

    def release(self, total: NDArray[np.float64], generator: np.random.Generator) -> AdapterState:
        """The sum with its noise: the first value that anyone may see. Charge the ledger before calling this."""
        return AdapterState.unpack((total + self.noise(total.size, generator)).astype(np.float32), self.shapes)


def noise_generator(seed: int | None, question: bytes) -> np.random.Generator:
    """Where one sum's noise comes from: the operating system, or `seed` in a simulation.

    question: SHA-256 of the request, which names run, phase, round and adapter. A resumed simulation that asks the
    same again adds the same noise to the same sum; any other sum gets other noise.
    """
    if seed is None:
        return np.random.default_rng()
    digest = hashlib.sha256(b"server noise" + seed.to_bytes(8, "big") + question).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def mean_of(total: AdapterState, *, planned: int) -> AdapterState:
    """Uniform mean over the *planned* cohort K, whatever the number of replies.

    The denominator is fixed: missing replies count as zero, no reply has a say in its weight, and the noise in the
    result does not depend on who answered. AdapterError when `planned` is below 1.
    """
    if planned < 1:
        raise AdapterError(f"found a planned cohort of {planned}; expected at least 1")
    return total * (1 / planned)


def _swap(name: str, one: str, two: str) -> str:
    return name.removesuffix(one) + two
