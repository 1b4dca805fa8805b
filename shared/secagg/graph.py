"""Who shares masks with whom, and how few survivors a device puts up with."""

from __future__ import annotations

import math

import numpy as np

#: Devices with fewer neighbours than this must be in a complete graph; see `degree`.
SPARSE_FROM = 48
#: A sum of two tells each of the two the other's vector, so at least two neighbours must survive beside a device.
LEAST_THRESHOLD = 2
#: Devices of which a sum may be taken at least.
LEAST_COHORT = LEAST_THRESHOLD + 1


def degree(devices: int) -> int:
    """Neighbours k of each device: everyone up to 49 devices, then 8 ceil(log2 n).

    For n = 50 to 100,000 random graphs, a tenth of the devices in league with the server and a fifth dropping out, no
    device has a majority of hostile neighbours but with probability 2^-40 and the survivors stay connected but with
    probability 2^-60 (hypergeometric and union bounds as in Bell et al. 2020; a test computes them).
    """
    return max(0, min(devices - 1, 8 * math.ceil(math.log2(max(2, devices)))))


def threshold(neighbours: int) -> int:
    """Shares t that open a secret: the least majority, and at least two.

    A majority, because then no two disjoint groups of neighbours can each open a secret of the same device: a server
    that tells one group "it survived" and another "it dropped out" gets the own mask or the key, never both.
    """
    return max(LEAST_THRESHOLD, neighbours // 2 + 1)


def least_survivors(neighbours: int, *, asked: int, quorum: int) -> int:
    """How many neighbours must survive for a device to go on. asked: the threshold in use.

    In a complete graph a device sees the whole cohort and enforces the quorum, which the noise is sized for, itself.
    In a sparse one it sees only its neighbours; there the quorum rests on the server's following the protocol.
    """
    return max(asked, quorum - 1) if neighbours < SPARSE_FROM else asked


def neighbour_lists(devices: int, *, rng: np.random.Generator | None = None) -> list[list[int]]:
    """Neighbours of devices 0 … n-1: a ring in random order in which each device knows the k/2 next on both sides.

    The order is drawn anew for every session, from the operating system unless a simulation passes its generator.
    """
    k = degree(devices)
    if k == devices - 1:
        return [[other for other in range(devices) if other != device] for device in range(devices)]
    order = (rng or np.random.default_rng()).permutation(devices)
    steps = [step for step in range(-(k // 2), k // 2 + 1) if step]
    lists: list[list[int]] = [[] for _ in range(devices)]
    for place, device in enumerate(order):
        lists[device] = [int(order[(place + step) % devices]) for step in steps]
    return lists
