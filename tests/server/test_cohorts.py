"""Who is asked, and how often at most."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.cohorts import (
    cohort_size,
    participation_cap,
    rounds_per_pass,
    sample_cohort,
    survey_cohort,
    wait_for_devices,
)
from shared.config import merge
from shared.errors import RunError
from shared.protocol import Manifest
from shared.sections import Federation
from simulations.runfolder import RunFolder
from tests.server.small_server import Network, first_asked, rows, server, start_run


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


# --- the server keeps the cap, whoever is connected --------------------------------------------------------


class Connected(Network):
    """A network of which only some devices are connected; counts who is asked to train."""

    def __init__(self, run: RunFolder, nodes: list[int], asked: Counter[int]) -> None:
        def count(manifest: Manifest, node: int, question: Any) -> None:
            asked[node] += manifest.phase == "train"

        super().__init__(run, on_question=count)
        self._nodes = nodes

    def get_node_ids(self) -> list[int]:
        return self._nodes


class StopError(BaseException):
    """The process ends."""


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("sampling", ["shuffled", "cyclic"])
def test_fewer_devices_after_a_restart_are_not_asked_more_often_than_the_cap(
    sampling: str, six_users: Path, tmp_path: Path
) -> None:
    """Four left of six: a pass is then two rounds and not three, so the cohorts alone would ask too often."""
    settings = ("federation.rounds=6", "federation.cohort=2", f"federation.sampling={sampling}")
    run = start_run(tmp_path, six_users, *settings)
    run = replace(run, config=merge(run.config, {"federation": {"minimum_devices": 4}}))
    assert participation_cap(run.config.federation, 6) == 2

    def stop(step: str, manifest: Manifest) -> None:
        if (step, manifest.phase, manifest.round) == ("recorded", "train", 2):
            raise StopError

    asked = Counter[int]()
    with pytest.raises(StopError):
        server(run, on_step=stop).run(Connected(run, [1, 2, 3, 4, 5, 6], asked))
    gone = next(node for node in range(1, 7) if not asked[node])
    left = [node for node in range(1, 7) if node not in (gone, first_asked(run))]
    alone = Counter(asked)
    for number in (3, 4, 5, 6):
        alone.update(sample_cohort(run.config.federation, nodes=left, round_number=number, seed=run.config.seed))
    assert max(alone.values()) > 2  # what would happen without the cap
    again = server(run)
    assert again.state.asked == {str(node): times for node, times in asked.items() if times}
    again.run(Connected(run, left, asked))
    assert max(asked.values()) == 2
    assert [row["round"] for row in rows(run)] == [1, 2, 3, 4, 5, 6]
    assert sum(row["asked"] for row in rows(run)) == sum(asked.values()) < sum(alone.values())


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(("mode", "kept"), [("event", True), ("both", True), ("user", False)])
def test_poisson_cohorts_keep_the_cap_unless_all_rounds_are_priced_by_their_rate(
    mode: str, kept: bool, six_users: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.budget.participation_cap", lambda federation, devices: 2)
    sampled = ("federation.sampling=poisson", "federation.rounds=5", "federation.cohort=3", "federation.quorum=0.01")
    run, asked = start_run(tmp_path, six_users, *sampled, f"privacy.mode={mode}"), Counter[int]()
    server(run).run(Connected(run, [1, 2, 3, 4, 5, 6], asked))
    assert (max(asked.values()) <= 2) == kept


# --- enough devices to hide among --------------------------------------------------------------------------


class Grid:
    """So many connected devices."""

    def __init__(self, devices: int) -> None:
        self._devices = devices

    def get_node_ids(self) -> list[int]:
        return list(range(self._devices, 0, -1))


@pytest.mark.parametrize(
    ("devices", "secure", "enough"), [(1, True, False), (2, True, False), (3, True, True), (2, False, True)]
)
def test_secure_aggregation_waits_for_enough_to_hide_somebody(devices: int, secure: bool, enough: bool) -> None:
    federation = Federation(secure_aggregation=secure, minimum_devices=1)
    if enough:
        assert wait_for_devices(Grid(devices), federation) == list(range(1, devices + 1))  # type: ignore[arg-type]
    else:
        with pytest.raises(RunError, match=f"found {devices} devices; secure aggregation hides nobody .* fewer than 3"):
            wait_for_devices(Grid(devices), federation)  # type: ignore[arg-type]
