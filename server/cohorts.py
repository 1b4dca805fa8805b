"""Who is asked in a round, and how often one device can be asked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from shared.config import Config, Federation
from shared.privacy.accounting import NoisePlan, plan_noise


def cohort_size(federation: Federation, devices: int) -> int:
    """Planned devices per round K, never more than there are."""
    return min(federation.cohort, devices)


def sample_cohort(federation: Federation, *, nodes: Sequence[int], round_number: int, seed: int) -> list[int]:
    """Node ids asked in round 1, 2, …; the same arguments give the same cohort.

    shuffled: a pass over a random order of all devices, K at a time; the few that are left over sit this pass out.
    poisson: each device joins independently with rate K/N, so the size varies.
    """
    ordered = np.array(sorted(nodes), dtype=np.uint64)
    planned = cohort_size(federation, len(ordered))
    if federation.sampling == "poisson":
        joined = np.random.default_rng((seed, round_number)).random(len(ordered)) < planned / len(ordered)
        return [int(node) for node in ordered[joined]]
    rounds_per_pass = len(ordered) // planned
    number, part = divmod(round_number - 1, rounds_per_pass)
    order = np.random.default_rng((seed, number)).permutation(len(ordered))
    return [int(node) for node in ordered[order[part * planned : (part + 1) * planned]]]


def participation_cap(federation: Federation, devices: int) -> int:
    """Training rounds one device is planned to join at most.

    shuffled: exact. poisson: the mean plus three standard deviations; a device beyond it refuses.
    """
    planned = cohort_size(federation, devices)
    if federation.sampling == "shuffled":
        return math.ceil(federation.rounds / (devices // planned))
    mean = federation.rounds * planned / devices
    return min(federation.rounds, math.ceil(mean + 3 * math.sqrt(mean)))


def plan_budget(config: Config, devices: int) -> NoisePlan | None:
    """Noise multipliers that spend a device's budget over the planned rounds; None without privacy."""
    if config.privacy.mode == "none":
        return None
    return plan_noise(
        config.privacy,
        participations=participation_cap(config.federation, devices),
        local_steps=config.training.local_steps,
        sample_rate=config.training.window_sample_rate,
    )
