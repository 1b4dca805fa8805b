"""Who is asked in a round, and how often one device can be asked."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
from flwr.serverapp import Grid

from shared.errors import RunError
from shared.secagg.graph import LEAST_COHORT
from shared.sections import Federation


def wait_for_devices(grid: Grid, federation: Federation) -> list[int]:
    """Sorted node ids once `minimum_devices` are connected.

    RunError after `reply_timeout` seconds, or when there are too few for secure aggregation to hide anybody.
    """
    wanted, deadline = federation.minimum_devices, time.monotonic() + federation.reply_timeout
    while len(nodes := sorted(grid.get_node_ids())) < wanted:
        if time.monotonic() > deadline:
            raise RunError(f"found {len(nodes)} connected devices; expected at least {wanted}")
        time.sleep(0.5)
    if federation.secure_aggregation and len(nodes) < LEAST_COHORT:
        raise RunError(
            f"found {len(nodes)} devices; secure aggregation hides nobody among fewer than {LEAST_COHORT}."
            " Wait for more (federation.minimum_devices)"
        )
    return nodes


def cohort_size(federation: Federation, devices: int) -> int:
    """Planned devices per round K, never more than there are."""
    return min(federation.cohort, devices)


def rounds_per_pass(federation: Federation, devices: int) -> int:
    """Rounds in which each device is asked at most once, when cohorts are not Poisson sampled."""
    return devices // cohort_size(federation, devices)


def sample_cohort(federation: Federation, *, nodes: Sequence[int], round_number: int, seed: int) -> list[int]:
    """Node ids asked in round 1, 2, …; the same arguments give the same cohort.

    shuffled: a pass over a random order of all devices, K at a time; the few that are left over sit this pass out.
    cyclic: the same random order in every pass, so a device comes back after exactly one pass.
    poisson: each device joins independently with rate K/N, so the size varies.
    """
    ordered = np.array(sorted(nodes), dtype=np.uint64)
    planned = cohort_size(federation, len(ordered))
    if federation.sampling == "poisson":
        joined = np.random.default_rng((seed, round_number)).random(len(ordered)) < planned / len(ordered)
        return [int(node) for node in ordered[joined]]
    number, part = divmod(round_number - 1, rounds_per_pass(federation, len(ordered)))
    shuffle = 0 if federation.sampling == "cyclic" else number
    order = np.random.default_rng((seed, shuffle)).permutation(len(ordered))
    return [int(node) for node in ordered[order[part * planned : (part + 1) * planned]]]


def survey_cohort(federation: Federation, *, nodes: Sequence[int], phase: str, seed: int) -> list[int]:
    """Node ids asked for the popularity count, the prior or the comparison: all, or a random `survey` of them."""
    if not federation.survey or federation.survey >= len(nodes):
        return list(nodes)
    generator = np.random.default_rng((seed, *phase.encode()))
    return [int(node) for node in generator.permutation(np.array(sorted(nodes), dtype=np.uint64))[: federation.survey]]


def participation_cap(federation: Federation, devices: int) -> int:
    """Training rounds P one device is planned to join at most.

    shuffled, cyclic: exact. poisson: the mean plus three standard deviations; a device beyond it refuses.
    """
    planned = cohort_size(federation, devices)
    if federation.sampling != "poisson":
        return math.ceil(federation.rounds / rounds_per_pass(federation, devices))
    mean = federation.rounds * planned / devices
    return min(federation.rounds, math.ceil(mean + 3 * math.sqrt(mean)))
