"""Who is asked, and how often at most."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.cohorts import cohort_size, participation_cap, rounds_per_pass, sample_cohort, survey_cohort
from shared.config import Federation


def plan(*, rounds: int, cohort: int, sampling: str = "shuffled") -> Federation:
    return Federation(rounds=rounds, cohort=cohort, sampling=sampling)


def cohorts(federation: Federation, *, devices: int, seed: int = 0) -> list[list[int]]:
    nodes = list(range(100, 100 + devices))
    return [
        sample_cohort(federation, nodes=nodes, round_number=number, seed=seed)
        for number in range(1, federation.rounds + 1)
    ]


@given(rounds=st.integers(1, 40), cohort=st.integers(1, 30), devices=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_shuffled_asks_exactly_k_nobody_twice_in_a_pass_and_nobody_beyond_the_cap(
    rounds: int, cohort: int, devices: int, seed: int
) -> None:
    federation = plan(rounds=rounds, cohort=cohort)
    asked = cohorts(federation, devices=devices, seed=seed)
    size = min(cohort, devices)
    assert cohort_size(federation, devices) == size
    assert all(len(nodes) == len(set(nodes)) == size for nodes in asked)
    in_a_pass = devices // size
    for start in range(0, rounds, in_a_pass):
        joined = [node for nodes in asked[start : start + in_a_pass] for node in nodes]
        assert len(joined) == len(set(joined))
    counts = Counter(node for nodes in asked for node in nodes)
    assert max(counts.values()) <= participation_cap(federation, devices)
    assert set(counts) <= set(range(100, 100 + devices))


def test_the_cap_is_reached_not_padded() -> None:
    federation = plan(rounds=9, cohort=5)
    counts = Counter(node for nodes in cohorts(federation, devices=20) for node in nodes)
    assert participation_cap(federation, 20) == 3
    assert max(counts.values()) == 3


def test_two_passes_have_different_orders_and_everybody_gets_a_turn() -> None:
    asked = cohorts(plan(rounds=8, cohort=4), devices=16)
    assert sorted(node for nodes in asked[:4] for node in nodes) == list(range(100, 116))
    assert asked[:4] != asked[4:]


@pytest.mark.parametrize("sampling", ["shuffled", "cyclic", "poisson"])
def test_a_cohort_depends_on_seed_and_round_and_not_on_the_order_of_nodes(sampling: str) -> None:
    federation, nodes = plan(rounds=20, cohort=10, sampling=sampling), list(range(50))
    first = sample_cohort(federation, nodes=nodes, round_number=3, seed=1)
    assert first == sample_cohort(federation, nodes=nodes[::-1], round_number=3, seed=1)
    assert first != sample_cohort(federation, nodes=nodes, round_number=4, seed=1)
    assert first != sample_cohort(federation, nodes=nodes, round_number=3, seed=2)


def test_64_bit_node_ids_survive() -> None:
    nodes = [2**64 - 1, 2**63 + 1, 7]
    assert sorted(sample_cohort(plan(rounds=1, cohort=3), nodes=nodes, round_number=1, seed=0)) == sorted(nodes)


def test_poisson_joins_each_device_independently_with_rate_k_over_n() -> None:
    federation = plan(rounds=400, cohort=20, sampling="poisson")
    asked = cohorts(federation, devices=100)
    sizes = [len(nodes) for nodes in asked]
    # binomial(100, .2): mean 20, variance 16; 400 rounds
    mean = sum(sizes) / 400
    variance = sum((size - mean) ** 2 for size in sizes) / 399
    assert abs(mean - 20) < 4 * 4 / 20
    assert 12 < variance < 20.5
    counts = Counter(node for nodes in asked for node in nodes)
    assert all(40 < counts[node] < 125 for node in range(100, 200))  # mean 80, standard deviation 8


def test_the_poisson_cap_leaves_room_for_luck_but_never_exceeds_the_rounds() -> None:
    assert participation_cap(plan(rounds=10, cohort=10, sampling="poisson"), 10) == 10
    assert participation_cap(plan(rounds=100, cohort=10, sampling="poisson"), 100) == 20  # 10 + 3 sqrt 10


@given(rounds=st.integers(1, 40), cohort=st.integers(1, 30), devices=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_cyclic_asks_everybody_again_after_exactly_one_pass(rounds: int, cohort: int, devices: int, seed: int) -> None:
    """Correlated noise rests on it: whoever takes part stays away for the rest of a pass."""
    federation = plan(rounds=rounds, cohort=cohort, sampling="cyclic")
    asked = cohorts(federation, devices=devices, seed=seed)
    away = rounds_per_pass(federation, devices)
    assert away == devices // min(cohort, devices)
    assert all(asked[number] == asked[number + away] for number in range(rounds - away))
    for first in range(rounds):
        for second in range(first + 1, min(rounds, first + away)):
            assert not set(asked[first]) & set(asked[second])
    counts = Counter(node for nodes in asked for node in nodes)
    assert max(counts.values()) <= participation_cap(federation, devices)


@pytest.mark.parametrize(("survey", "asked"), [(0, 40), (40, 40), (50, 40), (7, 7)])
def test_a_survey_asks_so_many_devices_and_nobody_twice(survey: int, asked: int) -> None:
    nodes = list(range(100, 140))
    found = survey_cohort(Federation(survey=survey), nodes=nodes, phase="popularity", seed=1)
    assert len(set(found)) == len(found) == asked
    assert set(found) <= set(nodes)
    assert found == survey_cohort(Federation(survey=survey), nodes=nodes, phase="popularity", seed=1)


def test_each_survey_asks_others() -> None:
    asked = {
        phase: survey_cohort(Federation(survey=7), nodes=range(40), phase=phase, seed=1)
        for phase in ("popularity", "validate")
    }
    assert set(asked["popularity"]) != set(asked["validate"])
