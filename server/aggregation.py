"""Which parameters train in a round, and how replies become one update. Pure functions.

Averaging the factors A and B of a low-rank product separately is not the average of the products. `alternate` trains
one factor per round, B first, so the mean is exact, noise enters linearly, and the LoRA upload halves. `ffa` never
trains A (Sun et al. 2024, arXiv 2403.12313). `fedit` trains both and accepts the error (Zhang et al. 2023, arXiv
2305.05644).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

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


def add_up(updates: Iterable[AdapterState]) -> AdapterState | None:
    """The sum of updates, accumulated in float64; None when there is none. AdapterError for a shape mismatch."""
    total: dict[str, NDArray[np.float64]] = {}
    shapes: dict[str, tuple[int, ...]] | None = None
    for update in updates:
        if shapes is None:
            shapes = update.shapes
            total = {name: np.zeros(shape) for name, shape in shapes.items()}
        if update.shapes != shapes:
            raise AdapterError("found updates of different names or shapes in one round; expected one form")
        for name, array in update.arrays.items():
            total[name] += array
    return None if shapes is None else AdapterState({name: array.astype(np.float32) for name, array in total.items()})


def combine(updates: Iterable[AdapterState], *, planned: int) -> AdapterState | None:
    """Uniform mean over the *planned* cohort K, whatever the number of replies; None when there is none.

    The denominator is fixed: missing replies count as zero, no reply has a say in its weight, and the noise in the
    result does not depend on who answered.
    """
    if planned < 1:
        raise AdapterError(f"found a planned cohort of {planned}; expected at least 1")
    total = add_up(updates)
    return None if total is None else total * (1 / planned)


def _swap(name: str, one: str, two: str) -> str:
    return name.removesuffix(one) + two
